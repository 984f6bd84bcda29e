"""Small GeoTIFFs, and the bands that they hold, for tests of reading."""

import datetime
import pathlib
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import RasterBand, read_box
from anysat_jax.scenes.sources import open_stack

UTM32 = Affine(10, 0, 500_000, 0, -10, 5_000_000)
S2_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
BOX = Box(500_000, 4_999_940, 500_060, 5_000_000)
DAY = datetime.date(2020, 5, 3)
OLD = "S2A_MSIL2A_20200503T103031_N0214_R108_T32TMR_20200503T130000"
NEW = "S2B_MSIL2A_20220503T103031_N0400_R108_T32TMR_20220503T130000"


def write(
    path: pathlib.Path,
    values: np.ndarray,
    transform: Affine = UTM32,
    crs: str | None = "EPSG:32632",
    *,
    names: tuple[str, ...] = (),
    tags: dict[str, str] | None = None,
    scales: tuple[float, ...] = (),
    offsets: tuple[float, ...] = (),
    **facts: Any,
) -> pathlib.Path:
    """Writes bands (C, H, W), or one band (H, W), and returns the path."""
    values = np.asarray(values)
    values = values if values.ndim == 3 else values[None]
    size = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **size, **facts) as file:
        file.write(values)
        if names:
            file.descriptions = names
        file.scales = scales or file.scales
        file.offsets = offsets or file.offsets
        file.update_tags(**(tags or {}))
    return path


def bands_of(path: pathlib.Path, **facts: Any) -> tuple[RasterBand, ...]:
    """Returns all bands of a file."""
    with rasterio.open(path) as file:
        place = file.crs.to_string(), file.transform, file.shape
        return tuple(RasterBand(path, number, *place, **facts) for number in file.indexes)


def scene(bands=10, level=2000, seed=0, side=6):
    """Returns whole numbers (bands, side, side) around a level, another one in each band."""
    rng = np.random.default_rng(seed)
    return (level + 100 * np.arange(bands)[:, None, None] + rng.integers(0, 50, (bands, side, side))).astype(np.uint16)


def read(sensor, source, box=BOX):
    """Returns the fields of a source in the box, and its stack."""
    stack = open_stack(sensor, source)
    return read_box(stack, "EPSG:32632", box), stack
