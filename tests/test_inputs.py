"""Arrays of xarray and dicts of bands: what is made of them is their plain form."""

import itertools
import re

import numpy as np
import pytest
import xarray as xr

from anysat_jax.inputs import plain_data
from anysat_jax.sensors import SENSORS
from anysat_jax.validate import to_batch

DAYS = np.array(["2021-03-02", "2021-06-11", "2021-09-21"], "datetime64[ns]")
BANDS = SENSORS["s2"].bands
EAST, NORTH = 600_005.0 + 10 * np.arange(6), 5_400_055.0 - 10 * np.arange(6)


@pytest.fixture
def plain():
    """A tile of 60 m, (T, C, H, W) and (C, H, W)."""
    rng = np.random.default_rng(0)
    return {"s2": rng.standard_normal((3, 10, 6, 6), np.float32), "spot": rng.standard_normal((3, 60, 60), np.float32)}


def s2(plain, **coordinates):
    coords = {"time": DAYS, "band": [f"B{band[1:]:0>2}" for band in BANDS], "y": NORTH, "x": EAST} | coordinates
    coords = {name: one for name, one in coords.items() if one is not None}
    return xr.DataArray(plain["s2"], coords, ("time", "band", "y", "x"))


def spot(plain):
    coords = {"band": ["red", "green", "blue"], "y": 5_400_059.5 - np.arange(60), "x": 600_000.5 + np.arange(60)}
    return xr.DataArray(plain["spot"], coords, ("band", "y", "x"))


def batch(data):
    return to_batch(data, 10, ("s2", "spot"))


def same(found, expected):
    for name, one in expected.observations.items():
        other = found.observations[name]
        np.testing.assert_array_equal(other.values, one.values)
        np.testing.assert_array_equal(other.dates, one.dates)
        valid = [True if mask is None else mask for mask in (other.pixel_mask, one.pixel_mask)]
        np.testing.assert_array_equal(*np.broadcast_arrays(*valid))
        assert (other.date_mask is None) == (one.date_mask is None) and other.values.dtype == np.float32


@pytest.fixture
def expected(plain):
    return batch({"s2": plain["s2"][None], "s2_dates": DAYS[None], "spot": plain["spot"][None]})


@pytest.mark.parametrize("order", list(itertools.permutations(("time", "band", "y", "x")))[::5])
def test_dimensions_may_be_in_any_order(plain, expected, order):
    same(batch({"s2": s2(plain).transpose(*order), "spot": spot(plain)}), expected)


