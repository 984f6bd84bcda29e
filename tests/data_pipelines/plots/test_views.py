"""What is shown of a sensor: bands, masks, clouds, dates, the part that batches take."""

import dataclasses
import datetime

import numpy as np
import pytest

from data_pipelines.plots.colours import view_of
from tests.data_pipelines.fake_reader import CARD, CELLS, MARGIN, FakeReader

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
