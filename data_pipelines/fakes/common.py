"""Smooth noise, rasters and dates of the made-up archives, all from a seed."""

import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Num, Shaped

PATCH = 8  # pixels over which the noise changes


def smooth(
    rng: np.random.Generator, shape: Sequence[int], low: float, high: float, dtype: Any = "float32"
) -> Num[np.ndarray, "*axes H W"]:
    """Returns noise within [low, high] that varies slowly over the last two axes; all other axes are independent.

    The same state of `rng` gives the same array, of `shape` (..., height, width) and `dtype`; integers are rounded.
    """
    *axes, height, width = shape
    coarse = rng.random((*axes, *(2 + side // PATCH for side in (height, width))), np.float32)
    # Bilinear: linear along each of the two axes in turn.
    noise = _weights(height) @ coarse @ _weights(width).T
    return _within(np.float32(low) + np.float32(high - low) * noise, low, high, dtype)


def scene(
    rng: np.random.Generator, shape: Sequence[int], low: float, high: float, dtype: Any = "float32"
) -> Num[np.ndarray, "*axes H W"]:
    """Returns smooth noise, three quarters of which are the same along all other axes: dates and bands of one place.

    Args and result as of `smooth`.
    """
    place, own = smooth(rng, shape[-2:], low, high), smooth(rng, shape, low, high)
    return _within(0.75 * place + 0.25 * own, low, high, dtype)


def _within(values: Num[np.ndarray, "*axes"], low: float, high: float, dtype: Any) -> Num[np.ndarray, "*axes"]:
    # Rounding of float32 may lead a little beyond the limits, which uint8 would wrap.
    values = np.clip(values, low, high)
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


def _weights(side: int) -> Float32[np.ndarray, "side nodes"]:
    """Returns the matrix of linear interpolation from nodes `PATCH` pixels apart to pixels."""
    position = (np.arange(side) + 0.5) / PATCH
    # A pixel lies between two nodes, whose weights fall to 0 at their neighbours.
    distance = np.abs(position[:, None] - np.arange(2 + side // PATCH)[None])
    return np.maximum(1 - distance, 0).astype(np.float32)


def write_raster(
    path: pathlib.Path,
    array: Shaped[np.ndarray, "C H W"],
    *,
    crs: Any = None,
    transform: Any = None,
    nodata: float | None = None,
    **profile: Any,
) -> None:
    """Writes an array to a GeoTIFF, whose suffix does not matter, and makes its folders.

    The coordinate system `crs` is e.g. "EPSG:2154"; `transform` is the affine map from (column, row) to coordinates,
    as rasterio's Affine or its six numbers; the value `nodata` stands for no data; more of rasterio's `profile` is e.g.
    `compress="deflate"` or `interleave="pixel"`.

    Raises:
      ImportError: rasterio is not installed.
    """
    import warnings

    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    transform = None if transform is None else rasterio.Affine(*tuple(transform)[:6])
    shape = dict(count=len(array), height=array.shape[1], width=array.shape[2], dtype=array.dtype)
    settings = dict(driver="GTiff", **shape, crs=crs, transform=transform, nodata=nodata) | profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings) as file:
            file.write(array)


def some_days(rng: np.random.Generator, count: int, start: datetime.date, end: datetime.date) -> list[datetime.date]:
    """Draws `count` different days from `start` to `end` (included), in time order; all of them if there are fewer."""
    span = (end - start).days + 1
    offsets = np.sort(rng.choice(span, min(count, span), replace=False))
    return [start + datetime.timedelta(days=int(offset)) for offset in offsets]
