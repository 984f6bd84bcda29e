"""Leaks between splits: held-out tiles with the bytes, or on the ground, of a training tile."""

import collections
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example

LEAST_OVERLAP = 0.01  # of the smaller tile; neighbours share a line of pixels at most
_IDENTITY = (1, 0, 0, 0, 1, 0)  # of a raster that has a coordinate system and no position in it


class Footprint(NamedTuple):
    """Key, digest and bounds of a tile, by which tiles are compared.

    Attributes:
      tile: its key.
      digest: of the values of its sensors.
      crs: of the bounds; "" where the place is not known.
      bounds: west, south, east, north of its extent, in the units of `crs`.
    """

    tile: str
    digest: str
    crs: str
    bounds: tuple[float, float, float, float]


class Leak(NamedTuple):
    """A held-out tile, and a training tile with the same bytes or some of its ground; `reason` is which."""

    split: str
    tile: str
    train: str
    reason: str


def footprint(card: DatasetCard, example: Example) -> Footprint:
    """Returns the footprint of a complete example."""
    digest = hashlib.blake2b(digest_size=8)
    for name in card.sensors:
        digest.update(np.ascontiguousarray(example[name]))
    crs, transform = str(example.get("crs", "")), np.asarray(example.get("transform", _IDENTITY), np.float64)
    if not crs or not np.isfinite(transform).all() or tuple(transform) == _IDENTITY:
        return Footprint(str(example["id"]), digest.hexdigest(), "", (0.0, 0.0, 0.0, 0.0))
    # Arrays may reach beyond the extent, by less than a neighbour's first cell.
    inside, side = get_sensor(card.georeferenced).pixels(card.extent), card.side(card.georeferenced)
    ends = ((side - inside) / 2, (side + inside) / 2)
    a, b, c, d, e, f = transform.tolist()
    x, y = zip(*((a * column + b * row + c, d * column + e * row + f) for column in ends for row in ends))
    return Footprint(str(example["id"]), digest.hexdigest(), crs, (min(x), min(y), max(x), max(y)))


def find_leaks(training: str, splits: Mapping[str, Sequence[Footprint]]) -> list[Leak]:
    """Returns a leak for each tile of other splits with the bytes, or some of the ground, of one of `training`."""
    train = splits.get(training, ())
    by_digest = {one.digest: one.tile for one in reversed(train)}
    # Sorted into cells of the largest tile's side, so that a tile is compared with its neighbours only.
    sides: dict[str, float] = {}
    for one in (one for one in train if one.crs):
        west, south, east, north = one.bounds
        sides[one.crs] = max(sides.get(one.crs, 0.0), east - west, north - south)
    grid: dict[tuple[str, int, int], list[Footprint]] = collections.defaultdict(list)
    for one in train:
        for cell in _cells(one, sides):
            grid[cell].append(one)
    leaks = []
    for split, one in ((split, one) for split, some in splits.items() if split != training for one in some):
        near = (other for cell in _cells(one, sides) for other in grid.get(cell, ()))
        if twin := by_digest.get(one.digest):
            leaks.append(Leak(split, one.tile, twin, "same bytes"))
        elif other := next((other for other in near if _overlap(one, other) > LEAST_OVERLAP), None):
            leaks.append(Leak(split, one.tile, other.tile, "same ground"))
    return leaks


def _cells(one: Footprint, sides: Mapping[str, float]) -> Iterator[tuple[str, int, int]]:
    if one.crs in sides:
        west, south, east, north = (int(np.floor(bound / sides[one.crs])) for bound in one.bounds)
        yield from ((one.crs, x, y) for x, y in itertools.product(range(west, east + 1), range(south, north + 1)))


def _overlap(one: Footprint, other: Footprint) -> float:
    """Returns the area that two tiles share, as a fraction of the smaller one."""
    (w1, s1, e1, n1), (w2, s2, e2, n2) = one.bounds, other.bounds
    common = max(0.0, min(e1, e2) - max(w1, w2)) * max(0.0, min(n1, n2) - max(s1, s2))
    return common / min((e1 - w1) * (n1 - s1), (e2 - w2) * (n2 - s2))
