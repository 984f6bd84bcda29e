"""One tile on one sheet: panels of all sensors and the label, strips of dates, a timeline."""

import pathlib
import textwrap

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.look.labels import LEGEND_INCHES, draw_dense, tile_label
from data_pipelines.look.panels import TITLE_INCHES, draw_missing, draw_view
from data_pipelines.look.sheet import FAINT_COLOUR, MARGIN, WIDTH, Sheet, new_sheet
from data_pipelines.look.strips import STRIP_INCHES, draw_strip, in_rows
from data_pipelines.look.timeline import (
    AXIS_INCHES,
    CURVES_INCHES,
    HEADING_INCHES,
    draw_curves,
    draw_timeline,
    timeline_inches,
)
from data_pipelines.look.views import View, view_of

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
    """What is on the sheet, and how high each part is."""

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
        """Inches of a panel's side."""
        count = len(self.panels) + self.has_dense
        room = WIDTH - 2 * MARGIN - (count - 1) * PANEL_GAP - LEGEND_INCHES * self.has_dense
        return min(LARGEST_PANEL, room / max(count, 1))

    @property
    def header(self) -> float:
        """Inches of the titles."""
        return HEADER_INCHES + (LINE_INCHES * len(self.label) + 0.1 if self.label else 0)

    @property
    def height(self) -> float:
        """Inches of the sheet."""
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
    """Coordinate system and centre of a tile; "" where the archive tells none."""
    if not card.georeferenced or not example["crs"]:
        return ""
    a, b, c, d, e, f = np.asarray(example["transform"], np.float64)
    half = card.side(card.georeferenced) / 2
    x, y = (a + b) * half + c, (d + e) * half + f
    if example["crs"] == LONGITUDE_LATITUDE:
        return f"{abs(y):.5f}° {'S' if y < 0 else 'N'}, {abs(x):.5f}° {'W' if x < 0 else 'E'}"
    return f"{example['crs']}, centre at x {x:,.0f}, y {y:,.0f}"
