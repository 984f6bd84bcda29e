"""One tile as a figure: images of all sensors and the label, strips of dates, curves of single pixels, a timeline."""

import datetime
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.plots.colours import (
    CLOUDY,
    PERCENTILES,
    LegendEntry,
    View,
    hatched,
    legend_entries,
    paint,
    tile_label,
    view_of,
)
from data_pipelines.plots.sheet import (
    DOTS_PER_INCH,
    EDGE_COLOUR,
    FAINT_COLOUR,
    MARGIN,
    WIDTH,
    Sheet,
    add_scale_bar,
    bare,
    draw_titles,
    new_sheet,
    show_image,
)
from data_pipelines.windows import without_margin

TITLE_INCHES = 0.56


def draw_view(sheet: Sheet, left: float, top: float, side: float, view: View, extent: float) -> None:
    """Draws one sensor as an image of `side` inches, below its titles; `extent` in metres."""
    draw_titles(sheet, left, top, view.sensor.name, _caption(view), view.how)
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    show_image(ax, hatched(*view.summary(), display=round(side * DOTS_PER_INCH)))
    add_scale_bar(ax, extent)


def draw_missing(sheet: Sheet, left: float, top: float, side: float, sensor: Sensor) -> None:
    """Draws a placeholder for a sensor that the tile lacks."""
    draw_titles(sheet, left, top, sensor.name, f"{sensor.metres_per_pixel:g} m")
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    bare(ax)
    ax.patch.set(facecolor="#f4f4f4", edgecolor="#d0d0d0", hatch="//")
    box = dict(facecolor="white", edgecolor=EDGE_COLOUR, boxstyle="round,pad=0.5")
    ax.text(0.5, 0.5, f"no {sensor.name}\nin this tile", ha="center", va="center", bbox=box, transform=ax.transAxes)


def _caption(view: View) -> str:
    metres = f"{view.sensor.metres_per_pixel:g} m"
    if not view.days:
        return f"{metres}, date not known" if view.sensor.has_dates else metres
    if len(view.days) == 1:
        return f"{metres}, {view.days[0]:{view.day_format}}"
    return f"{metres}, {'clear ' if view.cloud is not None else ''}median of {len(view.days)} dates"


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
    if any(view.cloud is not None for view in views):
        _cloud_legend(sheet, top)


def _cloud_legend(sheet: Sheet, top: float) -> None:
    from matplotlib.lines import Line2D

    stroke = dict(marker="|", linestyle="none", markersize=10, markeredgewidth=2)
    texts = (f"cloud < {PARTLY:g} %", f"{PARTLY:g} to {CLOUDY:g} %", f"{CLOUDY:g} % and more", "not known")
    colours = (CLEAR_COLOUR, PARTLY_COLOUR, CLOUDY_COLOUR, UNKNOWN_COLOUR)
    entries = [Line2D([], [], color=colour, label=text, **stroke) for colour, text in zip(colours, texts, strict=True)]
    place = (_LEFT / WIDTH, 1 - (top - 0.06) / sheet.height)
    sheet.figure.legend(handles=entries, loc="upper left", bbox_to_anchor=place, ncols=4, fontsize=8.5, borderaxespad=0)


def draw_curves(sheet: Sheet, top: float, view: View, example: Example, views: Sequence[View]) -> None:
    """Draws the bands of a single pixel over its dates, without values that are not valid; clouds are hollow.

    Args:
      sheet: the figure.
      top: inches from the sheet's upper edge.
      view: the sensor's.
      example: the tile.
      views: all series; the axis spans their dates.
    """
    import matplotlib

    name, bands = view.sensor.name, view.sensor.bands
    sheet.text(MARGIN, top, name, fontsize=11.5, fontweight="bold")
    text = f"{len(view.days)} dates of one pixel: its bands over time"
    sheet.text(_LEFT, top + 0.03, text, fontsize=9, color=FAINT_COLOUR)
    ax = sheet.axes(_LEFT, top + HEADING_INCHES, _AXIS_WIDTH, CURVES_INCHES)
    values = example[name][:, :, 0, 0].astype(np.float64)
    mask = example.get(f"{name}_mask")
    valid = np.ones(values.shape, np.bool_) if mask is None else np.broadcast_to(mask[:, :, 0, 0], values.shape)
    cloudy = view.valid[:, :, 0] & ~view.clear[:, :, 0]
    for number, band in enumerate(bands):
        if not valid[:, number].any():
            continue
        colour = matplotlib.colormaps["turbo"](0.05 + 0.9 * number / max(len(bands) - 1, 1))
        _draw_band(ax, view.days, values[:, number], valid[:, number], cloudy[:, 0], colour, band)
    ax.grid(axis="y")
    _date_axis(ax, views)
    title = "hollow: cloud" if cloudy.any() else None
    ax.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), fontsize=8.5, title=title, title_fontsize=8.5)


