"""Warping onto a grid: against independent computations, nothing shifts, and the part that is read does not matter."""

import math

import numpy as np
import pytest
import rasterio.warp
import scipy.ndimage
from rasterio.enums import Resampling
from rasterio.transform import Affine

from anysat_jax.scenes import warping
from anysat_jax.scenes.warping import read_grid
from tests.scenes.rasters import UTM32, bands_of, write

# Coordinate system, metres (or degrees) across and down, and degrees by which the raster is turned.
PLACES = {
    "other phase": ("EPSG:32632", 10, 10, 0),
    "20 m": ("EPSG:32632", 20, 20, 0),
    "15 m": ("EPSG:32632", 15, 15, 0),
    "3 m": ("EPSG:32632", 3, 3, 0),
    "bottom up": ("EPSG:32632", 10, -10, 0),
    "turned": ("EPSG:32632", 12, 12, 30),
    "not square": ("EPSG:32632", 8, 14, 0),
    "zone 31": ("EPSG:32631", 10, 10, 0),
    "zone 31, 2 m": ("EPSG:32631", 2, 2, 0),
    "degrees": ("EPSG:4326", 1.3e-4, 9e-5, 0),
    "Lambert": ("EPSG:3035", 10, 10, 0),
}
CENTRE = 500_503.0, 4_999_498.0  # of each raster, so that no phase fits the grid of 10 m


def place(name, pixels):
    """Returns the coordinate system and the transform of a raster."""
    crs, across, down, turn = PLACES[name]
    (x,), (y,) = rasterio.warp.transform("EPSG:32632", crs, [CENTRE[0]], [CENTRE[1]])
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    a, b, d, e = across * cosine, down * sine, across * sine, -down * cosine
    return crs, Affine(a, b, x - (a + b) * pixels / 2, d, e, y - (d + e) * pixels / 2)


def source(tmp_path, name, values):
    """Writes values (C, H, W) at a place and returns the bands."""
    crs, transform = place(name, values.shape[-1])
    return bands_of(write(tmp_path / f"{name}.tif", values, transform, crs))


def at_centres(name, pixels, transform, shape):
    """Returns rows and columns of a raster's pixels, from its first pixel's centre, at the centres of a target's."""
    crs, own = place(name, pixels)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = transform.a * columns + transform.c, transform.e * rows + transform.f
    x, y = (np.reshape(one, shape) for one in rasterio.warp.transform("EPSG:32632", crs, x.ravel(), y.ravel()))
    back = ~own
    return back.d * x + back.e * y + back.f - 0.5, back.a * x + back.b * y + back.c - 0.5


@pytest.mark.parametrize("name", PLACES)
def test_pitfall_10_what_is_read_does_not_depend_on_the_box(tmp_path, name):
    """Of one box and of its parts; clouds and the raster's edge are in it."""
    side = 400 if name.endswith(("3 m", "2 m")) else 120
    values = 1000 * np.random.default_rng(0).random((2, side, side), np.float32)
    values[:, 50:65, 30:55] = np.nan
    bands = source(tmp_path, name, values)
    whole = read_grid(bands, "EPSG:32632", Affine(10, 0, 499_900, 0, -10, 5_000_100), (120, 120))
    assert 0.001 < np.isnan(whole).mean() < 0.7
    for top, left, height, width in ((0, 0, 120, 40), (37, 53, 11, 29), (60, 60, 1, 1), (100, 0, 20, 120)):
        corner = Affine(10, 0, 499_900 + 10 * left, 0, -10, 5_000_100 - 10 * top)
        part = read_grid(bands, "EPSG:32632", corner, (height, width))
        np.testing.assert_allclose(part, whole[:, top : top + height, left : left + width], rtol=1e-6)


@pytest.mark.parametrize("name", PLACES)
def test_classes_do_not_depend_on_the_box(tmp_path, name):
    side = 400 if name.endswith(("3 m", "2 m")) else 120
    values = np.random.default_rng(0).integers(0, 12, (1, side, side)).astype(np.uint8)
    bands = source(tmp_path, name, values)
    whole = read_grid(
        bands, "EPSG:32632", Affine(10, 0, 499_900, 0, -10, 5_000_100), (120, 120), how=Resampling.nearest
    )
    corner, shape = Affine(10, 0, 500_430, 0, -10, 4_999_730), (11, 29)
    part = read_grid(bands, "EPSG:32632", corner, shape, how=Resampling.nearest)
    np.testing.assert_array_equal(part, whole[:, 37:48, 53:82])
    rows, columns = at_centres(name, side, corner, shape)
    # Centres on the border of two pixels may be either's.
    decided = np.maximum(abs(rows - np.rint(rows)), abs(columns - np.rint(columns))) < 0.499
    expected = values[0, np.rint(rows).astype(int), np.rint(columns).astype(int)]
    np.testing.assert_array_equal(part[0][decided], expected[decided])
    assert decided.any()


@pytest.mark.parametrize("name", [name for name in PLACES if not name.endswith(("3 m", "2 m"))])
def test_interpolation_is_bilinear(tmp_path, name):
    """Against scipy, at the places of the pixels' centres."""
    values = 1000 * np.random.default_rng(0).random((1, 90, 90), np.float32)
    target, shape = Affine(10, 0, 500_300, 0, -10, 4_999_700), (40, 40)
    found = read_grid(source(tmp_path, name, values), "EPSG:32632", target, shape)
    expected = scipy.ndimage.map_coordinates(values[0], at_centres(name, 90, target, shape), order=1)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=0.05)


