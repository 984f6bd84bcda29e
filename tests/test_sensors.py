"""The sensors' records, and joining the registry."""

import dataclasses

import pytest

from anysat_jax import sensors
from anysat_jax.sensors import (
    GEOPLEX_SENSORS,
    SENSORS,
    Sensor,
    get_sensor,
    nearest_bands,
    nearest_sensor,
    register,
    whole_number,
)


def test_the_eleven_sensors() -> None:
    expected = {
        "aerial": ("image", 4, 2.0),
        "aerial-flair": ("image", 5, 2.0),
        "spot": ("image", 3, 10.0),
        "naip": ("image", 4, 10.0),
        "s2": ("series", 10, 10.0),
        "s1-asc": ("series", 2, 10.0),
        "s1": ("series", 3, 10.0),
        "alos": ("series", 3, 30.0),
        "l7": ("series", 6, 30.0),
        "l8": ("series", 11, 10.0),
        "modis": ("context", 7, 250.0),
    }
    found = {
        name: (SENSORS[name].kind, SENSORS[name].num_bands, SENSORS[name].subpatch_metres)
        for name in sensors.GEOPLEX_SENSORS
    }
    assert found == expected


def test_a_sensor_joins_with_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "SENSORS", dict(SENSORS))
    drone = Sensor("drone", "image", ("R", "G", "B"), 0.05, subpatch_pixels=20)
    assert register(drone) is register(drone)
    assert get_sensor("drone").subpatches_per_side(10) == 10
    with pytest.raises(ValueError, match="already registered"):
        register(Sensor("drone", "image", ("R",), 0.05))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "x_dates"}, "must not be empty or end"),
        ({"kind": "video"}, "'image', 'series' or 'context'"),
        ({"bands": ()}, "at least one band"),
        ({"metres_per_pixel": -1.0}, "must be positive"),
        ({"name": "a/b"}, "must not contain a slash or a space"),
        ({"kind": "series", "date_period": 0.0}, "date_period is 0.0; it must be a positive number"),
        ({"kind": "series", "subpatch_pixels": 2}, "series exactly 1"),
        ({"bands": "RGB"}, "bands is 'RGB'; it must be a tuple of names"),
        ({"bands": (1, 2)}, r"bands is \(1, 2\); it must be a tuple of names"),
        ({"metres_per_pixel": "10"}, "metres_per_pixel is '10'; it must be a number"),
        ({"subpatch_pixels": 2.5}, "subpatch_pixels is 2.5; it must be a whole number"),
        ({"dropout": True}, "dropout is True; it must be a number"),
        ({"name": 2}, "name is 2; it must be a text"),
        ({"wavelengths_nm": (490, 560)}, r"wavelengths_nm is \(490, 560\); it must have a number .* bands R, 0 for"),
        ({"wavelengths_nm": (-1.0,)}, "wavelengths_nm is "),
        ({"wavelengths_nm": 490.0}, "wavelengths_nm is 490.0"),
    ],
)
def test_impossible_records_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sensor(**({"name": "x", "kind": "image", "bands": ("R",), "metres_per_pixel": 1.0} | fields))


def test_unknown_sensor_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown sensor 'landsat'; known sensors: aerial, .*modis"):
        get_sensor("landsat")


def test_sizes_in_metres() -> None:
    assert get_sensor("aerial").pixels(60) == 300
    assert get_sensor("naip").pixels(640) == 512
    assert get_sensor("modis").pixels(120) == get_sensor("modis").subpatches_per_side(30) == 1
    with pytest.raises(ValueError, match="not a whole number of 'l7' sub-patches of 30 m"):
        get_sensor("l7").subpatches_per_side(40)
    with pytest.raises(ValueError, match="not a whole number of 's2' pixels"):
        get_sensor("s2").pixels(15)
    assert whole_number(60 / 0.2) == 300 and whole_number(1.5) is None


def test_wavelengths_decide_first_values_alone() -> None:
    """Records of files from before the field are of the same sensor."""
    assert dataclasses.replace(get_sensor("s2"), wavelengths_nm=()) == get_sensor("s2")
    assert Sensor("x", "image", ("a",), 1.0, wavelengths_nm=[500]).wavelengths_nm == (500,)  # as read from JSON
    for name in ("s2", "l7", "l8", "modis", "hls", "spot", "planet"):
        assert len(get_sensor(name).wavelengths_nm) == get_sensor(name).num_bands


def test_bands_are_near_by_wavelength_polarisation_or_name() -> None:
    s2, hls, l8 = map(get_sensor, ("s2", "hls", "l8"))
    assert [s2.bands[i] for i in nearest_bands(hls, s2)] == list(hls.bands)
    # The red edge: two of its three bands are nearer to red than to the near infrared.
    assert [hls.bands[i] for i in nearest_bands(s2, hls)[3:8]] == ["B4", "B4", "B8A", "B8A", "B8A"]
    thermal = nearest_bands(l8, s2)[-2:]
    assert thermal == (None, None)  # far from any light of Sentinel-2
    assert nearest_bands(get_sensor("alos"), get_sensor("s1")) == (0, 1, 2)
    assert nearest_bands(get_sensor("aerial-flair"), get_sensor("spot")) == (0, 1, 2, 0, None)


@pytest.mark.parametrize(
    ("new", "source"),
    [("hls", "l7"), ("planet", "spot"), ("l7", "l8"), ("aerial-flair", "aerial"), ("s1-asc", "s1"), ("alos", "s1")],
)
def test_the_nearest_sensor(new: str, source: str) -> None:
    found = nearest_sensor(get_sensor(new), (name for name in GEOPLEX_SENSORS if name != new))
    assert found is get_sensor(source)


def test_no_sensor_is_near() -> None:
    assert nearest_sensor(get_sensor("planet"), ("s2", "s1")) is None  # an image among series
    assert nearest_sensor(get_sensor("s1"), ("s2", "l7")) is None
    assert nearest_sensor(Sensor("gas", "series", ("CH4",), 10.0), GEOPLEX_SENSORS) is None
