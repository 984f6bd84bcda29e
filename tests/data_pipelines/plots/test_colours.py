"""Colours of sensors and labels: views, stretches, palettes and legends."""

import dataclasses
import datetime
import pathlib

import numpy as np
import pytest

from data_pipelines.plots.colours import (
    HATCH,
    decibels,
    hatched,
    legend_entries,
    limits,
    paint,
    quantile_over_dates,
    stretched,
    tile_label,
    view_of,
)
from data_pipelines.plots.gallery import draw_tile
from tests.data_pipelines.fake_reader import CARD, CELLS, MARGIN, FakeReader
from tests.data_pipelines.plots.figures import caught, collisions, legend_texts, texts

SHOWN = dataclasses.replace(CARD, natural_colour={"spot": (0, 1, 2), "s2": (2, 1, 0)}, clouds=("s2",))


@pytest.fixture
def example():
    one = FakeReader().example("train", "train0")
    return one | {"s2_cloud": np.zeros((len(one["s2"]), 1, CELLS, CELLS), np.uint8)}


def test_images_are_shown_as_batches_take_them(example):
    view = view_of(SHOWN, "spot", example)
    assert view.planes.shape == (1, 3, 40, 40) and view.days == ()
    np.testing.assert_array_equal(view.planes[0], example["spot"][:, MARGIN:-MARGIN, MARGIN:-MARGIN])
    assert view.how == "natural colour (R G B)" and view.scale == "bytes"


def test_natural_colour_takes_the_bands_of_the_card(example):
    view = view_of(SHOWN, "s2", example)
    np.testing.assert_array_equal(view.planes, example["s2"][:, [2, 1, 0]])
    assert view.how == "natural colour (B4 B3 B2)" and view.scale == "reflectance"
    np.testing.assert_array_equal(view.valid, example["s2_mask"][:, 0])


def test_dates_are_calendar_days(example):
    example["s2_dates"][:], example["s2_years"][:] = (0, 58, 59), (2019, 2020, 2020)
    expected = [datetime.date(2019, 1, 1), datetime.date(2020, 2, 28), datetime.date(2020, 2, 29)]
    assert list(view_of(SHOWN, "s2", example).days) == expected


def test_clouds_are_valid_but_not_clear(example):
    example["s2_mask"][:] = True
    example["s2_cloud"][1] = 80
    example["s2_cloud"][2, 0, :2] = 60
    view = view_of(SHOWN, "s2", example)
    assert view.valid.all() and view.clear.sum(axis=(1, 2)).tolist() == [16, 0, 8]
    np.testing.assert_allclose(view.cloud, [0, 80, 30])


def test_a_pixel_that_is_never_clear_is_judged_by_its_clouds(example):
    example["s2_mask"][:] = True
    example["s2_cloud"][:, 0, 0, 0] = 100
    view = view_of(SHOWN, "s2", example)
    assert view.best.all() and view.summary()[1].all()


def test_radar_is_shown_in_false_colour_with_its_ratio(example):
    """Both polarisations are read where both are valid; their ratio is the difference of the decibels."""
    example["s1-asc"] = np.full((2, 2, CELLS, CELLS), 0.1, np.float32)
    example["s1-asc"][:, 1] = 0.01
    view = view_of(SHOWN, "s1-asc", example)
    np.testing.assert_allclose(view.planes[0, :, 0, 0], [-10, -20, 10], atol=1e-3)
    assert not view.valid[0, 0, 0] and view.valid.sum() == 31
    assert view.how == "false colour (VV, VH, VV/VH; dB)"


def test_other_sensors_are_grey(example):
    view = view_of(SHOWN, "modis", example)
    assert view.how == "grey (B1)" and view.planes.shape == (5, 1, 1, 1) and view.is_pixel


def test_values_that_are_not_finite_are_not_valid(example):
    example["s1-asc_mask"][:] = True
    assert not view_of(SHOWN, "s1-asc", example).valid[0, 0, 0]


def test_a_missing_sensor_has_no_view(example):
    assert view_of(SHOWN, "s2", {"id": "a"}) is None