def test_finer_pixels_are_averaged(tmp_path):
    values = np.random.default_rng(0).random((3, 100, 100), np.float32)
    values[:, :5, :5] = np.nan
    values[:, 10:13, 10:15] = np.nan
    bands = bands_of(write(tmp_path / "a.tif", values, Affine(2, 0, 500_000, 0, -2, 5_000_000)))
    found = read_grid(bands, "EPSG:32632", UTM32, (20, 20))
    blocks = values.reshape(3, 20, 5, 20, 5).transpose(0, 1, 3, 2, 4).reshape(3, 20, 20, 25)
    assert np.isnan(found[:, 0, 0]).all() and np.isnan(found).sum() == 3
    blocks[:, 0, 0] = 0
    found[:, 0, 0] = 0
    np.testing.assert_allclose(found, np.nanmean(blocks, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("name", PLACES)
def test_pitfall_10_a_marked_pixel_stays_in_place(tmp_path, name):
    """The centre of mass of one bright pixel is where the pixel is, to a tenth of a pixel."""
    pixels = 400 if name.endswith(("3 m", "2 m")) else 90
    values = np.zeros((1, pixels, pixels), np.float32)
    row, column = pixels // 2 + 7, pixels // 2 - 4
    values[0, row, column] = 1000
    crs, own = place(name, pixels)
    x = own.a * (column + 0.5) + own.b * (row + 0.5) + own.c
    y = own.d * (column + 0.5) + own.e * (row + 0.5) + own.f
    (x,), (y,) = rasterio.warp.transform(crs, "EPSG:32632", [x], [y])
    found = read_grid(source(tmp_path, name, values), "EPSG:32632", Affine(1, 0, 500_300, 0, -1, 4_999_700), (400, 400))
    rows, columns = scipy.ndimage.center_of_mass(np.nan_to_num(found[0]))
    assert abs(500_300.5 + columns - x) < 0.3 and abs(4_999_699.5 - rows - y) < 0.3


def test_pitfall_10_a_marked_pixel_is_copied_in_place(tmp_path):
    values = np.zeros((1, 30, 30), np.float32)
    values[0, 12, 5] = 7
    found = read_grid(
        bands_of(write(tmp_path / "a.tif", values)), "EPSG:32632", Affine(10, 0, 500_030, 0, -10, 4_999_900), (9, 9)
    )
    assert found[0, 2, 2] == 7 and found.sum() == 7


def test_pixels_of_the_same_place_in_two_spellings_are_copied(tmp_path):
    """Of a transform with errors of rounding, and of a coordinate system as WKT."""
    values = np.random.default_rng(0).random((1, 30, 30), np.float32)
    inexact = Affine(10.00000001, 0, 500_000.0001, 0, -9.99999999, 5_000_000.0001)
    bands = bands_of(write(tmp_path / "a.tif", values, inexact))
    found = read_grid(
        bands, rasterio.crs.CRS.from_epsg(32632).to_wkt(), Affine(10, 0, 500_000, 0, -10, 5_000_000), (30, 30)
    )
    np.testing.assert_array_equal(found, values)


def test_pitfall_9_a_bottom_up_raster_comes_out_upright(tmp_path):
    values = np.random.default_rng(0).random((1, 30, 30), np.float32)
    bands = bands_of(write(tmp_path / "a.tif", values[:, ::-1], Affine(10, 0, 500_000, 0, 10, 4_999_700)))
    np.testing.assert_allclose(read_grid(bands, "EPSG:32632", UTM32, (30, 30)), values, rtol=1e-6)


def test_interpolation_does_not_grow_the_valid_area(tmp_path):
    values = np.random.default_rng(0).random((2, 60, 60), np.float32)
    values[0, 20:30, 20:30], values[1, 40:45, 10:50] = np.nan, np.inf
    bands = source(tmp_path, "20 m", values)
    target, shape = Affine(10, 0, 500_200, 0, -10, 4_999_800), (60, 60)
    found = read_grid(bands, "EPSG:32632", target, shape)
    rows, columns = (np.rint(one).astype(int) for one in at_centres("20 m", 60, target, shape))
    expected = np.isfinite(values).all(axis=0)[rows, columns]
    for band in found:
        np.testing.assert_array_equal(np.isfinite(band), expected)


def test_much_finer_rasters_are_read_in_parts(tmp_path, monkeypatch):
    bands = source(tmp_path, "zone 31, 2 m", np.random.default_rng(0).random((2, 300, 300), np.float32))
    target = Affine(10, 0, 500_300, 0, -10, 4_999_700), (37, 30)
    whole = read_grid(bands, "EPSG:32632", *target)
    monkeypatch.setattr(warping, "MOST_VALUES", 5_000)
    np.testing.assert_allclose(read_grid(bands, "EPSG:32632", *target), whole, rtol=1e-6)


def test_a_raster_that_has_no_place_in_the_system_is_named(tmp_path):
    bands = bands_of(write(tmp_path / "world.tif", np.ones((1, 18, 36)), Affine(1, 0, -188, 0, -1, -43), "EPSG:4326"))
    with pytest.raises(ValueError, match=r"world\.tif, band 1: .*cut"):
        read_grid(bands, "EPSG:3035", Affine(10, 0, 4_000_000, 0, -10, 3_000_000), (5, 5))
