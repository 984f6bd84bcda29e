import re

import numpy as np
import pytest

from anysat_jax.sensors import SENSORS, Sensor
from anysat_jax.validate import to_batch
from tests.validate.fakes import ALL, make_data


def refused(data, message, sensors=ALL):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_batch(data, 10, sensors)


def test_a_batch_keeps_what_it_was_given():
    data = make_data("s2", "aerial", extent=(60.0, 40.0))
    batch = to_batch(data, 20, ALL)
    assert (batch.batch_size, batch.grid, batch.patch_size, batch.labels) == (2, (3, 2), 20.0, {})
    assert set(batch.observations) == {"s2", "aerial"}
    np.testing.assert_array_equal(batch.observations["s2"].values, data["s2"])
    np.testing.assert_array_equal(batch.observations["s2"].dates, data["s2_dates"])
    assert batch.observations["aerial"].dates is None


def test_an_unknown_sensor_is_refused():
    refused({"sentinel": np.zeros(1)}, "unknown sensor 'sentinel' in data. Keys are the model's sensors, aerial, ")
    refused(make_data() | {"areal": np.zeros(1)}, "unknown sensor 'areal' in data (did you mean 'aerial'?)")
    refused({0: np.zeros(1)}, "unknown sensor 0")


def test_other_keys_are_refused():
    refused(make_data() | {"label": np.zeros(2)}, "unknown sensor 'label' in data")
    refused(make_data() | {"s2_date": np.zeros(2)}, "unknown sensor 's2_date' in data")
    refused(make_data() | {"s3_dates": np.zeros(2)}, "unknown sensor 's3' in data")


def test_a_sensor_that_the_model_lacks_is_refused():
    refused(make_data("s2", "s1"), "the model has no sensor 's1'; it has s2, aerial.", ("s2", "aerial"))


@pytest.mark.parametrize("suffix", ["dates", "mask", "date_mask", "present"])
def test_companions_of_a_sensor_that_is_not_there_are_refused(suffix):
    refused(make_data() | {f"l8_{suffix}": np.ones((2, 4))}, f"data has 'l8_{suffix}' but no 'l8'")


def test_nothing_is_refused():
    refused({}, "data is empty; give at least one of the model's sensors: aerial, ")


def test_something_else_than_a_dict_is_refused():
    with pytest.raises(TypeError, match="data is a ndarray; expected a dict of arrays by sensor name"):
        to_batch(np.zeros((1, 4, 10, 10)), 10, ALL)


def test_batch_sizes_that_differ_are_refused():
    data = make_data("s2", batch_size=3) | make_data("spot")
    refused(data, "batch sizes differ: 's2' has 3 tiles, 'spot' has 2; where a tile lacks a sensor")


def test_a_tile_without_any_sensor_is_refused():
    data = make_data("s2", "spot", "modis")
    data |= {"s2_present": np.array([True, False]), "spot_present": np.array([False, False])}
    refused(data, "tile 1 has no image or series")
    data["spot_present"] = np.array([False, True])
    observations = to_batch(data, 10, ALL).observations
    assert observations["s2"].present.tolist() == [True, False]
    assert observations["modis"].present is None


def test_a_sensor_of_ones_own(monkeypatch):
    monkeypatch.setitem(SENSORS, "rapideye", Sensor("rapideye", "series", ("R", "G", "B"), 5.0, date_period=367.0))
    batch = to_batch(make_data("rapideye", "s2"), 10, ("rapideye", "s2"))
    assert batch.observations["rapideye"].values.shape == (2, 4, 3, 12, 12)
