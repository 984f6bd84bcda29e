"""Labels of a batch: of the tile, and of its pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from data_pipelines.card import DatasetCard
from data_pipelines.crops import Piece, View

IGNORE = -1  # in a batch's class maps, whatever stands for no label on disk


def in_list(name: str) -> str:
    """A class name as it stands in a list with commas: in quotes if it has commas itself."""
    return f'"{name}"' if "," in name else name


def empty_labels(card: DatasetCard, batch_size: int, extent: float) -> dict[str, np.ndarray]:
    """Arrays for the labels of samples of `extent` metres.

    Returns:
      "tile": (B,) int32 class, (B, K) float32 multi-hot, or (B,) float32; "dense": (B, h, w) int32 classes, or float32;
      each if the card has such labels.
    """
    labels: dict[str, np.ndarray] = {}
    if card.tile_label != "none":
        several = (len(card.tile_classes),) if card.tile_label == "multi_label" else ()
        labels["tile"] = np.zeros((batch_size, *several), np.int32 if card.tile_label == "class" else np.float32)
    if card.dense_label != "none":
        side = round(extent / card.dense_metres)
        dtype = np.float32 if card.dense_label == "regression" else np.int32
        labels["dense"] = np.zeros((batch_size, side, side), dtype)
    return labels


def write_labels(
    card: DatasetCard, labels: dict[str, np.ndarray], row: int, pieces: Sequence[Piece], view: View
) -> None:
    """Writes a tile's labels into a row of a batch's: a class map has `IGNORE`, a regression NaN for no label.

    The multi-label of a part of a tile is made of the classes that its own map shows.
    """
    if "dense" in labels:
        labels["dense"][row] = view.turn(view.window(card, "dense", pieces))
    if card.dense_label in ("segmentation", "change"):
        labels["dense"][row][labels["dense"][row] == card.ignore_label] = IGNORE
    if "tile" in labels:
        part = view.extent < card.extent
        labels["tile"][row] = _classes_in(card, labels["dense"][row]) if part else pieces[0].example["tile"]


def _classes_in(card: DatasetCard, dense: Int32[np.ndarray, "h w"]) -> list[bool]:
    shown = {card.dense_classes[number] for number in np.unique(dense[dense != IGNORE])}
    return [name in shown for name in card.tile_classes]
