import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from anysat_jax.sensors import SENSORS, Sensor
from anysat_jax.validate import check_patch_size, fitting_patch_sizes, to_batch
from tests.validate.fakes import ALL, make_data

SPATIAL = [name for name in ALL if name != "modis"]


def refused(data, patch_size, *messages):
    with pytest.raises(ValueError, match=re.escape(messages[0])) as error:
        to_batch(data, patch_size, ALL)
    for message in messages[1:]:
        assert message in str(error.value)


def test_sensors_that_disagree_on_the_extent_are_refused_in_metres():
    data = make_data("s2") | {"aerial": np.zeros((2, 4, 304, 300))}
    refused(
        data,
        10,
        "'s2' covers 60 x 60 m (6 x 6 pixels of 10 m), but 'aerial' covers 60.8 x 60 m (304 x 300 pixels of 0.2 m)",
        "Crop or resample",
    )


@pytest.mark.parametrize("extent", [20.0, (40.0, 20.0), 120.0])
def test_fine_and_coarse_pixels_agree(extent):
    batch = to_batch(make_data("aerial", "naip", "s2", extent=extent), 10, ALL)
    assert batch.grid == tuple(round(side / 10) for side in (extent if isinstance(extent, tuple) else (extent,) * 2))


def test_a_context_sensor_alone_is_refused():
    data = {"modis": np.zeros((1, 3, 7, 1, 1)), "modis_dates": [[0, 100, 200]]}
    refused(data, 10, "only context sensors are given (modis)", "give at least one image or series")


def test_a_patch_that_does_not_divide_the_tile_is_refused():
    refused(
        make_data("s2", "s1"),
        40,
        "a patch of 40 m does not divide the tile (60 x 60 m, height x width)",
        "Patch sizes that fit this tile and its sensors (s2, s1): 10, 20, 30, 60 m",
    )


def test_both_sides_count():
    refused(make_data(extent=(60.0, 40.0)), 30, "does not divide the tile (60 x 40 m", "(s2): 10, 20 m")


def test_a_patch_larger_than_the_tile_is_refused():
    refused(make_data(), 120, "a patch of 120 m is larger than the tile (60 x 60 m", "10, 20, 30, 60 m")
    refused(make_data(extent=(60.0, 20.0)), 60, "a patch of 60 m is larger than the tile (60 x 20 m")


def test_a_patch_finer_than_the_pixels_is_refused():
    refused(make_data(), 5, "a patch of 5 m is not a whole number of 's2' pixels of 10 m")
    refused(make_data("spot"), 4, "a patch of 4 m is not a whole number of 'spot' sub-patches (10 pixels) of 10 m")


def test_thirty_metre_sensors_want_multiples_of_thirty():
    refused(
        make_data("s2", "alos", extent=120.0),
        20,
        "a patch of 20 m is not a whole number of 'alos' pixels of 30 m",
        "(s2, alos): 30, 60, 120 m",
        "'alos' has pixels of 30 m and needs patches of multiples of 30 m; for finer ones, resample it",
    )


def test_a_tile_that_no_patch_fits_is_told_to_be_cropped():
    data = make_data("spot", extent=60.0)
    data["spot"] = data["spot"][:, :, :55]
    refused(data, 10, "does not divide the tile (55 x 60 m", "No patch size fits this tile and its sensors (spot)")


@pytest.mark.parametrize("patch_size", [0, -10, float("nan"), float("inf"), 1e305, 10**400])
def test_a_patch_size_is_a_positive_number(patch_size):
    refused(make_data(), patch_size, f"patch_size is {patch_size}; it must be a positive number of metres")


def test_a_patch_size_is_a_number():
    for patch_size in ("10", None, True):
        with pytest.raises(TypeError, match=f"patch_size is {patch_size!r}; it must be a number of metres"):
            to_batch(make_data(), patch_size, ALL)
    assert to_batch(make_data(), np.int32(10), ALL).patch_size == 10.0


def test_one_pixel_tiles_are_fine():
    assert to_batch(make_data("s2", "modis", extent=10.0), 10, ALL).grid == (1, 1)


def test_context_sensors_do_not_limit_the_patch_size():
    assert fitting_patch_sizes((60, 60), ("s2", "modis")) == [10, 20, 30, 60]
    assert fitting_patch_sizes((60, 60), ("aerial",)) == [2, 4, 6, 10, 12, 20, 30, 60]


def test_pixels_that_are_not_exact_in_binary(monkeypatch):
    monkeypatch.setitem(SENSORS, "drone", Sensor("drone", "image", ("R",), 0.3, subpatch_pixels=7))
    assert fitting_patch_sizes((6.3, 12.6), ("drone",)) == [2.1, 6.3]
    check_patch_size(2.1, (21 * 0.3, 42 * 0.3), ("drone",))


@hypothesis.given(
    sensors=st.sets(st.sampled_from(SPATIAL), min_size=1),
    cells=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    patch_size=st.sampled_from([2, 5, 8, 10, 15, 20, 30, 40, 60, 90, 120]),
)
def test_what_is_advised_is_what_is_allowed(sensors, cells, patch_size):
    extent, names = (10.0 * cells[0], 10.0 * cells[1]), tuple(sorted(sensors))
    sizes = fitting_patch_sizes(extent, names)
    for size in sizes:
        check_patch_size(size, extent, names)
        assert all(SENSORS[name].subpatches_per_side(size) >= 1 for name in names)
    if patch_size not in sizes:
        with pytest.raises(ValueError, match="patch"):
            check_patch_size(patch_size, extent, names)
