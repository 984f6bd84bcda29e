"""Bands by name, decibels, and bilinear interpolation."""

import numpy as np
import pytest

from data_pipelines.bands import doubled, in_decibels, pick_bands, with_ratio, with_ratio_of_decibels


def test_bands_are_found_by_name():
    values = np.arange(3)[None, :, None, None] * np.ones((2, 1, 4, 4), np.int16)
    picked = pick_bands(values, ("NIR", "G", "R"), ("R", "NIR"))
    assert picked.shape == (2, 2, 4, 4) and picked[0, :, 0, 0].tolist() == [2, 0] and picked.flags.c_contiguous


@pytest.mark.parametrize(("file_bands", "bands"), [(("R", "G"), ("R",)), (("R", "G", "B"), ("R", "NIR"))])
def test_other_bands_are_refused(file_bands, bands):
    with pytest.raises(ValueError, match=r"3 bands, expected \("):
        pick_bands(np.zeros((3, 2, 2)), file_bands, bands)


def test_the_ratio_of_powers_is_a_quotient_and_of_decibels_a_difference():
    power = np.array([[0.2, 0.1], [0.05, 0.02]], np.float32)[:, :, None, None]
    decibels = 10 * np.log10(power)
    linear, logarithmic = with_ratio(power), with_ratio_of_decibels(decibels)
    np.testing.assert_allclose(linear[:, 2, 0, 0], [2.0, 2.5], rtol=1e-6)
    np.testing.assert_allclose(logarithmic[:, 2], 10 * np.log10(linear[:, 2]), rtol=1e-5)
    assert linear.dtype == logarithmic.dtype == np.float32


def test_the_ratio_stays_finite_where_nothing_came_back():
    assert np.isfinite(with_ratio(np.array([1.0, 0.0], np.float32)[:, None, None])).all()


def test_backscatter_in_decibels_stays_and_power_is_converted():
    decibels = np.array([-10.0, 3.0, -99.0], np.float32)[:, None, None]
    valid = np.array([True, True, False])[:, None, None]
    np.testing.assert_array_equal(in_decibels("a.tif", decibels, valid), decibels)
    power = np.array([0.1, 2.0, -1.0], np.float32)[:, None, None]
    np.testing.assert_allclose(in_decibels("a.tif", power, valid)[:2, 0, 0], [-10.0, 3.0103], rtol=1e-4)
    assert in_decibels("a.tif", np.zeros((1, 1, 1), np.float32), np.array(True)).item() == pytest.approx(-100.0)


def test_power_below_zero_where_noise_was_taken_off_is_no_decibel():
    power = np.array([0.1, -0.002], np.float32)[:, None, None]
    np.testing.assert_allclose(
        in_decibels("a.tif", power, np.ones((2, 1, 1), bool))[:, 0, 0], [-10.0, -100.0], rtol=1e-4
    )


@pytest.mark.parametrize("values", [np.int16([-1556, -800]), np.uint16([120, 900]), np.float32([-12, 3000]), [-500.0]])
def test_backscatter_in_other_units_is_refused(values):
    values = np.asarray(values)[:, None, None]
    with pytest.raises(ValueError, match=r"a\.tif: backscatter runs from .* expected dB or linear power"):
        in_decibels("a.tif", values, np.ones(values.shape, bool))
    assert in_decibels("a.tif", values, np.zeros(values.shape, bool)).shape == values.shape


def test_decibels_in_whole_numbers_stay():
    values = np.array([-15, 2], np.int16)[:, None, None]
    assert in_decibels("a.tif", values, np.ones((2, 1, 1), bool))[:, 0, 0].tolist() == [-15, 2]


def test_a_row():
    values = np.array([[0, 4, 8]], np.uint16)
    np.testing.assert_allclose(doubled(values), [[0, 1, 3, 5, 7, 8]] * 2)


def test_planes_stay_planes_and_leading_axes_are_kept():
    row, column = np.mgrid[0:8, 0:6]
    fine = doubled(np.stack([3 * row + column, -row])[None])
    assert fine.shape == (1, 2, 16, 12) and fine.dtype == np.float32
    row, column = np.mgrid[0:16, 0:12] / 2 - 0.25
    np.testing.assert_allclose(fine[0, 0, 1:-1, 1:-1], (3 * row + column)[1:-1, 1:-1])


def test_as_torch_does():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values), scale_factor=2, mode="bilinear")
    np.testing.assert_allclose(doubled(values), expected.numpy(), atol=1e-6)
