"""Parts of a tile's figure: the sheet, panels of sensors and labels, strips of dates, curves of pixels, a timeline.

Positions are inches from the sheet's upper left corner. matplotlib is imported where figures are drawn, not with the
package.
"""

import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from jaxtyping import Int

from anysat_jax.sensors import Sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.plots.colours import CLOUDY, PERCENTILES, View, hatched, legend_entries, paint
from data_pipelines.windows import without_margin

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
        return self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Writes text whose upper left corner is at (left, top)."""
        self.figure.text(left / WIDTH, 1 - top / self.height, text, **dict(ha="left", va="top") | style)


@contextlib.contextmanager
def saved_figure(
    path: pathlib.Path | IO[bytes], settings: Mapping[str, Any], dpi: int, **options: Any
) -> Iterator[Any]:
    """Yields a figure to draw on and saves it as a PNG; never opens a window, whatever the backend."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot, which keeps every figure until it is closed and may open a window.
    with matplotlib.rc_context(settings):
        figure = Figure(**options)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=dpi)


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
    # White on black, as the ground below may be of any colour.
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    place = dict(transform=ax.transAxes, color="white", clip_on=True)
    ends = [0.05, 0.05 + metres / extent]
    ax.plot(ends, [0.05, 0.05], linewidth=2, path_effects=outline, solid_capstyle="butt", **place)
    label = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    ax.text(0.05, 0.075, label, fontsize=9, va="bottom", path_effects=outline, **place)


TITLE_INCHES = 0.56


def draw_panel(
    sheet: Sheet, left: float, top: float, side: float, sensor: Sensor, view: View | None, extent: float
) -> None:
    """Draws one sensor as an image of `side` inches below its titles, or a placeholder if the tile lacks it (no view).

    `extent` is the tile's, in metres.
    """
    metres = f"{sensor.metres_per_pixel:g} m"
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    if view is None:
        draw_titles(sheet, left, top, sensor.name, metres)
        bare(ax)
        ax.patch.set(facecolor="#f4f4f4", edgecolor="#d0d0d0", hatch="//")
        box = dict(facecolor="white", edgecolor=EDGE_COLOUR, boxstyle="round,pad=0.5")
        ax.text(0.5, 0.5, f"no {sensor.name}\nin this tile", ha="center", va="center", bbox=box, transform=ax.transAxes)
        return
    when = ""
    if sensor.has_dates:
        kind = "clear median" if view.cloud is not None else "median"
        several = f", {kind} of {len(view.days)} dates"
        one = f", {view.days[0]:{view.day_format}}" if view.days else ", date not known"
        when = several if len(view.days) > 1 else one
    draw_titles(sheet, left, top, sensor.name, metres + when, view.how)
    show_image(ax, hatched(*view.summary(), display=round(side * DOTS_PER_INCH)))
    add_scale_bar(ax, extent)


HEADING_INCHES = 0.3
NAMES_INCHES = 1.0
LEGEND_INCHES = 0.75
CURVES_INCHES = 2.1
ROW_INCHES = 0.3
AXIS_INCHES = 0.55
PARTLY = 10.0  # percent of cloud from which a date is partly cloudy
CLEAR_COLOUR, PARTLY_COLOUR, CLOUDY_COLOUR = "#1b6ca8", "#e08a1e", "#b0b0b0"
UNKNOWN_COLOUR = "#444444"

_LEFT = MARGIN + NAMES_INCHES
_AXIS_WIDTH = WIDTH - _LEFT - MARGIN - LEGEND_INCHES


def cloud_colour(percent: float | None) -> str:
    """Returns the colour of a date: clear, partly cloudy, cloudy, or not known."""
    if percent is None:
        return UNKNOWN_COLOUR
    if percent < PARTLY:
        return CLEAR_COLOUR
    return PARTLY_COLOUR if percent < CLOUDY else CLOUDY_COLOUR


def timeline_inches(views: Sequence[View]) -> float:
    """Returns the height of a timeline of these series."""
    return HEADING_INCHES + ROW_INCHES * len(views) + AXIS_INCHES


