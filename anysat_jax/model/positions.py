"""Scale-adaptive positions: sines of metres, and relative buckets of grid distance.

Everything here depends on static shapes alone, so it is computed once with numpy when a program is traced.
"""

import functools

import numpy as np
from jaxtyping import Float, Int

from anysat_jax.model.config import PositionKind
from anysat_jax.sensors import CELL_METRES, whole_number

NUM_BUCKETS = 8
OWN_PATCH_BUCKET = 3  # a patch and itself
CLASS_BUCKET = 7  # any pair with a class or a context token
# The published table has eight columns, of which the first three are never read.
USED_BUCKETS = (OWN_PATCH_BUCKET, 4, 5, 6, CLASS_BUCKET)


def grid_coordinates(rows: int, columns: int) -> Int[np.ndarray, "rows*columns 2"]:
    """Returns (row, column) of each place of a grid, raster order."""
    return np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


def subpatch_coordinates(per_side: int, subpatch_metres: float, kind: PositionKind) -> Int[np.ndarray, "n 2"]:
    """Returns the (row, column) that encodes each sub-patch's position, the sub-patches in raster order.

    "paper": its true place. "released": as in the training of the published weights: their image tokens run
    cell by cell (10 m), row by row inside a cell, but were given the coordinates of a plain raster. The two differ
    for sensors finer than a cell in patches larger than one.
    """
    true = grid_coordinates(per_side, per_side)
    per_cell = whole_number(CELL_METRES / subpatch_metres) or 1
    if kind == "paper" or per_cell == 1 or per_side % per_cell:
        return true
    cells = per_side // per_cell
    rank = np.arange(per_side**2).reshape(cells, cells, per_cell, per_cell).swapaxes(1, 2).reshape(-1)
    return true[rank]


def sinusoids(
    coordinates: Int[np.ndarray, "n 2"], dim: int, metres: float, kind: PositionKind
) -> Float[np.ndarray, "n dim"]:
    """Returns position codes of (row, column): the column's in the first half of the channels, the row's in the last.

    Args:
      metres: the grid's unit (paper: g): the patch size for the combiner and the predictor, the sub-patch's side for
        the spatial transformer. With "released" codes patches count in cells of 10 m; pass `released_unit(...)`.

    Source: paper, supplement, equation A; the released code differs and is kept for its weights.
    """
    rows, columns = np.asarray(coordinates, np.float64).T
    half, codes = dim // 2, []
    for axis in (columns, rows):
        # In float64: a sine of thousands of metres loses digits in float32.
        position = (axis * metres)[:, None]
        if kind == "paper":
            channel = np.arange(half)
            phase = np.pi / 2 * (channel % 2)
            codes.append(np.sin(position / (10000.0 ** (channel / dim))[None, :] + phase[None, :]))
        else:
            # All sines, then all cosines, where the paper's code alternates: the published weights were trained so.
            angle = position * (10000.0 ** (-np.arange(half // 2) / (half // 2)))[None, :]
            codes += [np.sin(angle), np.cos(angle)]
    return np.concatenate(codes, axis=1).astype(np.float32)


@functools.lru_cache(maxsize=256)
def patch_positions(grid: tuple[int, int], patch_size: float, dim: int, kind: PositionKind) -> np.ndarray:
    """Returns codes of a tile's patches, (rows * columns, dim) float32, for the combiner and the predictor."""
    unit = patch_size if kind == "paper" else patch_size / CELL_METRES
    return sinusoids(grid_coordinates(*grid), dim, unit, kind)


@functools.lru_cache(maxsize=256)
def subpatch_positions(per_side: int, subpatch_metres: float, dim: int, kind: PositionKind) -> np.ndarray:
    """Returns codes of a patch's sub-patches, (per_side ** 2, dim) float32, for the spatial transformer."""
    return sinusoids(subpatch_coordinates(per_side, subpatch_metres, kind), dim, subpatch_metres, kind)


def distance_buckets(coordinates: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n n"]:
    """Returns the bucket of each pair's rounded grid distance: 0 -> 3, 1 -> 4, 2 and 3 -> 5, 4 and more -> 6."""
    offset = coordinates[:, None, :] - coordinates[None, :, :]
    distance = np.rint(np.hypot(offset[..., 0], offset[..., 1])).astype(np.int32)
    return np.select([distance == 0, distance == 1, distance <= 3], [3, 4, 5], 6).astype(np.int32)


@functools.lru_cache(maxsize=256)
def subpatch_buckets(per_side: int, subpatch_metres: float, kind: PositionKind) -> np.ndarray:
    """Returns buckets of [class token; sub-patches] against themselves, (1 + n, 1 + n) int32."""
    inner = distance_buckets(subpatch_coordinates(per_side, subpatch_metres, kind))
    return np.pad(inner, ((1, 0), (1, 0)), constant_values=CLASS_BUCKET)


@functools.lru_cache(maxsize=64)
def patch_buckets(grid: tuple[int, int]) -> np.ndarray:
    """Returns buckets of a tile's patches against themselves, (N, N) int32."""
    return distance_buckets(grid_coordinates(*grid))


def date_code(
    dates: Float[np.ndarray, "B T"], dim: int, period: float, repeats: int = 16
) -> Float[np.ndarray, "B T dim"]:
    """Returns codes of dates: dim / repeats numbers, repeated; number j is the sine (j even) or cosine (j odd) of
    date / period ** (2 * floor(j / 2) / d). Takes numpy or jax arrays (days of the year from 0, float32).
    """
    import jax.numpy as jnp

    width = dim // repeats
    number = np.arange(width)
    frequency = (period ** (-2.0 * (number // 2) / width)).astype(np.float32)
    angle = dates[:, :, None] * frequency[None, None, :]
    code = jnp.where((number % 2 == 0)[None, None, :], jnp.sin(angle), jnp.cos(angle))
    return jnp.tile(code, (1, 1, repeats))
