"""Values of a sensor in boxes of the scene's grid: units, masks, merging, and what does not depend on the box."""

import concurrent.futures
import datetime
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import Acquisition, Stack, choose_grid, read_box
from tests.conftest import REPOSITORY
from tests.scenes.rasters import UTM32, bands_of, write

DAY, LATER = datetime.date(2020, 5, 3), datetime.date(2020, 6, 2)


def stack_of(path, sensor="s1-asc", day=DAY, **facts):
    """Returns a stack of one file."""
    band_facts = {key: facts.pop(key) for key in ("zero", "scale", "offset") if key in facts}
    return Stack(sensor, (Acquisition(path.stem, day, bands_of(path, **band_facts), **facts),), units="dB")


def test_pixels_that_coincide_are_copied(tmp_path):
    values = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 40, 50)
    stack = stack_of(write(tmp_path / "a.tif", values))
    grid, notes = choose_grid({"s1-asc": stack}, 10)
    fields = read_box(stack, grid.crs, grid.bounds)
    assert not notes and grid.crs == "EPSG:32632" and grid.bounds == Box(500_000, 4_999_600, 500_500, 5_000_000)
    np.testing.assert_array_equal(fields.values[0], values)
    assert fields.valid.all() and fields.days == [DAY]


def test_what_lies_outside_of_the_rasters_is_invalid(tmp_path):
    values = np.ones((2, 10, 10), np.float32)
    stack = stack_of(write(tmp_path / "a.tif", values))
    fields = read_box(stack, "EPSG:32632", Box(499_950, 4_999_850, 500_050, 5_000_020))
    expected = np.zeros((17, 10), bool)
    expected[2:12, 5:] = True
    np.testing.assert_array_equal(fields.valid[0, 0], expected)
    assert (fields.values[0][:, expected] == 1).all() and not fields.values[0][:, ~expected].any()
    away = read_box(stack, "EPSG:32632", Box(600_000, 4_999_850, 600_050, 5_000_020))
    assert away.values.shape == (0, 2, 17, 5) and away.valid.shape == (0, 1, 17, 5) and not away.days


def test_an_image_without_an_acquisition_in_the_box_is_invalid(tmp_path):
    path = write(tmp_path / "a.tif", np.ones((3, 10, 10), np.uint8), Affine(1, 0, 500_000, 0, -1, 5_000_000))
    stack = Stack("spot", (Acquisition("a", None, bands_of(path)),))
    fields = read_box(stack, "EPSG:32632", Box(600_000, 4_999_900, 600_050, 5_000_000))
    assert fields.values.shape == (3, 100, 50) and not fields.valid.any() and fields.days == []


def test_acquisitions_of_one_day_fill_each_other(tmp_path):
    left, right = np.full((2, 10, 20), 1, np.float32), np.full((2, 10, 20), 2, np.float32)
    left[0, 3, 4] = np.nan
    paths = write(tmp_path / "a.tif", left), write(tmp_path / "b.tif", right, UTM32 @ Affine.translation(10, 0))
    later = write(tmp_path / "c.tif", right * 3)
    acquisitions = [Acquisition(path.stem, DAY, bands_of(path)) for path in paths]
    stack = Stack("s1-asc", (*acquisitions, Acquisition("c", LATER, bands_of(later))), units="dB")
    fields = read_box(stack, "EPSG:32632", Box(500_000, 4_999_900, 500_300, 5_000_000))
    assert fields.days == [DAY, LATER]
    np.testing.assert_array_equal(fields.values[0, 0, 0], [1] * 20 + [2] * 10)
    # Its other band is missing too: a pixel is valid in all bands or in none.
    assert not fields.valid[0, 0, 3, 4] and not fields.values[0, :, 3, 4].any() and fields.valid[0].sum() == 299
    assert fields.valid[1].sum() == 200