def draw_timeline(sheet: Sheet, top: float, views: Sequence[View]) -> None:
    """Draws every date of every series as a stroke, coloured by cloud."""
    from matplotlib.lines import Line2D

    sheet.text(MARGIN, top, "dates", fontsize=11.5, fontweight="bold")
    ax = sheet.axes(_LEFT, top + HEADING_INCHES, _AXIS_WIDTH, ROW_INCHES * len(views))
    for row, view in enumerate(views):
        percents = [None] * len(view.days) if view.cloud is None else view.cloud.tolist()
        colours = [cloud_colour(percent) for percent in percents]
        ax.vlines(np.asarray(view.days, "datetime64[D]"), row - 0.3, row + 0.3, colors=colours, linewidth=1.6)
    ax.set(ylim=(len(views) - 0.5, -0.5), yticks=range(len(views)))
    ax.set_yticklabels([f"{view.sensor.name} ({len(view.days)})" for view in views])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    _date_axis(ax, views)
    if all(view.cloud is None for view in views):
        return
    stroke = dict(marker="|", linestyle="none", markersize=10, markeredgewidth=2)
    texts = (f"cloud < {PARTLY:g} %", f"{PARTLY:g} to {CLOUDY:g} %", f"{CLOUDY:g} % and more", "not known")
    colours = (CLEAR_COLOUR, PARTLY_COLOUR, CLOUDY_COLOUR, UNKNOWN_COLOUR)
    entries = [Line2D([], [], color=colour, label=text, **stroke) for colour, text in zip(colours, texts, strict=True)]
    place = (_LEFT / WIDTH, 1 - (top - 0.06) / sheet.height)
    sheet.figure.legend(handles=entries, loc="upper left", bbox_to_anchor=place, ncols=4, fontsize=8.5, borderaxespad=0)


def draw_curves(sheet: Sheet, top: float, view: View, example: Example, views: Sequence[View]) -> None:
    """Draws the bands of a single pixel over its dates, without values that are not valid; clouds are hollow.

    The axis spans the dates of all series, `views`.
    """
    import matplotlib

    name, bands, dates = view.sensor.name, view.sensor.bands, np.asarray(view.days, "datetime64[D]")
    sheet.text(MARGIN, top, name, fontsize=11.5, fontweight="bold")
    text = f"{len(view.days)} dates of one pixel: its bands over time"
    sheet.text(_LEFT, top + 0.03, text, fontsize=9, color=FAINT_COLOUR)
    ax = sheet.axes(_LEFT, top + HEADING_INCHES, _AXIS_WIDTH, CURVES_INCHES)
    values = example[name][:, :, 0, 0].astype(np.float64)
    mask = example.get(f"{name}_mask")
    valid = np.ones(values.shape, np.bool_) if mask is None else np.broadcast_to(mask[:, :, 0, 0], values.shape)
    cloudy = view.valid[:, 0, 0] & ~view.clear[:, 0, 0]
    for number, band in enumerate(bands):
        if not valid[:, number].any():
            continue
        colour = matplotlib.colormaps["turbo"](0.05 + 0.9 * number / max(len(bands) - 1, 1))
        clear, hollow, style = valid[:, number] & ~cloudy, valid[:, number] & cloudy, dict(color=colour, markersize=3.5)
        ax.plot(dates[clear], values[clear, number], "o-", linewidth=1.2, label=band, **style)
        ax.plot(dates[hollow], values[hollow, number], "o", markerfacecolor="none", alpha=0.6, **style)
    ax.grid(axis="y")
    _date_axis(ax, views)
    title = "hollow: cloud" if cloudy.any() else None
    ax.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), fontsize=8.5, title=title, title_fontsize=8.5)


def _date_axis(ax: Any, views: Sequence[View]) -> None:
    """Sets an axis over the dates of all series, with a little room at both ends."""
    from matplotlib import dates

    first = min(view.days[0] for view in views)
    last = max(view.days[-1] for view in views)
    # At least two days, as all dates may be one.
    room = max((last - first) / 60, datetime.timedelta(days=2))
    ax.set_xlim(first - room, last + room)
    locator = dates.AutoDateLocator(minticks=4, maxticks=14)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.AutoDateFormatter(locator))
    ax.tick_params(labelsize=8.5)
    ax.tick_params(axis="x", pad=6)


THUMBNAILS = 12
NARROWEST = 4  # thumbnails; a strip's heading needs their width
GAP = 0.1
DATE_INCHES = 0.36
WARNING_COLOUR = "#b5560b"
INVALID_PERCENT = 1.0  # from which a thumbnail is captioned "not valid"

_SIDE = (WIDTH - 2 * MARGIN - (THUMBNAILS - 1) * GAP) / THUMBNAILS
STRIP_INCHES = HEADING_INCHES + _SIDE + DATE_INCHES


