"""Leaks between splits: held-out tiles with the bytes, or on the ground, of a training tile."""

import collections
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example

LEAST_OVERLAP = 0.01  # of the smaller tile; neighbours share a line of pixels at most
IDENTITY = (1, 0, 0, 0, 1, 0)  # of a raster that has a coordinate system and no position in it


class Footprint(NamedTuple):
    """Key, digest and bounds of a tile, by which tiles are compared."""

    tile: str  # its key
    digest: str  # of the values of its sensors
    crs: str  # of the bounds; "" where the place is not known
    bounds: tuple[float, float, float, float]  # west, south, east, north of its extent, in the units of `crs`


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
    crs, transform = str(example.get("crs", "")), np.asarray(example.get("transform", IDENTITY), np.float64)
    if not crs or not np.isfinite(transform).all() or tuple(transform) == IDENTITY:
        return Footprint(str(example["id"]), digest.hexdigest(), "", (0.0, 0.0, 0.0, 0.0))
    # Arrays may reach beyond the extent, by less than a neighbour's first cell.
    inside, side = get_sensor(card.georeferenced).pixels(card.extent), card.side(card.georeferenced)
    ends = ((side - inside) / 2, (side + inside) / 2)
    a, b, c, d, e, f = transform.tolist()
    x, y = zip(*((a * column + b * row + c, d * column + e * row + f) for column in ends for row in ends))
    return Footprint(str(example["id"]), digest.hexdigest(), crs, (min(x), min(y), max(x), max(y)))


def find_leaks(training: str, splits: Mapping[str, Sequence[Footprint]]) -> list[Leak]:
    """Returns a leak for each tile of other splits with the bytes, or some of the ground, of one of `training`.

    Tiles in different coordinate systems are compared, too.
    """
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
    leaks, held_out = [], [(split, one) for split, some in splits.items() if split != training for one in some]
    projected = _project([one for _, one in held_out], sides)
    for split, one in held_out:
        places = (one, *projected[one.tile])
        near = ((place, other) for place in places for cell in _cells(place, sides) for other in grid.get(cell, ()))
        if twin := by_digest.get(one.digest):
            leaks.append(Leak(split, one.tile, twin, "same bytes"))
        elif other := next((other for place, other in near if _overlap(place, other) > LEAST_OVERLAP), None):
            leaks.append(Leak(split, one.tile, other.tile, "same ground"))
    return leaks


def _project(some: Sequence[Footprint], sides: Mapping[str, float]) -> dict[str, list[Footprint]]:
    """Returns, for each tile, its footprints in the other coordinate systems of `sides`."""
    systems: dict[str, list[Footprint]] = collections.defaultdict(list)
    for one in some:
        systems[one.crs].append(one)
    found: dict[str, list[Footprint]] = collections.defaultdict(list)
    for source, target in itertools.product(systems, sides):
        if not source or source == target:
            continue
        bounds = np.asarray([one.bounds for one in systems[source]])
        corners = _corners(source, target, bounds[:, [[0, 1], [0, 3], [2, 1], [2, 3]]])
        # The box between the inner two of four coordinates lies inside the tile, which is turned against the other
        # system; the box around its corners would reach into its neighbours.
        boxes = np.sort(corners, axis=1)[:, 1:3].reshape(-1, 4)
        lengths = boxes[:, 2:] - boxes[:, :2]
        # Far away from their zones, coordinates go wild, and a box would have millions of cells.
        sound = ((lengths > 0) & (lengths < 100 * sides[target])).all(axis=1)
        for one, box in zip(itertools.compress(systems[source], sound), boxes[sound].tolist(), strict=True):
            found[one.tile].append(one._replace(crs=target, bounds=tuple(box)))
    return found


def _corners(source: str, target: str, corners: Float64[np.ndarray, "N 4 2"]) -> Float64[np.ndarray, "N 4 2"]:
    """Projects the corners of tiles; NaN for tiles that have no place in the system `target`."""
    projected = project(source, target, corners.reshape(-1, 2)).reshape(corners.shape)
    if len(corners) > 1 and np.isnan(projected).all():  # one corner fails all
        return np.concatenate([_corners(source, target, half) for half in np.array_split(corners, 2)])
    return projected


def project(source: str, target: str, points: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N 2"]:
    """Returns points (x, y) in another coordinate system; NaN for those, or for all, that have no place in it."""
    from rasterio.warp import transform

    try:
        projected = np.stack(transform(source, target, *points.T), axis=-1)
    except Exception:  # the errors of GDAL have no public class
        return np.full(points.shape, np.nan)
    return np.where(np.isfinite(projected), projected, np.nan)


def _cells(one: Footprint, sides: Mapping[str, float]) -> Iterator[tuple[str, int, int]]:
    if one.crs in sides:
        west, south, east, north = (int(np.floor(bound / sides[one.crs])) for bound in one.bounds)
        yield from ((one.crs, x, y) for x, y in itertools.product(range(west, east + 1), range(south, north + 1)))


def _overlap(one: Footprint, other: Footprint) -> float:
    """Returns the area that two tiles share, as a fraction of the smaller one."""
    (w1, s1, e1, n1), (w2, s2, e2, n2) = one.bounds, other.bounds
    common = max(0.0, min(e1, e2) - max(w1, w2)) * max(0.0, min(n1, n2) - max(s1, s2))
    return common / min((e1 - w1) * (n1 - s1), (e2 - w2) * (n2 - s2))