def _draw_band(
    ax: Any,
    days: Sequence[datetime.date],
    values: np.ndarray,
    valid: Bool[np.ndarray, "T"],
    cloudy: Bool[np.ndarray, "T"],
    colour: Any,
    label: str,
) -> None:
    dates = np.asarray(days, "datetime64[D]")
    clear, hollow = valid & ~cloudy, valid & cloudy
    ax.plot(dates[clear], values[clear], "o-", color=colour, markersize=3.5, linewidth=1.2, label=label)
    ax.plot(dates[hollow], values[hollow], "o", color=colour, markersize=3.5, markerfacecolor="none", alpha=0.6)


def _date_axis(ax: Any, views: Sequence[View]) -> None:
    """Sets an axis over the dates of all series, with a little room at both ends."""
    from matplotlib import dates

    first = min(view.days[0] for view in views)
    last = max(view.days[-1] for view in views)
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


def draw_strip(sheet: Sheet, top: float, first: int, view: View) -> None:
    """Draws thumbnails of a series with one stretch, from the position `first` on; day and cloud below each."""
    shown = shown_dates(len(view.days))
    of = f"{len(shown)} of " if len(shown) < len(view.days) else ""
    left = MARGIN + first * (_SIDE + GAP)
    sheet.text(left, top, view.sensor.name, fontsize=11.5, fontweight="bold")
    sheet.text(left + 1.0, top + 0.03, f"{of}{len(view.days)} dates, stretched alike", fontsize=9, color=FAINT_COLOUR)
    for date, colours in zip(shown, view.colours(shown), strict=True):
        ax = sheet.axes(left, top + HEADING_INCHES, _SIDE, _SIDE)
        show_image(ax, hatched(colours, view.valid[date], display=round(_SIDE * DOTS_PER_INCH)))
        _caption_of_strips(sheet, left + _SIDE / 2, top + HEADING_INCHES + _SIDE + 0.05, view, date)
        left += _SIDE + GAP


def _caption_of_strips(sheet: Sheet, middle: float, top: float, view: View, date: int) -> None:
    sheet.text(middle, top, f"{view.days[date]:{view.day_format}}", fontsize=9, ha="center")
    sheet.text(middle, top + 0.16, _warning(view, date), fontsize=8, ha="center", color=WARNING_COLOUR)


def _warning(view: View, date: int) -> str:
    """Returns the larger of cloud and invalid pixels of a date, in percent; "" if neither matters."""
    invalid = 100 * (1 - view.valid[date].mean())
    cloud = 0.0 if view.cloud is None else float(view.cloud[date])
    if cloud >= max(PARTLY, invalid):
        return f"cloud {cloud:.0f} %"
    return f"not valid {invalid:.0f} %" if invalid >= INVALID_PERCENT else ""


COLOURS_OF_NUMBERS = "viridis"
LABEL_LEGEND_INCHES = 2.3
_ROOMY = 14  # largest number of classes for a legend in its usual size


def draw_dense(sheet: Sheet, left: float, top: float, side: float, card: DatasetCard, example: Example) -> None:
    """Draws the label "dense" as a panel, and its legend at the right."""
    values = without_margin(card, "dense", example["dense"])
    kind = {"segmentation": "class map", "change": "change map", "regression": "map of numbers"}[card.dense_label]
    draw_titles(sheet, left, top, "label", f"{card.dense_metres:g} m, {kind}")
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    if card.dense_label == "regression":
        _draw_numbers(sheet, ax, left + side + 0.15, top + TITLE_INCHES, side, card, values)
    else:
        show_image(ax, paint(card, values))
        _draw_legend(ax, legend_entries(card, values))
    add_scale_bar(ax, card.extent)


def _draw_legend(ax: Any, entries: Sequence[LegendEntry]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=c, edgecolor=EDGE_COLOUR, linewidth=0.6, label=text) for text, c in entries]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.03, 1.0),
        borderaxespad=0,
        handlelength=1.3,
        handleheight=1.3,
        labelspacing=0.45 if len(entries) <= _ROOMY else 0.1,
        fontsize=9.5 if len(entries) <= _ROOMY else 7.2,
    )


