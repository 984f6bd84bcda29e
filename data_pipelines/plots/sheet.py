"""The paper that a tile is drawn on: places in inches from the upper left corner, and how everything looks.

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
ACCENT_COLOUR = "#1b6ca8"

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
    """A figure of WIDTH by `height` inches; places are given from its upper left corner."""

    figure: Any
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes whose upper left corner is at (left, top)."""
        bottom = self.height - top - height
        place = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is at (left, top)."""
        placed = dict(ha="left", va="top") | style
        self.figure.text(left / WIDTH, 1 - top / self.height, text, **placed)


@contextlib.contextmanager
def new_sheet(path: pathlib.Path, height: float) -> Iterator[Sheet]:
    """A sheet to draw on, saved to `path` at the end. No window is opened, whatever the backend."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        yield Sheet(figure, height)
        figure.savefig(path, dpi=DOTS_PER_INCH)


def show_image(ax: Any, image: np.ndarray) -> None:
    """An image (H, W, 3) that fills its axes, without ticks, thinly framed."""
    ax.imshow(image, interpolation="auto", aspect="auto")
    bare(ax)


def bare(ax: Any) -> None:
    """No ticks, and a thin frame all around."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=EDGE_COLOUR, linewidth=0.6)