def test_a_pixel_that_one_acquisition_lacks_is_that_of_another(tmp_path):
    first = np.ones((2, 10, 10), np.float32)
    first[1, 2:5] = np.nan
    paths = write(tmp_path / "a.tif", first), write(tmp_path / "b.tif", np.full((2, 10, 10), 2, np.float32))
    stack = Stack("s1-asc", tuple(Acquisition(path.stem, DAY, bands_of(path)) for path in paths), units="dB")
    fields = read_box(stack, "EPSG:32632", Box(500_000, 4_999_900, 500_100, 5_000_000))
    assert fields.valid.all() and (fields.values[0, :, 2:5] == 2).all() and (fields.values[0, :, 5:] == 1).all()


def test_zeros_in_all_bands_are_missing_and_in_one_are_values(tmp_path):
    values = np.full((2, 6, 6), 5, np.int16)
    values[:, 0], values[0, 1] = 0, 0
    path = write(tmp_path / "a.tif", values)
    box = Box(500_000, 4_999_940, 500_060, 5_000_000)
    fields = read_box(stack_of(path, zero=-3.0, offset=-3.0, scale=2.0), "EPSG:32632", box)
    assert not fields.valid[0, 0, 0].any() and fields.valid[0, 0, 1:].all()
    assert (fields.values[0, 0, 1] == -3).all() and (fields.values[0, 1, 1] == 7).all()
    assert read_box(stack_of(path), "EPSG:32632", box).valid.all()