CHANGES = {
    "south first": lambda a: a.isel(y=slice(None, None, -1)),
    "east first": lambda a: a.isel(x=slice(None, None, -1)),
    "bands in another order": lambda a: a.isel(band=[3, 9, 0, 1, 2, 4, 8, 7, 6, 5]),
    "more bands": lambda a: xr.concat([a.isel(band=[0]).assign_coords(band=["SCL"]), a], "band"),
    "one tile": lambda a: a.expand_dims("tile"),
    "names of dimensions": lambda a: a.rename(time="T", band="bands_s2", y="y_s2", x="easting"),
    "a variable for each band": lambda a: a.to_dataset("band"),
    "names of catalogues": lambda a: a.assign_coords(
        band=["blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22"]
    ),
    "no coordinates of pixels": lambda a: a.drop_vars(["x", "y"]),
    "names as of rasterio": lambda a: a.assign_coords(band=range(1, 11)).assign_attrs(long_name=BANDS),
    "dates of another precision": lambda a: a.assign_coords(time=DAYS.astype("datetime64[s]")),
    "a dict of bands": lambda a: {band: a.sel(band=band, drop=True) for band in reversed(a.band.values.tolist())},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_labelled_differently_is_the_same(plain, expected, change):
    same(batch({"s2": CHANGES[change](s2(plain)), "spot": spot(plain)}), expected)


def test_a_dataset_may_have_a_variable_for_each_sensor(plain, expected):
    dataset = xr.Dataset(
        {"s2": s2(plain), "spot": spot(plain).rename(band="band_spot", y="y_spot", x="x_spot").transpose("x_spot", ...)}
    )
    same(batch(dataset), expected)


def test_several_tiles_and_companions(plain):
    rng = np.random.default_rng(1)
    both, mask = np.stack([plain["s2"], -plain["s2"]]), rng.random((2, 3, 6, 6)) > 0.3
    array = xr.concat([s2(plain), -s2(plain)], "tile")
    labelled = xr.DataArray(mask, {"time": DAYS, "y": NORTH, "x": EAST}, ("tile", "time", "y", "x"))
    found = batch({"s2": array.isel(y=slice(None, None, -1)), "s2_mask": labelled.transpose("y", "x", ...)})
    same(found, batch({"s2": both, "s2_dates": np.stack([DAYS] * 2), "s2_mask": mask}))
    for wrong, problem in (
        (mask, "has no coordinates, and those of 's2' decide the order of its pixels"),
        (labelled.isel(time=[1, 0, 2]), "has other coordinates than its values"),
        (labelled.drop_vars("y"), "has other coordinates than its values"),
    ):
        with pytest.raises(ValueError, match=f"'s2_mask' {problem}; give a mask of xarray made of them"):
            batch({"s2": array, "s2_mask": wrong})
    given = batch({"s2": array, "s2_dates": [[1, 2, 3], [4, 5, 6]]})
    assert given.observations["s2"].dates.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_bands_of_numpy_by_name(plain, expected):
    bands = {band: plain["s2"][None, :, number] for number, band in enumerate(BANDS)}
    same(batch({"s2": dict(reversed(bands.items())), "s2_dates": DAYS[None], "spot": plain["spot"][None]}), expected)


@pytest.mark.parametrize("name", ["_FillValue", "nodata", "missing_value"])
def test_missing_pixels_are_masked(plain, name):
    array = s2(plain)
    array[0, 2, 1, 1], array[1, 3] = np.nan, -9999
    hidden = np.isnan(array.values) | (array.values == -9999)
    by_hand = {"s2": np.where(hidden, 0, plain["s2"])[None], "s2_dates": DAYS[None], "s2_mask": ~hidden[None]}
    masked = {"s2": np.ma.masked_array(array.values, hidden)[None], "s2_dates": DAYS[None]}
    for found in ({"s2": array.assign_attrs({name: -9999})}, masked):
        same(batch(found), batch(by_hand))


def test_an_image_may_have_one_date_and_a_series_a_single_one(plain, expected):
    dated = spot(plain).expand_dims(time=DAYS[:1])
    same(batch({"s2": s2(plain), "spot": dated}), expected)
    one = batch({"s2": s2(plain).isel(time=0)})  # whose date is a coordinate without a dimension
    same(one, batch({"s2": plain["s2"][None, :1], "s2_dates": DAYS[None, :1]}))


WRONG = {
    "'s2' lacks the bands B5, B12; there are B02, B03": lambda a: a.isel(band=[0, 1, 2, 4, 5, 6, 7, 8]),
    "'s2' has the band 'B2' more than once; there are B02, blue": lambda a: xr.concat(
        [a.isel(band=[0]), a.isel(band=[0]).assign_coords(band=["blue"]), a.isel(band=slice(1, None))], "band"
    ),
    "'s2' has bands without names ('band': 1, 2, 3": lambda a: a.assign_coords(band=range(1, 11)),
    "('band': no coordinate), and their order is not guessed: array.assign_coords(band=[...])": lambda a: a.drop_vars(
        "band"
    ),
    "'s2' has no dimension of bands, only time, y, x": lambda a: a.isel(band=0),
    "of which 'orbit' is unknown; expected tile, time, band, y, x, in any order": lambda a: a.rename(band="orbit"),
    "'time' is one more of 'time', beside 'date'": lambda a: a.expand_dims("date"),
    "'s2' has no dimension 'x'; it has time, band, y": lambda a: a.isel(x=0),
    "'s2' needs dates as coordinate 'time' (datetime64); it has none": lambda a: a.drop_vars("time"),
    "it has int64 there: assign them, array.assign_coords(time=...), or give s2_dates": lambda a: a.assign_coords(
        time=[1, 2, 3]
    ),
    "'s2' has pixels of 20 along 'x'; the sensor's are of 10 m: resample the array": lambda a: a.assign_coords(
        x=600_005.0 + 20 * np.arange(6)
    ),
    "'s2' has pixels of unequal steps along 'y'": lambda a: a.assign_coords(y=np.arange(6.0) ** 2),
    "degrees are reprojected to a metric grid, such as UTM": lambda a: a.assign_coords(x=8 + EAST * 1e-6),
    "'s2' has bands of different shapes: {'B02': (1, 3, 6, 6), 'B03': (1, 3, 6, 3)": lambda a: {
        band: a.sel(band=band, drop=True)[..., : 6 if band == "B02" else 3] for band in a.band.values.tolist()
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_named(plain, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plain_data({"s2": WRONG[message](s2(plain))})


def test_an_image_with_dates_and_radar_without_its_ratio(plain):
    with pytest.raises(ValueError, match=r"'spot' has 3 dates, and 'spot' is an image.*array\.isel\(time=0\)"):
        plain_data({"spot": spot(plain).expand_dims(time=DAYS)})
    radar = s2(plain).isel(band=[0, 1]).assign_coords(band=["vv", "vh"])
    with pytest.raises(
        ValueError, match=r"'s1' lacks the bands VV/VH; there are vv, vh: it is the first less the second"
    ):
        plain_data({"s1": radar})


def test_sensors_of_different_ground_are_refused(plain):
    moved = spot(plain).assign_coords(x=600_020.5 + np.arange(60))
    message = r"'s2' and 'spot' cover different ground: x \(600000.0, 600060.0\) and \(600020.0, 600080.0\), y .*; crop"
    with pytest.raises(ValueError, match=message):
        plain_data({"s2": s2(plain), "spot": moved})
    other = moved.assign_coords(spatial_ref=xr.DataArray(0, attrs={"crs_wkt": "another"}))
    assert plain_data({"s2": s2(plain), "spot": other}).keys() == {"s2", "s2_dates", "spot"}
