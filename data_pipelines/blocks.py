"""Large tiles as blocks: each a record of its own, so that a window of a tile is read without the rest.

A record is read whole, and gigabytes a second are reached only while records are small. A card's `blocks` says into how
many blocks a side its tiles are cut. What has no place in the tile, such as dates, stands in every block.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.crops import Corner, Piece, pixel_metres


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
