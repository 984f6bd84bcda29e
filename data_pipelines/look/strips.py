"""Strips: thumbnails of a series with their dates, short strips side by side."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from data_pipelines.look.sheet import DOTS_PER_INCH, FAINT_COLOUR, MARGIN, WIDTH, Sheet, show_image
from data_pipelines.look.stretch import hatched
from data_pipelines.look.timeline import PARTLY
from data_pipelines.look.views import View

THUMBNAILS = 12
NARROWEST = 4  # thumbnails, whose width a strip's heading needs
GAP = 0.1
HEADING_INCHES = 0.3
DATE_INCHES = 0.36
WARNING_COLOUR = "#b5560b"
INVALID_PERCENT = 1.0  # from which a thumbnail says so

_SIDE = (WIDTH - 2 * MARGIN - (THUMBNAILS - 1) * GAP) / THUMBNAILS
STRIP_INCHES = HEADING_INCHES + _SIDE + DATE_INCHES


def shown_dates(count: int) -> Int[np.ndarray, "n"]:
    """Positions of at most THUMBNAILS dates, evenly over the series, with its first and last."""
    return np.unique(np.linspace(0, count - 1, min(count, THUMBNAILS)).round().astype(np.int64))


def in_rows(views: Sequence[View]) -> list[list[tuple[int, View]]]:
    """Rows of strips in their order, each with the place (in thumbnails) where it starts; between two, one is empty."""
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
    """Thumbnails of a series, all stretched alike, from the place `first` on; day and cloud below each."""
    shown = shown_dates(len(view.days))
    of = f"{len(shown)} of " if len(shown) < len(view.days) else ""
    left = MARGIN + first * (_SIDE + GAP)
    sheet.text(left, top, view.sensor.name, fontsize=11.5, fontweight="bold")
    sheet.text(left + 1.0, top + 0.03, f"{of}{len(view.days)} dates, stretched alike", fontsize=9, color=FAINT_COLOUR)
    for date, colours in zip(shown, view.colours(shown), strict=True):
        ax = sheet.axes(left, top + HEADING_INCHES, _SIDE, _SIDE)
        show_image(ax, hatched(colours, view.valid[date], display=round(_SIDE * DOTS_PER_INCH)))
        _caption(sheet, left + _SIDE / 2, top + HEADING_INCHES + _SIDE + 0.05, view, date)
        left += _SIDE + GAP


def _caption(sheet: Sheet, middle: float, top: float, view: View, date: int) -> None:
    sheet.text(middle, top, f"{view.days[date]:{view.day_format}}", fontsize=9, ha="center")
    sheet.text(middle, top + 0.16, _warning(view, date), fontsize=8, ha="center", color=WARNING_COLOUR)


def _warning(view: View, date: int) -> str:
    """What is wrong with most of a date."""
    invalid = 100 * (1 - view.valid[date].mean())
    cloud = 0.0 if view.cloud is None else float(view.cloud[date])
    if cloud >= max(PARTLY, invalid):
        return f"cloud {cloud:.0f} %"
    return f"not valid {invalid:.0f} %" if invalid >= INVALID_PERCENT else ""
