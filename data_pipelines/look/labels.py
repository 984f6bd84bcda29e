"""The labels: class maps in their official colours with a legend, regressions with a colour bar, and the tile's own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Num

from data_pipelines.card import DatasetCard, Example
from data_pipelines.labels import in_list
from data_pipelines.look.panels import TITLE_INCHES, add_scale_bar, draw_titles
from data_pipelines.look.sheet import DOTS_PER_INCH, EDGE_COLOUR, Sheet, show_image
from data_pipelines.look.stretch import PERCENTILES, hatched
from data_pipelines.look.views import centre

NO_LABEL = "#ffffff"
COLOURS_OF_NUMBERS = "viridis"
LEGEND_INCHES = 2.3
_ROOMY = 14  # classes that a legend shows in its usual size

LegendEntry = tuple[str, str]
"""Text and colour."""


def draw_dense(sheet: Sheet, left: float, top: float, side: float, card: DatasetCard, example: Example) -> None:
    """The label "dense" as a panel, and its legend at the right."""
    values = centre(card, "dense", example["dense"])
    kind = {"segmentation": "class map", "change": "change map", "regression": "map of numbers"}[card.dense_label]
    draw_titles(sheet, left, top, "label", f"{card.dense_metres:g} m, {kind}")
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    if card.dense_label == "regression":
        _draw_numbers(sheet, ax, left + side + 0.15, top + TITLE_INCHES, side, card, values)
    else:
        show_image(ax, paint(card, values))
        _draw_legend(ax, legend_entries(card, values))
    add_scale_bar(ax, card.extent)


def paint(card: DatasetCard, classes: Num[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """A class map in the card's colours; what has no label is white."""
    from matplotlib.colors import to_rgb

    palette = np.asarray([to_rgb(colour) for colour in (*card.dense_colours, NO_LABEL)], np.float32)
    return palette[np.where(_known(card, classes), classes, len(palette) - 1)]


def _known(card: DatasetCard, classes: np.ndarray) -> np.ndarray:
    return (classes >= 0) & (classes < len(card.dense_classes)) & (classes != card.ignore_label)


def legend_entries(card: DatasetCard, classes: Num[np.ndarray, "h w"]) -> list[LegendEntry]:
    """The classes that are on the map with their shares, in the card's order, then what has no label."""
    known = _known(card, classes)
    counts = np.bincount(classes[known].astype(np.int64), minlength=len(card.dense_classes))
    entries = [
        (f"{card.dense_classes[number]}, {_percent(counts[number] / classes.size)}", card.dense_colours[number])
        for number in np.flatnonzero(counts)
    ]
    return entries if known.all() else [*entries, (f"no label, {_percent(1 - known.mean())}", NO_LABEL)]


def _percent(share: float) -> str:
    if 0.995 <= share < 1:
        return "> 99%"
    return f"{share:.0%}" if share >= 0.01 else "< 1%"


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
    """A regression's map; what has no label is hatched."""
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


def tile_label(card: DatasetCard, example: Example) -> str:
    """The label "tile" in words; "" where the dataset has none."""
    if card.tile_label == "none":
        return ""
    if card.tile_label == "regression":
        return f"{float(example['tile']):.4g} {card.label_unit}"
    if card.tile_label == "class":
        return card.tile_classes[int(example["tile"])]
    names = [in_list(card.tile_classes[number]) for number in np.flatnonzero(example["tile"])]
    return ", ".join(names) if names else "none of the classes"
