"""From native values to colours, on values whose colours are known."""

import numpy as np
import pytest

from data_pipelines.plots.colours import HATCH, decibels, hatched, limits, quantile_over_dates, stretched

EVERYWHERE = np.ones((1, 10, 10), np.bool_)


def ramp(low, high, dtype="int16"):
    return np.linspace(low, high, 100).round().astype(dtype).reshape(10, 10)


def test_black_and_white_are_percentiles_of_what_is_used():
    values = np.stack([ramp(0, 1000)] * 3)[None]
    values[0, :, 0, 0] = 30000  # a cloud
    use = EVERYWHERE.copy()
    use[0, 0, 0] = False
    low, high = limits(values, use, "reflectance")
    np.testing.assert_allclose(high - low, 980, atol=35)
    assert (stretched(values, low, high)[0, 0, 0] == 1).all()


def test_a_uniform_tile_keeps_its_colour():
    """Red and blue are 300, green is 600, each with little noise: the tile is green, not a mosaic."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(mean, 10, (10, 10)) for mean in (300, 600, 300)])[None].astype(np.int16)
    colours = stretched(values, *limits(values, EVERYWHERE, "reflectance"))
    red, green, blue = np.moveaxis(colours[0], -1, 0)
    assert (green > red).mean() > 0.95 and (green > blue).mean() > 0.95


def test_haze_over_the_blue_is_taken_off_most_of_it():
    values = np.stack([ramp(0, 1000), ramp(0, 1000), ramp(1000, 2000)])[None]
    low, high = limits(values, EVERYWHERE, "reflectance")
    assert low[2] > 600 and low[0] < 30
    np.testing.assert_allclose(high - low, (high - low)[0], rtol=1e-5)


def test_bytes_have_one_black_for_all_channels():
    values = np.stack([ramp(50, 150, "uint8"), ramp(70, 150, "uint8"), ramp(90, 150, "uint8")])[None]
    low, high = limits(values, EVERYWHERE, "bytes")
    assert len(set(low.tolist())) == len(set(high.tolist())) == 1


def test_radar_has_grey_in_the_middle_of_each_channel_and_is_not_blown_up():
    values = np.stack([ramp(-11, -10, "float32"), ramp(-18, -17, "float32")])[None]
    low, high = limits(values, EVERYWHERE, "decibel")
    np.testing.assert_allclose((low + high) / 2, [-10.5, -17.5], atol=0.1)
    np.testing.assert_allclose(high - low, 8)


@pytest.mark.parametrize("scale", ["bytes", "reflectance", "decibel"])
@pytest.mark.parametrize("value", [0, 7, -3, 1000])
def test_a_constant_image_is_grey(value, scale):
    values = np.full((1, 3, 10, 10), value, np.float32)
    colours = stretched(values, *limits(values, EVERYWHERE, scale))
    assert colours.min() >= 0 and colours.max() <= 1
    assert np.unique(colours).size == 1


def test_without_a_valid_pixel_there_is_still_a_picture():
    values = np.full((1, 3, 10, 10), np.nan, np.float32)
    colours = stretched(values, *limits(values, ~EVERYWHERE, "reflectance"))
    assert colours.shape == (1, 10, 10, 3) and (colours == 0).all()


def test_one_channel_becomes_grey():
    values = ramp(0, 100)[None, None]
    colours = stretched(values, *limits(values, EVERYWHERE, "reflectance"))
    assert colours.shape == (1, 10, 10, 3)
    np.testing.assert_array_equal(colours[..., 0], colours[..., 2])


def test_linear_power_becomes_decibels_and_decibels_stay():
    linear = np.array([[1.0, 0.1], [0.01, 0.0]], np.float32)[None, None]
    everywhere = np.ones(linear.shape, np.bool_)
    np.testing.assert_allclose(decibels(linear, everywhere)[0, 0], [[0, -10], [-20, -60]], atol=1e-4)
    np.testing.assert_array_equal(decibels(linear - 20, everywhere), linear - 20)


def test_amplitudes_in_digital_numbers_become_decibels_of_power():
    """Ten times the amplitude is a hundred times the power: 20 dB."""
    amplitude = np.array([[500.0, 5000.0], [5000.0, 0.0]], np.float32)[None, None]
    shown = decibels(amplitude, amplitude > 0)[0, 0]
    np.testing.assert_allclose(shown[0, 1] - shown[0, 0], 20, atol=1e-4)
    assert np.isfinite(shown).all()


def test_the_median_is_that_of_the_dates_to_use():
    values = np.array([10, 20, 30, 1000], np.int16).reshape(4, 1, 1, 1) * np.ones((1, 3, 2, 2), np.int16)
    use = np.ones((4, 2, 2), np.bool_)
    use[3] = False
    use[:, 1, 1] = False
    median, seen = quantile_over_dates(values, use, 0.5)
    assert median[:, 0, 0].tolist() == [20, 20, 20] and median[:, 1, 1].tolist() == [0, 0, 0]
    assert seen.tolist() == [[True, True], [True, False]]
    assert quantile_over_dates(values, use, 1.0)[0][0, 0, 0] == 30


def test_invalid_pixels_carry_stripes_of_both_colours():
    valid = np.ones((6, 6), np.bool_)
    valid[:3] = False
    image = hatched(np.zeros((6, 6, 3), np.float32), valid, display=120)
    assert image.shape == (120, 120, 3)
    np.testing.assert_allclose(np.unique(image[:60].reshape(-1, 3), axis=0), sorted(HATCH), atol=1e-6)
    assert (image[60:] == 0).all()


def test_large_images_keep_their_size():
    assert hatched(np.zeros((50, 70, 3), np.float32), np.ones((50, 70), np.bool_), display=60).shape == (50, 70, 3)
