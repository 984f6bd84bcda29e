"""The figure that a tile is drawn on: positions in inches from the upper left corner, fonts and colours, scale bars.

matplotlib is imported where figures are drawn, not with the package.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

WIDTH = 14.0
MARGIN = 0.35
DOTS_PER_INCH = 120
TEXT_COLOUR = "#222222"
FAINT_COLOUR = "#6b6b6b"
EDGE_COLOUR = "#999999"
BAR_FRACTION = 0.3  # of the panel's width, which a scale bar stays below

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE_COLOUR,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "hatch.linewidth": 0.6,
    "text.color": TEXT_COLOUR,
    "text.parse_math": False,  # names from archives may hold dollars
    "xtick.color": FAINT_COLOUR,
    "ytick.color": FAINT_COLOUR,
    "xtick.labelcolor": TEXT_COLOUR,
    "ytick.labelcolor": TEXT_COLOUR,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A figure of WIDTH by `height` inches; positions count from its upper left corner."""

    figure: Any
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Adds axes whose upper left corner is at (left, top)."""
        bottom = self.height - top - height
        place = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Writes text whose upper left corner is at (left, top)."""
        placed = dict(ha="left", va="top") | style
        self.figure.text(left / WIDTH, 1 - top / self.height, text, **placed)


@contextlib.contextmanager
def new_sheet(path: pathlib.Path, height: float) -> Iterator[Sheet]:
    """Yields a sheet to draw on and saves it to `path`; never opens a window, whatever the backend."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        yield Sheet(figure, height)
        figure.savefig(path, dpi=DOTS_PER_INCH)


def show_image(ax: Any, image: np.ndarray) -> None:
    """Draws an image (H, W, 3) that fills its axes, without ticks, thinly framed."""
    ax.imshow(image, interpolation="auto", aspect="auto")
    bare(ax)


def bare(ax: Any) -> None:
    """Removes the ticks and draws a thin frame all around."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=EDGE_COLOUR, linewidth=0.6)


def draw_titles(sheet: Sheet, left: float, top: float, name: str, *lines: str) -> None:
    """Writes a panel's name and up to two lines below it."""
    sheet.text(left, top, name, fontsize=11.5, fontweight="bold")
    sheet.text(left, top + 0.2, "\n".join(lines), fontsize=8.5, color=FAINT_COLOUR, linespacing=1.15)


def bar_metres(extent: float) -> float:
    """Returns the longest of 1, 2, 5, 10, ... metres that is at most BAR_FRACTION of the extent."""
    longest = BAR_FRACTION * extent
    power = 10.0 ** (len(str(int(longest))) - 1) if longest >= 1 else 0.1
    return max((step * power for step in (1, 2, 5) if step * power <= longest), default=power)


def add_scale_bar(ax: Any, extent: float) -> None:
    """Draws a bar and its length in metres in the lower left corner, with an outline readable on any ground."""
    from matplotlib import patheffects

    metres = bar_metres(extent)
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    place = dict(transform=ax.transAxes, color="white", clip_on=True)
    ends = [0.05, 0.05 + metres / extent]
    ax.plot(ends, [0.05, 0.05], linewidth=2, path_effects=outline, solid_capstyle="butt", **place)
    label = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    ax.text(0.05, 0.075, label, fontsize=9, va="bottom", path_effects=outline, **place)
