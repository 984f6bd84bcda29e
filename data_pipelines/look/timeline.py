"""All dates of all series on one axis, and the bands of single pixels as lines over it."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from data_pipelines.card import Example
from data_pipelines.look.sheet import FAINT_COLOUR, MARGIN, WIDTH, Sheet
from data_pipelines.look.views import CLOUDY, View

HEADING_INCHES = 0.3
NAMES_INCHES = 1.0
LEGEND_INCHES = 0.75
CURVES_INCHES = 2.1
ROW_INCHES = 0.3
AXIS_INCHES = 0.55
PARTLY = 10.0  # percent of cloud, from which a date is partly cloudy
CLEAR_COLOUR, PARTLY_COLOUR, CLOUDY_COLOUR = "#1b6ca8", "#e08a1e", "#b0b0b0"
UNKNOWN_COLOUR = "#444444"

_LEFT = MARGIN + NAMES_INCHES
_AXIS_WIDTH = WIDTH - _LEFT - MARGIN - LEGEND_INCHES


def cloud_colour(percent: float | None) -> str:
    """The colour that marks a date: clear, partly cloudy, cloudy, or not known."""
    if percent is None:
        return UNKNOWN_COLOUR
    if percent < PARTLY:
        return CLEAR_COLOUR
    return PARTLY_COLOUR if percent < CLOUDY else CLOUDY_COLOUR


def timeline_inches(views: Sequence[View]) -> float:
    """Height that a timeline of these series takes."""
    return HEADING_INCHES + ROW_INCHES * len(views) + AXIS_INCHES


def draw_timeline(sheet: Sheet, top: float, views: Sequence[View]) -> None:
    """Every date of every series as a stroke, coloured by cloud."""
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
    """The bands of a single pixel over its dates; values that are not valid are left out, clouds are hollow.

    Args:
      sheet: where to draw.
      top: inches from the sheet's upper edge.
      view: the sensor's.
      example: the tile.
      views: all series, whose dates the axis spans.
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
    """An axis over the dates of all series, with a little room at both ends."""
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
