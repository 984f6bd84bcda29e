"""Windows of tiles: where a sample lies in its tile, its rotation, the stored blocks that it covers, and its labels.

All places are in metres from a tile's upper left corner, so that one window serves all arrays of the tile. A stored
array may reach beyond the tile by a margin, the same on all sides; places are counted from the tile, not the margin.
"""

import dataclasses
import fractions
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from anysat_jax.sensors import get_sensor, whole_number
from data_pipelines.card import DatasetCard, Example

IGNORE = -1  # in a batch's class maps, whatever value means "no label" on disk
CACHE_SQUARE = 128  # pixels

Offset = tuple[float, float]
"""Metres from a tile's upper and from its left edge to where a part of it begins."""
Cut = tuple[Any, ...]
"""Index of some rows and columns of an array."""
Dates = Int[np.ndarray, "t"] | None
"""Positions of some dates of a series; None: all, or there are none."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A stored part of a tile, `extent` metres a side, that begins at `offset`."""

    example: Example
    extent: float
    offset: Offset = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Dihedral:
    """One of the eight symmetries of the square: perhaps mirrored left to right, then rotated by quarters."""

    mirrored: bool = False
    quarters: int = 0

    def __call__(self, array: Shaped[np.ndarray, "*axes H W"]) -> Shaped[np.ndarray, "*axes h w"]:
        """Returns a view of the array, transformed in its last two axes."""
        if self.mirrored:
            array = array[..., ::-1]
        return np.rot90(array, self.quarters, axes=(-2, -1)) if self.quarters else array

    def copied(self, array: Shaped[np.ndarray, "*axes H W"]) -> Shaped[np.ndarray, "*axes h w"]:
        """Returns the same as the call; a copy where rows become columns."""
        view = self(array)
        if self.quarters % 2 == 0:
            return view
        # Such a view is read along its longest stride, a cache line for each value. Copied square by square, of which
        # rows and columns fit the cache, it is three times as fast to read.
        copy = np.empty(view.shape, view.dtype)
        rows, columns = (range(0, side, CACHE_SQUARE) for side in view.shape[-2:])
        for top, left in itertools.product(rows, columns):
            square = (..., slice(top, top + CACHE_SQUARE), slice(left, left + CACHE_SQUARE))
            copy[square] = view[square]
        return copy


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a tile that a sample shows, `extent` metres a side, from `offset` on; `dihedral` is applied last."""

    extent: float
    offset: Offset = (0.0, 0.0)
    dihedral: Dihedral = Dihedral()

    def cut(
        self, card: DatasetCard, name: str, blocks: Sequence[Block], suffix: str = "", dates: Dates = None
    ) -> Shaped[np.ndarray, "*axes S S"]:
        """Cuts the window out of a stored array, not transformed yet: of one block a view, of several a copy.

        `name` is a sensor's, with the `suffix` "_mask", "_cloud" or, for its values, "", or "dense"; the one pixel of a
        context sensor belongs to every window. `blocks` are those of the tile that cover the window.
        """
        if name != "dense" and get_sensor(name).kind == "context":
            return _take_dates(blocks[0].example[name + suffix], dates)
        cuts = [self._intersect(card, name, block) for block in blocks]
        parts = [_take_dates(block.example[name + suffix][cut], dates) for block, (cut, _) in zip(blocks, cuts)]
        if len(parts) == 1:
            return parts[0]
        side = round(self.extent / pixel_metres(card, name))
        window = np.empty((*parts[0].shape[:-2], side, side), parts[0].dtype)
        for part, (_, place) in zip(parts, cuts):
            window[place] = part
        return window

    def _intersect(self, card: DatasetCard, name: str, block: Block) -> tuple[Cut, Cut]:
        """Returns the intersection of window and block: the cut of the stored array, and its place in the window."""
        metres, margin = pixel_metres(card, name), margin_pixels(card, name)
        cut, place = [], []
        for start, begin in zip(self.offset, block.offset):
            first, last = max(start, begin), min(start + self.extent, begin + block.extent)
            # Rounded once: start and stop of their own could differ by a pixel between blocks side by side.
            length = round((last - first) / metres)
            cut.append(slice(pixel := margin + round((first - begin) / metres), pixel + length))
            place.append(slice(pixel := round((first - start) / metres), pixel + length))
        return (..., *cut), (..., *place)


def _take_dates(array: Shaped[np.ndarray, "T *rest"], dates: Dates) -> Shaped[np.ndarray, "t *rest"]:
    # Without a choice of dates a view is enough: an index would copy the whole series.
    return array if dates is None or len(dates) == len(array) else array[dates]


def pixel_metres(card: DatasetCard, key: str) -> float:
    """Returns the side of a pixel of a stored array in metres: a sensor's, or the label "dense"."""
    return card.dense_metres if key == "dense" else get_sensor(key).metres_per_pixel


