"""Training with few labels: a fixed share of a dataset's training tiles, each smaller share within the larger ones."""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32


def chosen_tiles(name: str, size: int, fraction: float, seed: int) -> Int32[np.ndarray, "n"]:
    """Positions of the tiles that training uses, in rising order; at least one.

    All tiles are put in an order that depends on name, size and seed alone, and the first ones are taken: so 1 percent
    lies within 10 percent, and every process takes the same.

    Args:
      name: of the dataset.
      size: tiles that its training split has, at least one.
      fraction: share of them, above 0, at most 1.
      seed: another seed takes others.
    """
    order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(size)
    return np.sort(order[: max(1, round(fraction * size))]).astype(np.int32)


def check_tiles(tiles: Sequence[int], size: int) -> Int32[np.ndarray, "n"]:
    """`tiles` as positions in a split, if each is one and none comes twice.

    Raises:
      ValueError: they are not.
    """
    positions = np.asarray(tiles, np.int64)
    wrong = positions[(positions < 0) | (positions >= size)]
    if wrong.size or len(np.unique(positions)) < len(positions):
        what = f"{wrong[0]} is none" if wrong.size else "one comes twice"
        raise ValueError(f"tiles are to be different positions in a split of {size}; {what}")
    return positions.astype(np.int32)