def _draw_numbers(
    sheet: Sheet, ax: Any, left: float, top: float, side: float, card: DatasetCard, values: np.ndarray
) -> None:
    """Draws a regression's map; pixels without a label are hatched."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = np.isfinite(values)
    low, high = np.percentile(values[known], PERCENTILES) if known.any() else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1)
    colours = matplotlib.colormaps[COLOURS_OF_NUMBERS](norm(np.where(known, values, low)))[..., :3]
    show_image(ax, hatched(colours.astype(np.float32), known, display=round(side * DOTS_PER_INCH)))
    bar = sheet.axes(left, top, 0.16, side)
    sheet.figure.colorbar(ScalarMappable(norm, COLOURS_OF_NUMBERS), cax=bar, label=card.label_unit)


HEADER_INCHES = 1.0
LINE_INCHES = 0.22
LINE_CHARACTERS = 125  # of the tile's label
TITLE_CHARACTERS = 95
LARGEST_PANEL = 4.2
PANEL_GAP = 0.28
SPACE = 0.22
LONGITUDE_LATITUDE = "EPSG:4326"


def draw_tile(path: pathlib.Path, card: DatasetCard, split: str, key: str, example: Example) -> None:
    """Draws a tile to a PNG file.

    Args:
      path: the file.
      card: the dataset's facts.
      split: the tile's split, for the title.
      key: the tile's key, for the title.
      example: the tile, as its reader gives it.
    """
    title = f"{card.title}: {key}"
    shown = title if len(title) <= TITLE_CHARACTERS else f"{title[: TITLE_CHARACTERS - 3]}..."
    _Picture(card, example).draw(path, shown, split)


class _Picture:
    """The parts of a tile's figure and their heights."""

    def __init__(self, card: DatasetCard, example: Example) -> None:
        self.card, self.example = card, example
        views = {name: view_of(card, name, example) for name in card.sensors}
        self.panels = {n: v for n, v in views.items() if (not v.is_pixel if v else get_sensor(n).kind != "context")}
        self.lacking = [name for name, view in views.items() if view is None and name not in self.panels]
        self.series = [view for view in views.values() if view is not None and len(view.days) > 1]
        self.curves = [view for view in self.series if view.is_pixel]
        self.strips = in_rows([view for view in self.series if not view.is_pixel])
        self.has_dense = card.dense_label != "none"
        label = tile_label(card, example)
        self.label = textwrap.wrap(f"label of the tile: {label}", LINE_CHARACTERS) if label else []

    @property
    def side(self) -> float:
        """Side of a panel in inches."""
        count = len(self.panels) + self.has_dense
        room = WIDTH - 2 * MARGIN - (count - 1) * PANEL_GAP - LABEL_LEGEND_INCHES * self.has_dense
        return min(LARGEST_PANEL, room / max(count, 1))

    @property
    def header(self) -> float:
        """Height of the titles in inches."""
        return HEADER_INCHES + (LINE_INCHES * len(self.label) + 0.1 if self.label else 0)

    @property
    def height(self) -> float:
        """Height of the sheet in inches."""
        parts = [self.header]
        if self.panels or self.has_dense:
            parts.append(TITLE_INCHES + self.side + SPACE)
        parts += [STRIP_INCHES + SPACE] * len(self.strips)
        parts += [HEADING_INCHES + CURVES_INCHES + AXIS_INCHES] * len(self.curves)
        return sum(parts) + (timeline_inches(self.series) if self.series else 0.1)

    def draw(self, path: pathlib.Path, title: str, split: str) -> None:
        with new_sheet(path, self.height) as sheet:
            self._header(sheet, title, split)
            top = self._panels(sheet, self.header)
            for row in self.strips:
                for first, view in row:
                    draw_strip(sheet, top, first, view)
                top += STRIP_INCHES + SPACE
            for view in self.curves:
                draw_curves(sheet, top, view, self.example, self.series)
                top += HEADING_INCHES + CURVES_INCHES + AXIS_INCHES
            if self.series:
                draw_timeline(sheet, top, self.series)

    def _header(self, sheet: Sheet, title: str, split: str) -> None:
        sheet.text(MARGIN, 0.22, title, fontsize=15, fontweight="bold")
        facts = [f"split {split}", f"{self.card.extent:g} m x {self.card.extent:g} m", place(self.card, self.example)]
        facts += [f"not in this tile: {', '.join(self.lacking)}"] if self.lacking else []
        sheet.text(MARGIN, 0.57, "   |   ".join(fact for fact in facts if fact), fontsize=10, color=FAINT_COLOUR)
        sheet.text(MARGIN, 0.86, "\n".join(self.label), fontsize=11.5)

    def _panels(self, sheet: Sheet, top: float) -> float:
        left, side = MARGIN, self.side
        for name, view in self.panels.items():
            self._panel(sheet, left, top, name, view)
            left += side + PANEL_GAP
        if self.has_dense:
            draw_dense(sheet, left, top, side, self.card, self.example)
        return top + (TITLE_INCHES + side + SPACE if self.panels or self.has_dense else 0)

    def _panel(self, sheet: Sheet, left: float, top: float, name: str, view: View | None) -> None:
        if view is None:
            draw_missing(sheet, left, top, self.side, get_sensor(name))
        else:
            draw_view(sheet, left, top, self.side, view, self.card.extent)


def place(card: DatasetCard, example: Example) -> str:
    """Returns the coordinate system and centre of a tile; "" if the archive has none."""
    if not card.georeferenced or not example["crs"]:
        return ""
    a, b, c, d, e, f = np.asarray(example["transform"], np.float64)
    half = card.side(card.georeferenced) / 2
    x, y = (a + b) * half + c, (d + e) * half + f
    if example["crs"] == LONGITUDE_LATITUDE:
        return f"{abs(y):.5f}° {'S' if y < 0 else 'N'}, {abs(x):.5f}° {'W' if x < 0 else 'E'}"
    return f"{example['crs']}, centre at x {x:,.0f}, y {y:,.0f}"