def margin_pixels(card: DatasetCard, key: str) -> int:
    """Returns the pixels on each side by which a stored array reaches beyond the tile."""
    return (card.side(key) - round(card.extent / pixel_metres(card, key))) // 2


def without_margin(
    card: DatasetCard, key: str, array: Shaped[np.ndarray, "*axes h w"]
) -> Shaped[np.ndarray, "*axes H W"]:
    """Returns the part of a stored array that lies in the tile: of a sensor's values or mask, or of "dense"."""
    if key != "dense" and get_sensor(key).kind == "context":
        return array
    inner = slice(first := margin_pixels(card, key), first + round(card.extent / pixel_metres(card, key)))
    return array[..., inner, inner]


def alignment(card: DatasetCard) -> float:
    """Returns the metres between places where pixels of all of a tile's arrays begin: mostly the coarsest pixel."""
    keys = [name for name in card.sensors if get_sensor(name).kind != "context"]
    keys += ["dense"] if card.dense_label != "none" else []
    # Pixels of 0.2 m have no exact float, whose common multiple would be astronomical.
    sides = [fractions.Fraction(pixel_metres(card, key)).limit_denominator(1000) for key in keys]
    return math.lcm(*(side.numerator for side in sides)) / math.gcd(*(side.denominator for side in sides))


def check_extent(card: DatasetCard, extent: float) -> float:
    """Returns `extent` in metres if the dataset's tiles can be cut into windows of it.

    Raises:
      ValueError: they cannot; the message gives the reason.
    """
    step = alignment(card)
    if not 0 < extent <= card.extent or whole_number(card.extent / extent) is None:
        raise ValueError(f"{extent:g} m; tiles of {card.extent:g} m are cut into a whole number of windows a side")
    if whole_number(extent / step) is None:
        raise ValueError(f"{extent:g} m; windows are whole multiples of {step:g} m, where pixels of all arrays begin")
    return float(extent)


def window_offsets(card: DatasetCard, extent: float) -> list[Offset]:
    """Returns the offsets of the windows that cover a tile without overlap, row by row."""
    starts = [number * extent for number in range(round(card.extent / extent))]
    return list(itertools.product(starts, starts))


def sample_window(card: DatasetCard, extent: float, augment: bool, rng: np.random.Generator) -> Window:
    """Draws a window anywhere in the tile, aligned with the coarsest pixel; flipped and rotated if `augment`."""
    offset = (0.0, 0.0)
    if extent < card.extent:
        block = card.extent / card.blocks
        # Windows made of whole blocks begin at blocks, so that no other block is read.
        step = block if card.blocks > 1 and whole_number(extent / block) else alignment(card)
        places = round((card.extent - extent) / step) + 1
        offset = (int(rng.integers(places)) * step, int(rng.integers(places)) * step)
    dihedral = Dihedral(bool(rng.integers(2)), int(rng.integers(4))) if augment else Dihedral()
    return Window(extent, offset, dihedral)


def block_card(card: DatasetCard) -> DatasetCard:
    """Returns the facts of a block as if it were a tile."""
    return card if card.blocks == 1 else dataclasses.replace(card, extent=card.extent / card.blocks, blocks=1)


