"""Rasters of results: windows become one cloud-optimised GeoTIFF in place."""

import numpy as np
import rasterio
from rio_cogeo.cogeo import cog_validate

from anysat_jax.scenes.encoding import fit_encoding
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.outputs import RasterSpec, finish, read_encoded, write_part

GRID = Grid("EPSG:32632", Box(500_000, 4_993_000, 509_000, 5_000_000))


def window(values, row, column, rows, columns):
    box = Box(
        500_000 + column * 10, 5_000_000 - (row + rows) * 10, 500_000 + (column + columns) * 10, 5_000_000 - row * 10
    )
    return box, np.ascontiguousarray(values[:, row : row + rows, column : column + columns])


def test_windows_become_one_cog_in_place_and_a_missing_one_is_nodata(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 700, 900)).astype(np.float32)
    encoding = fit_encoding(values.reshape(3, -1).T)
    spec = RasterSpec(GRID, 10, ("a", "b", "c"), "float32", encoding.nodata, encoding)
    for row, column, rows, columns in [(0, 0, 300, 900), (300, 0, 400, 500)]:
        write_part(tmp_path / "parts", f"{row}_{column}", spec, *window(values, row, column, rows, columns))
    finish(tmp_path / "parts", spec, tmp_path / "out.tif")
    values[:, 300:, 500:] = np.nan
    assert cog_validate(tmp_path / "out.tif", strict=True) == (True, [], [])
    read, transform, crs = read_encoded(tmp_path / "out.tif")
    np.testing.assert_array_equal(read, values)
    assert transform == rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000) and crs == rasterio.CRS.from_epsg(32632)
