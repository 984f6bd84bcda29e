"""Large tiles as blocks: each a record of its own, so that a window of a tile is read without the rest.

A record is read whole, and a gigabyte a second is reached only while records are small. A card's `blocks` says into how
many blocks a side its tiles are cut. What has no place in the tile, such as dates, stands in every block.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Shaped

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.crops import Corner, pixel_metres


@dataclasses.dataclass(frozen=True)
class Span:
    """Neighbouring blocks of a tile: those of some rows and columns.

    Attributes:
      rows, columns: numbers of the first and of the one after the last.
    """

    rows: tuple[int, int] = (0, 1)
    columns: tuple[int, int] = (0, 1)

    def numbers(self, card: DatasetCard) -> list[int]:
        """The blocks by their numbers in the tile, row by row."""
        return [row * card.blocks + column for row in range(*self.rows) for column in range(*self.columns)]

    def corner(self, card: DatasetCard) -> Corner:
        """Where the blocks begin, in metres from the tile's upper and left edge."""
        side = card.extent / card.blocks
        return self.rows[0] * side, self.columns[0] * side


def whole(card: DatasetCard) -> Span:
    """All blocks of a tile."""
    return Span((0, card.blocks), (0, card.blocks))


def covering(card: DatasetCard, corner: Corner, extent: float) -> Span:
    """The blocks that a window of `extent` metres lies in."""
    side, rounding = card.extent / card.blocks, 1e-6
    first, last = ([int(place // side) for place in places] for places in _ends(corner, extent, rounding))
    return Span((first[0], last[0] + 1), (first[1], last[1] + 1))


def _ends(corner: Corner, extent: float, rounding: float) -> tuple[list[float], list[float]]:
    return [start + rounding for start in corner], [start + extent - rounding for start in corner]


def block_card(card: DatasetCard) -> DatasetCard:
    """The facts of a block as if it were a tile."""
    return card if card.blocks == 1 else dataclasses.replace(card, extent=card.extent / card.blocks, blocks=1)


def part_of(card: DatasetCard, example: Example, span: Span) -> Example:
    """Some blocks of a complete example, as views."""
    part = dict(example)
    for key, side in _sides(card, example).items():
        rows, columns = (slice(first * side, last * side) for first, last in (span.rows, span.columns))
        part[key] = example[key][..., rows, columns]
    return part


def split_example(card: DatasetCard, example: Example) -> list[Example]:
    """All blocks of a complete example, in the order in which they are written."""
    if card.blocks == 1:
        return [example]
    places = itertools.product(range(card.blocks), repeat=2)
    return [part_of(card, example, Span((row, row + 1), (column, column + 1))) for row, column in places]


def join_blocks(card: DatasetCard, blocks: Sequence[Example], span: Span) -> Example:
    """The part of a tile that the blocks of a span make up."""
    if len(blocks) == 1:
        return blocks[0]
    example, width = dict(blocks[0]), span.columns[1] - span.columns[0]
    for key in _sides(card, example):
        example[key] = _join([block[key] for block in blocks], width)
    return example


def _join(arrays: Sequence[Shaped[np.ndarray, "*axes h w"]], width: int) -> Shaped[np.ndarray, "*axes H W"]:
    *axes, height, side = arrays[0].shape
    joined = np.empty((*axes, height * (len(arrays) // width), side * width), arrays[0].dtype)
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


def read_part(card: DatasetCard, index: int, span: Span, read: Callable[[Sequence[int]], Sequence[Example]]) -> Example:
    """A part of a tile out of its records.

    Args:
      card: the dataset's facts.
      index: the tile's position.
      span: which blocks.
      read: gives the records at positions.
    """
    first = index * card.blocks**2
    return join_blocks(card, read([first + number for number in span.numbers(card)]), span)
