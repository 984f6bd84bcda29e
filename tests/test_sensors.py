import re

import pytest

from anysat_jax.sensors import GEOPLEX_SENSORS, SENSORS, Sensor, get_sensor, register, whole_number


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, so that what a test registers is forgotten."""
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))


def test_the_eleven():
    assert len(GEOPLEX_SENSORS) == 11
    assert [SENSORS[name].num_bands for name in GEOPLEX_SENSORS] == [4, 5, 3, 4, 10, 2, 3, 3, 6, 11, 7]
    assert [SENSORS[name].subpatch_metres for name in GEOPLEX_SENSORS] == [2, 2, 10, 10, 10, 10, 10, 30, 30, 10, 250]
    assert [name for name in GEOPLEX_SENSORS if not SENSORS[name].has_dates] == [
        "aerial",
        "aerial-flair",
        "spot",
        "naip",
    ]
    assert [name for name in GEOPLEX_SENSORS if SENSORS[name].kind == "context"] == ["modis"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name=""), "sensor name '' must not be empty"),
        (dict(name="my_mask"), "sensor name 'my_mask' must not be empty or end like the key of dates or a mask"),
        (dict(name="my_dates"), "sensor name 'my_dates' must not"),
        (dict(kind="video"), "sensor 'mine': kind is 'video'; it must be 'image', 'series' or 'context'"),
        (dict(bands=()), "sensor 'mine': bands is empty"),
        (dict(metres_per_pixel=0.0), "sensor 'mine': metres_per_pixel is 0.0; it must be positive"),
        (dict(metres_per_pixel=float("nan")), "sensor 'mine': metres_per_pixel is nan"),
        (dict(subpatch_pixels=0), "sensor 'mine': subpatch_pixels is 0; images take 1 or more, series exactly 1"),
        (dict(kind="series", subpatch_pixels=2), "sensor 'mine': subpatch_pixels is 2"),
    ],
)
def test_records_are_checked(fields, message):
    good = dict(name="mine", kind="image", bands=("R",), metres_per_pixel=1.0)
    Sensor(**good)
    with pytest.raises(ValueError, match=re.escape(message)):
        Sensor(**(good | fields))


def test_a_sensor_is_registered_once(registry):
    mine = Sensor("mine", "image", ("R",), 1.0)
    assert register(mine) is mine
    assert register(Sensor("mine", "image", ("R",), 1.0)) == mine
    assert get_sensor("mine") is mine
    with pytest.raises(ValueError, match=r"sensor 'mine' is already registered as .*; choose another name"):
        register(Sensor("mine", "image", ("R", "G"), 1.0))


def test_an_unknown_sensor():
    with pytest.raises(ValueError, match=r"unknown sensor 'sentinel'; known sensors: aerial, .*register adds one"):
        get_sensor("sentinel")


@pytest.mark.parametrize(
    ("name", "extent", "pixels", "patch_size", "subpatches"),
    [("aerial", 60, 300, 20, 10), ("naip", 640, 512, 40, 4), ("alos", 120, 4, 60, 2), ("modis", 120, 1, 30, 1)],
)
def test_lengths(name, extent, pixels, patch_size, subpatches):
    assert SENSORS[name].pixels(extent) == pixels
    assert SENSORS[name].subpatches_per_side(patch_size) == subpatches


def test_lengths_that_are_not_whole():
    with pytest.raises(ValueError, match=r"a patch of 20 m is not a whole number of 'alos' sub-patches of 30 m"):
        SENSORS["alos"].subpatches_per_side(20)
    with pytest.raises(ValueError, match=r"an extent of 55 m is not a whole number of 's2' pixels of 10 m"):
        SENSORS["s2"].pixels(55)


def test_whole_numbers_up_to_rounding():
    assert whole_number(60 / 0.2) == 300
    assert whole_number(102.4 / 0.2) == 512
    assert whole_number(0.5) is None