def test_dates_are_stretched_alike(example):
    """Two dates of which one is darker stay so, and a third, a cloud, is white."""
    example["s2_mask"][:] = True
    levels = np.array([300, 600, 9000], np.uint16).reshape(3, 1, 1, 1)
    noise = np.random.default_rng(0).integers(0, 100, example["s2"].shape)
    example["s2"][:] = levels + noise
    dark, bright, cloud = view_of(SHOWN, "s2", example).colours([0, 1, 2])
    assert dark.mean() < bright.mean() < 1 and (cloud == 1).all()


def test_one_date_is_shown_as_it_is(example):
    one = {key: value[:1] if key.startswith("s2") else value for key, value in example.items()}
    one["s2_mask"][:] = True
    colours, valid = view_of(SHOWN, "s2", one).summary()
    assert colours.shape == (CELLS, CELLS, 3) and valid.all()


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


COLOURS = ("#ff0000", "#00ff00", "#0000ff", *("#123456",) * 5)
COLOURED = dataclasses.replace(CARD, dense_colours=COLOURS)
HEIGHT = dataclasses.replace(
    CARD, dense_label="regression", dense_classes=(), dense_colours=(), label_unit="metres", arrays={"dense": "float32"}
)


def test_classes_have_their_official_colours_and_no_label_is_white():
    image = paint(COLOURED.dense_colours, np.array([[0, 1], [2, -1]], np.int8))
    assert image.tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]]


def test_a_class_number_may_stand_for_no_label():
    card = dataclasses.replace(COLOURED, ignore_label=1)
    assert paint(card.dense_colours, np.array([[1]], np.int8), card.ignore_label).tolist() == [[[1, 1, 1]]]
    assert legend_entries(card, np.array([[0, 1]], np.int8)) == [("a, 50%", "#ff0000"), ("no label, 50%", "#ffffff")]


def test_the_legend_has_the_classes_that_are_there_in_the_order_of_the_card():
    classes = np.full((20, 20), 2, np.int8)
    classes[0, 0] = 0
    assert legend_entries(COLOURED, classes) == [("a, < 1%", "#ff0000"), ("c, > 99%", "#0000ff")]


@pytest.mark.parametrize(
    ("changes", "value", "words"),
    [
        (dict(tile_label="class", tile_classes=("oak", "ash")), np.int32(1), "ash"),
        (dict(tile_label="multi_label", tile_classes=("oak", "ash")), np.array([1, 1], np.uint8), "oak, ash"),
        (dict(tile_label="multi_label", tile_classes=("a, b", "c")), np.array([1, 1], np.uint8), '"a, b", c'),
        (dict(tile_label="multi_label", tile_classes=("oak", "ash")), np.zeros(2, np.uint8), "none of the classes"),
        (dict(tile_label="regression", label_unit="t/ha"), np.float32(12.3456), "12.35 t/ha"),
        (dict(tile_label="none"), None, ""),
    ],
)
def test_the_label_of_the_tile_in_words(changes, value, words):
    assert tile_label(dataclasses.replace(CARD, **changes), {"tile": value}) == words


def draw(monkeypatch, card, **changes):
    example = FakeReader().example("train", "train0") | changes
    with caught(monkeypatch) as figures:
        draw_tile(pathlib.Path("x.png"), card, "train", "train0", example)
    return figures[0]


def test_a_regression_has_a_colour_bar_with_its_unit_and_hatches_what_has_no_label(monkeypatch):
    dense = np.linspace(5, 30, CELLS * CELLS, dtype=np.float32).reshape(CELLS, CELLS)
    dense[0, 0] = np.nan
    figure = draw(monkeypatch, HEIGHT, dense=dense)
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["metres"]
    assert "10 m, map of numbers" in texts(figure)
    assert collisions(figure) == ([], [])


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_a_regression_without_contrast_is_drawn(monkeypatch, value):
    figure = draw(monkeypatch, HEIGHT, dense=np.full((CELLS, CELLS), value, np.float32))
    assert "10 m, map of numbers" in texts(figure)


def test_many_classes_fit_beside_the_map(monkeypatch):
    names = tuple(f"a class with a name, {number}" for number in range(20))
    card = dataclasses.replace(CARD, dense_classes=names, dense_colours=("#336699",) * 20)
    figure = draw(monkeypatch, card, dense=(np.arange(16).reshape(4, 4) + 4).astype(np.int8))
    shown = [text for text in legend_texts(figure) if text.startswith("a class with")]
    assert len(shown) == 16 and collisions(figure) == ([], [])
