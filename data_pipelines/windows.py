"""Where a sample lies in its tile and how it is turned: one view for all arrays of the tile, in metres.

A stored array may reach beyond the tile by a margin, the same on all sides; what is cut is counted from the tile.
"""

import dataclasses
import fractions
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Shaped

from anysat_jax.sensors import get_sensor, whole_number
from data_pipelines.card import DatasetCard, Example

Corner = tuple[float, float]
"""Metres from a tile's upper and from its left edge to where a part of it begins."""
Cut = tuple[Any, ...]
"""Index of some rows and columns of an array."""
SQUARE = 128  # pixels


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is stored of a part of a tile.

    Attributes:
      example: its arrays.
      corner: where it begins.
      extent: its side in metres.
    """

    example: Example
    corner: Corner
    extent: float


def whole_tile(card: DatasetCard, example: Example) -> Piece:
    """The only piece of a tile that is stored as one."""
    return Piece(example, (0.0, 0.0), card.extent)


@dataclasses.dataclass(frozen=True)
class Turn:
    """A symmetry of the square: perhaps mirrored left to right, then turned by quarters."""

    mirrored: bool = False
    quarters: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Turn":
        """One of the eight."""
        return cls(bool(rng.integers(2)), int(rng.integers(4)))

    def __call__(self, array: Shaped[np.ndarray, "*axes H W"]) -> Shaped[np.ndarray, "*axes h w"]:
        """A view of the array, turned in its last two axes."""
        if self.mirrored:
            array = array[..., ::-1]
        return np.rot90(array, self.quarters, axes=(-2, -1)) if self.quarters else array

    def copied(self, array: Shaped[np.ndarray, "*axes H W"]) -> Shaped[np.ndarray, "*axes h w"]:
        """As the call; where rows become columns a copy, made in squares that fit the cache: three times as fast."""
        view = self(array)
        if self.quarters % 2 == 0:
            return view
        copy = np.empty(view.shape, view.dtype)
        height, width = view.shape[-2:]
        for top, left in itertools.product(range(0, height, SQUARE), range(0, width, SQUARE)):
            square = (..., slice(top, top + SQUARE), slice(left, left + SQUARE))
            copy[square] = view[square]
        return copy


@dataclasses.dataclass(frozen=True)
class View:
    """What a sample shows of its tile.

    Attributes:
      extent: side of the window in metres.
      corner: where it starts.
      turn: how it is turned once it is cut.
    """

    extent: float
    corner: Corner = (0.0, 0.0)
    turn: Turn = Turn()

    def window(
        self,
        card: DatasetCard,
        name: str,
        pieces: Sequence[Piece],
        suffix: str = "",
        dates: Int[np.ndarray, "t"] | None = None,
    ) -> Shaped[np.ndarray, "*axes S S"]:
        """What the window shows of a stored array, not turned yet: of one piece a view, of several a copy.

        Args:
          card: the dataset's facts.
          name: a sensor's, or "dense"; the one pixel of a context sensor is every window's.
          pieces: of the tile, that cover the window.
          suffix: "_mask" or "_cloud" of the sensor; "" for its values.
          dates: which dates; None: all, or there are none.
        """
        if name != "dense" and get_sensor(name).kind == "context":
            return _take(pieces[0].example[name + suffix], dates)
        cuts = [self._meet(card, name, piece) for piece in pieces]
        parts = [_take(piece.example[name + suffix][cut], dates) for piece, (cut, _) in zip(pieces, cuts)]
        if len(parts) == 1:
            return parts[0]
        side = round(self.extent / pixel_metres(card, name))
        window = np.empty((*parts[0].shape[:-2], side, side), parts[0].dtype)
        for part, (_, place) in zip(parts, cuts):
            window[place] = part
        return window

    def _meet(self, card: DatasetCard, name: str, piece: Piece) -> tuple[Cut, Cut]:
        """The ground that window and piece have in common: the cut of the stored array, and its place in the window."""
        metres, margin = pixel_metres(card, name), margin_pixels(card, name)
        cut, place = [], []
        for start, begin in zip(self.corner, piece.corner):
            first, last = max(start, begin), min(start + self.extent, begin + piece.extent)
            length = round((last - first) / metres)
            cut.append(slice(offset := margin + round((first - begin) / metres), offset + length))
            place.append(slice(offset := round((first - start) / metres), offset + length))
        return (..., *cut), (..., *place)


def _take(array: Shaped[np.ndarray, "T *rest"], dates: Int[np.ndarray, "t"] | None) -> Shaped[np.ndarray, "t *rest"]:
    return array if dates is None or len(dates) == len(array) else array[dates]


def pixel_metres(card: DatasetCard, key: str) -> float:
    """Side of a pixel of a stored array in metres: a sensor's, or the label "dense"."""
    return card.dense_metres if key == "dense" else get_sensor(key).metres_per_pixel


def margin_pixels(card: DatasetCard, key: str) -> int:
    """Pixels on each side by which a stored array reaches beyond the tile."""
    return (card.side(key) - round(card.extent / pixel_metres(card, key))) // 2


