"""Reading onto the scene's grid: places, independence of the box, and the choice of the grid."""

import datetime
import pathlib

import numpy as np
import rasterio
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import Acquisition, RasterBand, Stack, choose_grid, read_box

DAY = datetime.date(2020, 5, 3)
UTM32 = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def raster(
    path: pathlib.Path, values: np.ndarray, transform: Affine = UTM32, crs: str = "EPSG:32632", **facts
) -> tuple[RasterBand, ...]:
    """Writes bands (C, H, W) and returns them."""
    values = np.asarray(values)
    size = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **size, **facts) as file:
        file.write(values)
    return tuple(RasterBand(path, number + 1, crs, transform, values.shape[1:]) for number in range(len(values)))


def test_pixels_that_coincide_are_copied(tmp_path):
    values = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    stack = Stack("s1-asc", (Acquisition("a", DAY, raster(tmp_path / "a.tif", values)),), units="dB")
    grid, notes = choose_grid({"s1-asc": stack}, 10)
    fields = read_box(stack, grid.crs, grid.bounds)
    assert not notes and grid.crs == "EPSG:32632" and grid.bounds == Box(500_000, 4_999_600, 500_500, 5_000_000)
    np.testing.assert_array_equal(fields.values[0], values)
    assert fields.valid.all() and fields.days == [DAY]
