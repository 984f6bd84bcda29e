"""Noise, rasters and days of the made-up archives."""

import datetime

import numpy as np
import pytest
import rasterio

from data_pipelines.fakes.common import scene, smooth, some_days, write_raster


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_noise_stays_in_its_range_and_varies(dtype):
    values = smooth(np.random.default_rng(0), (3, 40, 50), 5, 200, dtype)
    assert values.shape == (3, 40, 50) and values.dtype == dtype
    assert values.min() >= 5 and values.max() <= 200 and values.max() - values.min() > 100
    again = smooth(np.random.default_rng(0), (3, 40, 50), 5, 200, dtype)
    np.testing.assert_array_equal(values, again)


def test_noise_is_smooth():
    values = smooth(np.random.default_rng(0), (64, 64), 0.0, 1.0)
    assert np.abs(np.diff(values, axis=0)).max() < 0.2 < np.ptp(values)


@pytest.mark.parametrize("shape", [(1, 1), (2, 6, 6), (4, 2, 1, 8)])
def test_noise_of_small_arrays(shape):
    assert smooth(np.random.default_rng(0), shape, -20.0, -5.0).shape == shape


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_dates_and_bands_of_a_scene_are_alike(dtype):
    values = scene(np.random.default_rng(0), (3, 2, 32, 32), 50, 200, dtype)
    assert values.shape == (3, 2, 32, 32) and values.dtype == dtype and values.min() >= 50 and values.max() <= 200
    rows = values.reshape(6, -1).astype(np.float64)
    assert np.corrcoef(rows).min() > 0.7 and np.ptp(rows, axis=0).min() > 0


def test_a_raster_comes_back(tmp_path):
    path, array = tmp_path / "a" / "b.tif", np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_raster(path, array, crs="EPSG:2154", transform=(10, 0, 500, 0, -10, 900), nodata=-1, compress="deflate")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), array)
        assert tuple(file.transform)[:6] == (10, 0, 500, 0, -10, 900)
        assert file.crs.to_epsg() == 2154 and file.nodata == -1


def test_a_raster_without_a_place(tmp_path, recwarn):
    write_raster(tmp_path / "a.tif", np.zeros((1, 2, 2), np.uint8))
    assert not recwarn.list


def test_days_are_different_and_in_order():
    start, end = datetime.date(2018, 12, 20), datetime.date(2019, 1, 10)
    days = some_days(np.random.default_rng(0), 15, start, end)
    assert len(days) == 15 and days == sorted(set(days)) and start <= days[0] and days[-1] <= end
    assert len(some_days(np.random.default_rng(0), 99, start, end)) == 22