def without_margin(
    card: DatasetCard, key: str, array: Shaped[np.ndarray, "*axes h w"]
) -> Shaped[np.ndarray, "*axes H W"]:
    """What lies in the tile of a stored array: of a sensor's values or mask, or of the label "dense"."""
    if key != "dense" and get_sensor(key).kind == "context":
        return array
    inner = slice(first := margin_pixels(card, key), first + round(card.extent / pixel_metres(card, key)))
    return array[..., inner, inner]


def alignment(card: DatasetCard) -> float:
    """Metres between places where pixels of all of a tile's arrays begin: the coarsest pixel, mostly."""
    keys = [name for name in card.sensors if get_sensor(name).kind != "context"]
    keys += ["dense"] if card.dense_label != "none" else []
    sides = [fractions.Fraction(pixel_metres(card, key)).limit_denominator(1000) for key in keys]
    numerators, denominators = [side.numerator for side in sides], [side.denominator for side in sides]
    return math.lcm(*numerators) / math.gcd(*denominators)


def check_extent(card: DatasetCard, extent: float) -> float:
    """`extent` in metres, if the dataset's tiles can be cut into windows of it.

    Raises:
      ValueError: they cannot; the message says why.
    """
    step = alignment(card)
    if not 0 < extent <= card.extent or whole_number(card.extent / extent) is None:
        raise ValueError(f"{extent:g} m; tiles of {card.extent:g} m are cut into a whole number of windows a side")
    if whole_number(extent / step) is None:
        raise ValueError(f"{extent:g} m; windows are whole multiples of {step:g} m, where pixels of all arrays begin")
    return float(extent)


def all_corners(card: DatasetCard, extent: float) -> list[Corner]:
    """The windows that cover a tile without overlap, row by row."""
    starts = [number * extent for number in range(round(card.extent / extent))]
    return [(top, left) for top in starts for left in starts]


def draw_view(card: DatasetCard, extent: float, augment: bool, rng: np.random.Generator) -> View:
    """A window anywhere in the tile, aligned with the coarsest pixel; turned if `augment`.

    Windows made of whole blocks lie on blocks, so that nothing else is read.
    """
    corner = _draw_corner(card, extent, rng) if extent < card.extent else (0.0, 0.0)
    return View(extent, corner, Turn.draw(rng) if augment else Turn())


def _draw_corner(card: DatasetCard, extent: float, rng: np.random.Generator) -> Corner:
    block = card.extent / card.blocks
    step = block if card.blocks > 1 and whole_number(extent / block) else alignment(card)
    places = round((card.extent - extent) / step) + 1
    return int(rng.integers(places)) * step, int(rng.integers(places)) * step


def block_card(card: DatasetCard) -> DatasetCard:
    """The facts of a block as if it were a tile."""
    return card if card.blocks == 1 else dataclasses.replace(card, extent=card.extent / card.blocks, blocks=1)


def covering(card: DatasetCard, corner: Corner, extent: float) -> list[int]:
    """The blocks that a window of `extent` metres lies in, by their numbers in the tile, row by row."""
    side, rounding = card.extent / card.blocks, 1e-6
    rows, columns = (
        range(int((start + rounding) // side), int((start + extent - rounding) // side) + 1) for start in corner
    )
    return [row * card.blocks + column for row in rows for column in columns]


def as_piece(card: DatasetCard, number: int, block: Example) -> Piece:
    """A block with its place in the tile."""
    side = card.extent / card.blocks
    row, column = divmod(number, card.blocks)
    return Piece(block, (row * side, column * side), side)


def split_example(card: DatasetCard, example: Example) -> list[Example]:
    """All blocks of a complete example, in the order in which they are written."""
    if card.blocks == 1:
        return [example]
    sides, blocks = _sides(card, example), []
    for row, column in itertools.product(range(card.blocks), repeat=2):
        cuts = {key: (slice(row * s, (row + 1) * s), slice(column * s, (column + 1) * s)) for key, s in sides.items()}
        blocks.append(example | {key: example[key][..., *cut] for key, cut in cuts.items()})
    return blocks


def join_blocks(card: DatasetCard, blocks: Sequence[Example]) -> Example:
    """The example that all its blocks make up."""
    if card.blocks == 1:
        return blocks[0]
    keys = _sides(card, blocks[0])
    return blocks[0] | {key: _join([block[key] for block in blocks], card.blocks) for key in keys}


def _join(arrays: Sequence[Shaped[np.ndarray, "*axes h w"]], width: int) -> Shaped[np.ndarray, "*axes H W"]:
    *axes, height, side = arrays[0].shape
    joined = np.empty((*axes, height * width, side * width), arrays[0].dtype)
    for number, array in enumerate(arrays):
        top, left = number // width * height, number % width * side
        joined[..., top : top + height, left : left + side] = array
    return joined


def _sides(card: DatasetCard, example: Example) -> dict[str, int]:
    """Arrays that are cut, and pixels along the side of their blocks."""
    sensors = [name for name in card.sensors if get_sensor(name).kind != "context"]
    owners = {key: name for name in sensors for key in (name, f"{name}_mask", f"{name}_cloud")} | {"dense": "dense"}
    metres = card.extent / card.blocks
    return {key: round(metres / pixel_metres(card, name)) for key, name in owners.items() if key in example}


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