def test_bands_of_several_resolutions_are_one_acquisition(tmp_path):
    """As of Sentinel-2: a pixel is valid where both a band of 10 m and one of 20 m are."""
    fine, coarse = np.ones((40, 40), np.float32), np.full((20, 20), 2, np.float32)
    fine[3, 4], coarse[10, 10] = np.nan, np.nan
    coarse_place = Affine(20, 0, 500_000, 0, -20, 5_000_000)
    paths = write(tmp_path / "VV.tif", fine), write(tmp_path / "VH.tif", coarse, coarse_place)
    stack = Stack("s1-asc", (Acquisition("a", DAY, tuple(bands_of(path)[0] for path in paths)),), units="dB")
    fields = read_box(stack, "EPSG:32632", Box(500_000, 4_999_600, 500_400, 5_000_000))
    expected = np.isfinite(fine) & np.isfinite(coarse.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(fields.valid[0, 0], expected)
    np.testing.assert_array_equal(fields.values[0], np.stack([expected * 1, expected * 2]))


def test_a_mask_hides_before_interpolation(tmp_path):
    """Pixels of 20 m under a mask of 10 m: a cloud's brightness must not reach pixels beside it."""
    values, classes = np.ones((2, 20, 20), np.float32), np.full((40, 40), 4, np.uint8)
    values[:, 5:8, 5:8], classes[10:16, 10:16] = 1000, 9
    path = write(tmp_path / "a.tif", values, Affine(20, 0, 500_000, 0, -20, 5_000_000))
    mask = bands_of(write(tmp_path / "mask.tif", classes))[0]
    fields = read_box(
        stack_of(path, mask=mask, clear=(4, 5)), "EPSG:32632", Box(500_000, 4_999_600, 500_400, 5_000_000)
    )
    np.testing.assert_array_equal(fields.valid[0, 0], classes == 4)
    assert fields.values.max() == 1


def test_a_mask_of_larger_pixels_is_that_of_the_nearest(tmp_path):
    classes = np.full((20, 20), 4, np.uint8)
    classes[5, 7] = 8
    mask = bands_of(write(tmp_path / "mask.tif", classes, Affine(20, 0, 500_000, 0, -20, 5_000_000)))[0]
    path = write(tmp_path / "a.tif", np.ones((2, 40, 40), np.float32))
    fields = read_box(stack_of(path, mask=mask, clear=(4,)), "EPSG:32632", Box(500_000, 4_999_600, 500_400, 5_000_000))
    np.testing.assert_array_equal(fields.valid[0, 0], (classes == 4).repeat(2, 0).repeat(2, 1))


def test_radar_has_the_ratio_of_its_units(tmp_path):
    decibels = np.stack([np.full((5, 5), -10.0), np.full((5, 5), -17.0)]).astype(np.float32)
    box = Box(500_000, 4_999_950, 500_050, 5_000_000)
    path = write(tmp_path / "a.tif", decibels)
    stack = Stack("s1", (Acquisition("a", DAY, bands_of(path)),), units="dB")
    np.testing.assert_allclose(read_box(stack, "EPSG:32632", box).values[0, :, 0, 0], [-10, -17, 7], rtol=1e-6)
    linear = read_box(stack, "EPSG:32632", box, units="linear power")
    np.testing.assert_allclose(linear.values[0, :, 0, 0], [0.1, 10**-1.7, 10**0.7], rtol=1e-5)
    path = write(tmp_path / "b.tif", 10 ** (decibels / 10))
    stack = Stack("s1", (Acquisition("b", DAY, bands_of(path)),), units="linear power")
    in_decibels = read_box(stack, "EPSG:32632", box, units="dB")
    np.testing.assert_allclose(in_decibels.values[0, :, 0, 0], [-10, -17, 7], rtol=1e-5)


def test_a_context_sensor_is_the_mean_over_the_box(tmp_path):
    values = np.random.default_rng(0).random((7, 8, 8), np.float32)
    values[:, 0, 0] = np.nan
    path = write(tmp_path / "a.tif", values, Affine(250, 0, 500_000, 0, -250, 5_000_000))
    stack = Stack("modis", (Acquisition("a", DAY, bands_of(path)),))
    fields = read_box(stack, "EPSG:32632", Box(500_000, 4_999_000, 501_000, 5_000_000))
    assert fields.values.shape == (1, 7, 1, 1)
    np.testing.assert_allclose(fields.values[0, :, 0, 0], np.nanmean(values[:, :4, :4], axis=(1, 2)), rtol=1e-5)
    # A tile within one pixel has that pixel.
    small = read_box(stack, "EPSG:32632", Box(500_260, 4_999_560, 500_320, 4_999_620))
    np.testing.assert_allclose(small.values[0, :, 0, 0], values[:, 1, 1], rtol=1e-6)


def test_a_box_that_is_not_whole_pixels_is_refused(tmp_path):
    stack = stack_of(write(tmp_path / "a.tif", np.ones((2, 9, 9), np.float32)))
    with pytest.raises(ValueError, match=r"95 x 50 m is not a whole number of pixels of 10 m"):
        read_box(stack, "EPSG:32632", Box(500_000, 4_999_950, 500_095, 5_000_000))


def test_threads_that_warp_at_once_do_not_warn():
    """rasterio hides a warning of its own while it warps, for all threads, and shows it once one of them is done."""
    code = (
        "import warnings, rasterio.errors, anysat_jax.scenes.warping\n"
        "warnings.warn('Dataset has no geotransform, gcps, or rpcs.', rasterio.errors.NotGeoreferencedWarning)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_stacks_go_to_threads_and_processes(tmp_path):
    values = np.random.default_rng(0).random((2, 30, 30), np.float32)
    stack = stack_of(write(tmp_path / "a.tif", values))
    boxes = [Box(500_000 + 100 * i, 4_999_700, 500_100 + 100 * i, 5_000_000) for i in range(3)]
    assert pickle.loads(pickle.dumps(stack)) == stack
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        read = list(threads.map(lambda box: read_box(stack, "EPSG:32632", box).values, boxes * 5))
    for number, one in enumerate(read):
        np.testing.assert_array_equal(one[0], values[:, :, 10 * (number % 3) : 10 * (number % 3) + 10])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as processes:
        (one,) = processes.map(read_box, [stack], ["EPSG:32632"], boxes[:1])
    np.testing.assert_array_equal(one.values, read[0])


def test_a_truncated_file_is_named(tmp_path):
    values = np.random.default_rng(0).random((2, 200, 200), np.float32)
    path = write(tmp_path / "cut.tif", values, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    stack = stack_of(path)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(ValueError, match=r"cut\.tif cannot be read .*download or copy it again"):
        read_box(stack, "EPSG:32632", Box(500_000, 4_998_000, 502_000, 5_000_000))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*cut\.tif"):
        read_box(stack, "EPSG:32632", Box(500_000, 4_998_000, 502_000, 5_000_000))