def shown_dates(count: int) -> Int[np.ndarray, "n"]:
    """Returns positions of at most THUMBNAILS dates, evenly over the series, with its first and last."""
    return np.unique(np.linspace(0, count - 1, min(count, THUMBNAILS)).round().astype(np.int64))


def in_rows(views: Sequence[View]) -> list[list[tuple[int, View]]]:
    """Returns rows of strips, each with the position in thumbnails where it starts; one is left empty between two."""
    rows: list[list[tuple[int, View]]] = []
    end = THUMBNAILS
    for view in views:
        width = max(NARROWEST, len(shown_dates(len(view.days))))
        if end + 1 + width > THUMBNAILS:
            rows.append([])
            end = -1
        rows[-1].append((end + 1, view))
        end += 1 + width
    return rows


def draw_strips(sheet: Sheet, top: float, row: Sequence[tuple[int, View]]) -> None:
    """Draws a row of `in_rows`: each series as thumbnails with one stretch, day and cloud below each."""
    for first, view in row:
        shown = shown_dates(len(view.days))
        of = f"{len(shown)} of " if len(shown) < len(view.days) else ""
        left, text = MARGIN + first * (_SIDE + GAP), f"{of}{len(view.days)} dates, stretched alike"
        sheet.text(left, top, view.sensor.name, fontsize=11.5, fontweight="bold")
        sheet.text(left + 1.0, top + 0.03, text, fontsize=9, color=FAINT_COLOUR)
        for date, colours in zip(shown, view.colours(shown), strict=True):
            ax = sheet.axes(left, top + HEADING_INCHES, _SIDE, _SIDE)
            show_image(ax, hatched(colours, view.valid[date], display=round(_SIDE * DOTS_PER_INCH)))
            middle, below = left + _SIDE / 2, top + HEADING_INCHES + _SIDE + 0.05
            sheet.text(middle, below, f"{view.days[date]:{view.day_format}}", fontsize=9, ha="center")
            # The larger of cloud and invalid pixels; nothing if neither matters.
            invalid = 100 * (1 - view.valid[date].mean())
            cloud = 0.0 if view.cloud is None else float(view.cloud[date])
            warning = f"not valid {invalid:.0f} %" if invalid >= INVALID_PERCENT else ""
            warning = f"cloud {cloud:.0f} %" if cloud >= max(PARTLY, invalid) else warning
            sheet.text(middle, below + 0.16, warning, fontsize=8, ha="center", color=WARNING_COLOUR)
            left += _SIDE + GAP


COLOURS_OF_NUMBERS = "viridis"
LABEL_LEGEND_INCHES = 2.3
_ROOMY = 14  # largest number of classes for a legend in its usual size


def draw_dense(sheet: Sheet, left: float, top: float, side: float, card: DatasetCard, example: Example) -> None:
    """Draws the label "dense" as a panel, its legend at the right; a regression is hatched where it has no label."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch

    values = without_margin(card, "dense", example["dense"])
    kind = {"segmentation": "class map", "change": "change map", "regression": "map of numbers"}[card.dense_label]
    draw_titles(sheet, left, top, "label", f"{card.dense_metres:g} m, {kind}")
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    if card.dense_label == "regression":
        known = np.isfinite(values)
        # As for images: outliers of a regression would leave all others one colour.
        low, high = np.percentile(values[known], PERCENTILES) if known.any() else (0.0, 1.0)
        # A map of a single value has no range to stretch.
        norm = Normalize(low, high if high > low else low + 1)
        colours = matplotlib.colormaps[COLOURS_OF_NUMBERS](norm(np.where(known, values, low)))[..., :3]
        show_image(ax, hatched(colours.astype(np.float32), known, display=round(side * DOTS_PER_INCH)))
        bar = sheet.axes(left + side + 0.15, top + TITLE_INCHES, 0.16, side)
        sheet.figure.colorbar(ScalarMappable(norm, COLOURS_OF_NUMBERS), cax=bar, label=card.label_unit)
    else:
        show_image(ax, paint(card.dense_colours, values, card.ignore_label))
        entries = legend_entries(card, values)
        ax.legend(
            handles=[Patch(facecolor=c, edgecolor=EDGE_COLOUR, linewidth=0.6, label=text) for text, c in entries],
            loc="upper left",
            bbox_to_anchor=(1.03, 1.0),
            borderaxespad=0,
            handlelength=1.3,
            handleheight=1.3,
            labelspacing=0.45 if len(entries) <= _ROOMY else 0.1,
            fontsize=9.5 if len(entries) <= _ROOMY else 7.2,
        )
    add_scale_bar(ax, card.extent)