def covering_blocks(card: DatasetCard, offset: Offset, extent: float) -> list[int]:
    """Returns the numbers of the blocks that a window of `extent` metres intersects."""
    # A window that ends where a block begins does not intersect it, whatever the last bit of the sum.
    side, rounding = card.extent / card.blocks, 1e-6
    rows, columns = (
        range(int((start + rounding) // side), int((start + extent - rounding) // side) + 1) for start in offset
    )
    return [row * card.blocks + column for row in rows for column in columns]


def split_example(card: DatasetCard, example: Example) -> list[Example]:
    """Cuts a complete example into its blocks, in the order in which they are written."""
    if card.blocks == 1:
        return [example]
    sides, blocks = _block_sides(card, example), []
    for row, column in itertools.product(range(card.blocks), repeat=2):
        cuts = {key: (slice(row * s, (row + 1) * s), slice(column * s, (column + 1) * s)) for key, s in sides.items()}
        blocks.append(example | {key: example[key][..., *cut] for key, cut in cuts.items()})
    return blocks


def join_blocks(card: DatasetCard, blocks: Sequence[Example]) -> Example:
    """Returns the example that all its blocks make up."""
    if card.blocks == 1:
        return blocks[0]
    joined = dict(blocks[0])
    for key, side in _block_sides(card, blocks[0]).items():
        *axes, _, _ = blocks[0][key].shape
        joined[key] = np.empty((*axes, side * card.blocks, side * card.blocks), blocks[0][key].dtype)
        for number, block in enumerate(blocks):
            top, left = number // card.blocks * side, number % card.blocks * side
            joined[key][..., top : top + side, left : left + side] = block[key]
    return joined


def _block_sides(card: DatasetCard, example: Example) -> dict[str, int]:
    """Returns the pixels along a block's side of each array that is cut."""
    sensors = [name for name in card.sensors if get_sensor(name).kind != "context"]
    owners = {key: name for name in sensors for key in (name, f"{name}_mask", f"{name}_cloud")} | {"dense": "dense"}
    metres = card.extent / card.blocks
    return {key: round(metres / pixel_metres(card, name)) for key, name in owners.items() if key in example}


def in_list(name: str) -> str:
    """Returns a class name for a list with commas: in quotes if it has commas itself."""
    return f'"{name}"' if "," in name else name


def empty_labels(card: DatasetCard, batch_size: int, extent: float) -> dict[str, np.ndarray]:
    """Returns arrays for the labels of samples of `extent` metres, those that the card has.

    "tile": (B,) int32 class, (B, K) float32 multi-hot, or (B,) float32; "dense": (B, h, w) int32 classes, or float32.
    """
    labels: dict[str, np.ndarray] = {}
    if card.tile_label != "none":
        classes = (len(card.tile_classes),) if card.tile_label == "multi_label" else ()
        labels["tile"] = np.zeros((batch_size, *classes), np.int32 if card.tile_label == "class" else np.float32)
    if card.dense_label != "none":
        side = round(extent / card.dense_metres)
        dtype = np.float32 if card.dense_label == "regression" else np.int32
        labels["dense"] = np.zeros((batch_size, side, side), dtype)
    return labels


def write_labels(
    card: DatasetCard, labels: dict[str, np.ndarray], row: int, blocks: Sequence[Block], window: Window
) -> None:
    """Writes a tile's labels into a row of a batch's: no label is `IGNORE` in a class map and NaN in a regression.

    The multi-label of a part of a tile is made of the classes that its own map shows.
    """
    if "dense" in labels:
        labels["dense"][row] = window.dihedral(window.cut(card, "dense", blocks))
    if card.dense_label in ("segmentation", "change"):
        labels["dense"][row][labels["dense"][row] == card.ignore_label] = IGNORE
    if "tile" in labels and window.extent < card.extent:
        dense = labels["dense"][row]
        shown = {card.dense_classes[number] for number in np.unique(dense[dense != IGNORE])}
        labels["tile"][row] = [name in shown for name in card.tile_classes]
    elif "tile" in labels:
        labels["tile"][row] = blocks[0].example["tile"]
