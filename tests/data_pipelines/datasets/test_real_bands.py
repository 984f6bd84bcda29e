"""Canonical band order and units on real bytes: Landsat 7 and 8 from single-band GeoTIFFs, and a CropHarvest stack."""

import datetime

import numpy as np
import pytest
import rasterio

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import pick_bands, with_ratio_of_decibels
from data_pipelines.card import DatasetCard
from data_pipelines.dates import day_fields, parse_day
from data_pipelines.prepare.records import check_example
from data_pipelines.rasters import read_raster

L8 = "LC08_L1TP_195025_20130707_20170503_01_T1"
L7 = "LE07_L1TP_195025_20010730_20170204_01_T1"
L8_FILES = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11")
L7_FILES = ("B1", "B2", "B3", "B4", "B5", "B6_VCID_1", "B6_VCID_2", "B7", "B8")
LANDSAT_CARD = DatasetCard(
    name="landsat", title="", sensors=("l8", "l7"), extent=1230.0, patch_sizes=(30,), splits=("train",),
    arrays={"l8": "int16", "l7": "int16"}, georeferenced="l7",
)  # fmt: skip

MONTH = ("VV", "VH", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
WEATHER = ("temperature_2m", "total_precipitation")
CROP_CARD = DatasetCard(
    name="cropharvest", title="", sensors=("s2", "s1"), extent=170.0, patch_sizes=(10,), splits=("train",),
    arrays={"s2": "float32", "s1": "float32"}, georeferenced="s2",
)  # fmt: skip


def read_band(folder, product, band):
    """One band of a Landsat product at its own resolution: 41 pixels of 30 m, or 82 of 15 m for the panchromatic."""
    side = 82 if band == "B8" else 41
    return read_raster(folder / f"{product}_{band}.TIF", (1, side, side), "int16", "a Landsat band as a GeoTIFF")


def on_grid(band, pixel):
    """Nearest pixels on a grid over the same 1230 m."""
    side = round(1230 / pixel)
    index = ((np.arange(side) + 0.5) * len(band) / side).astype(int)
    return band[index][:, index]


def read_landsat(folder, product, files, sensor):
    pixel = get_sensor(sensor).metres_per_pixel
    stack = np.stack([on_grid(read_band(folder, product, band)[0][0], pixel) for band in files])
    day = parse_day(product.split("_")[3], product)
    return {sensor: pick_bands(stack, files, get_sensor(sensor).bands)[None], **day_fields(sensor, [day])}


@pytest.fixture(scope="module")
def landsat_folder(real_data):
    return real_data / "r_satellite" / "inst" / "extdata"


@pytest.fixture(scope="module")
def landsat(landsat_folder):
    example = read_landsat(landsat_folder, L8, L8_FILES, "l8") | read_landsat(landsat_folder, L7, L7_FILES, "l7")
    return {"id": "marburg", **read_band(landsat_folder, L7, "B1")[1], **example}


def constants(folder, product):
    """The numbers of the product's metadata file."""
    lines = (line.partition("=") for line in (folder / f"{product}_MTL.txt").read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def reflectance(folder, product, band, numbers):
    facts, number = constants(folder, product), band.removeprefix("B")
    return float(facts[f"REFLECTANCE_MULT_BAND_{number}"]) * numbers + float(facts[f"REFLECTANCE_ADD_BAND_{number}"])


def correlation(one, other):
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_landsat_fits_the_sensors(landsat):
    check_example(LANDSAT_CARD, "marburg", landsat)
    assert landsat["l8"].shape == (1, 11, 123, 123) and landsat["l7"].shape == (1, 6, 41, 41)
    assert (landsat["l8_dates"].tolist(), landsat["l8_years"].tolist()) == ([187], [2013])  # 7 July
    assert (landsat["l7_dates"].tolist(), landsat["l7_years"].tolist()) == ([210], [2001])  # 30 July
    assert landsat["crs"] == "EPSG:32632" and landsat["transform"][0] == 30


@pytest.mark.parametrize(("product", "sensor"), [(L8, "l8"), (L7, "l7")])
def test_each_channel_is_the_file_of_its_name(landsat_folder, landsat, product, sensor):
    for channel, band in enumerate(get_sensor(sensor).bands):
        own = read_band(landsat_folder, product, band)[0][0]
        values = landsat[sensor][0, channel]
        assert set(np.unique(values)) <= set(np.unique(own)), band
        assert abs(float(values.mean()) - own.mean()) < 0.02 * own.mean()


def test_the_panchromatic_band_comes_first(landsat):
    """It sees green and red, which it resembles most, and neither infrared nor heat."""
    bands, pixels = get_sensor("l8").bands, landsat["l8"][0]
    like = {band: correlation(pixels[0], pixels[bands.index(band)]) for band in bands[1:]}
    assert max(like, key=like.get) in ("B3", "B4") and max(like.values()) > 0.8 > like["B5"]


@pytest.mark.parametrize(("product", "sensor", "red", "infrared"), [(L8, "l8", "B4", "B5"), (L7, "l7", "B3", "B4")])
def test_plants_are_bright_in_the_infrared_and_reflectances_are_possible(
    landsat_folder, landsat, product, sensor, red, infrared
):
    bands = get_sensor(sensor).bands
    values = {
        band: reflectance(landsat_folder, product, band, landsat[sensor][0, bands.index(band)].astype(np.float64))
        for band in bands
        if band not in ("B10", "B11")
    }
    assert all(v.min() > -0.01 and v.max() < 0.7 for v in values.values())
    assert values[infrared].mean() > 2 * values[red].mean()
    assert all(values[infrared].mean() >= values[band].mean() for band in bands if band in values)


def test_the_last_two_of_landsat_8_are_heat(landsat_folder, landsat):
    facts = constants(landsat_folder, L8)
    for channel, number in ((9, 10), (10, 11)):
        numbers = landsat["l8"][0, channel].astype(np.float64)
        names = ("RADIANCE_MULT", "RADIANCE_ADD", "K1_CONSTANT", "K2_CONSTANT")
        gain, offset, k1, k2 = (float(facts[f"{name}_BAND_{number}"]) for name in names)
        kelvin = k2 / np.log(k1 / (gain * numbers + offset) + 1)
        assert kelvin.min() > 280 and kelvin.max() < 320  # a July noon in Germany


@pytest.fixture(scope="module")
def crop_stack(real_data):
    path = real_data / "cropharvest" / "test" / "cropharvest" / "98-togo_2019-02-06_2020-02-01.tif"
    values, place = read_raster(path, (206, 17, 17), "float64", "twelve months of 17 bands, elevation and slope")
    with rasterio.open(path) as file:
        return values, place, file.descriptions


@pytest.fixture(scope="module")
def togo(crop_stack):
    """The stack of months as two series; a month is 30 days, and stands by its first."""
    values, place, _ = crop_stack
    months = values[:204].reshape(12, 17, 17, 17).astype(np.float32)
    days = [datetime.date(2019, 2, 6) + datetime.timedelta(days=30 * month) for month in range(12)]
    radar = with_ratio_of_decibels(pick_bands(months, MONTH + WEATHER, ("VV", "VH")))
    optical = pick_bands(months, MONTH + WEATHER, get_sensor("s2").bands)
    return {"id": "togo", **place, "s2": optical, "s1": radar, **day_fields("s2", days), **day_fields("s1", days)}


def test_cropharvest_names_its_bands_as_we_do(crop_stack):
    descriptions = crop_stack[2]
    assert descriptions[:17] == MONTH + WEATHER
    assert all(name.startswith(band) for name, band in zip(descriptions[17:204], (MONTH + WEATHER) * 11))


def test_cropharvest_fits_the_sensors(togo):
    check_example(CROP_CARD, "togo", togo)
    assert togo["s2"].shape == (12, 10, 17, 17) and togo["s1"].shape == (12, 3, 17, 17)
    assert togo["s2_years"].tolist() == [2019] * 11 + [2020] and togo["s2_dates"][[0, -1]].tolist() == [36, 1]


def test_cropharvest_channels_are_those_of_their_names(crop_stack, togo):
    values, _, names = crop_stack
    for channel, band in enumerate(get_sensor("s2").bands):
        for month, suffix in ((0, ""), (7, "_7")):
            own = values[names.index(band + suffix)].astype(np.float32)
            np.testing.assert_array_equal(togo["s2"][month, channel], own)


def test_cropharvest_radar_is_in_decibels_and_its_ratio_their_difference(togo):
    vv, vh, ratio = togo["s1"].mean((0, 2, 3))
    assert -18 < vv < -5 and -26 < vh < -12 and 3 < ratio < 12
    assert ratio == pytest.approx(vv - vh, abs=1e-4)


def test_togo_is_greener_after_the_rains(togo):
    bands = get_sensor("s2").bands
    red, infrared = (togo["s2"][:, bands.index(band)].mean((1, 2)) for band in ("B4", "B8"))
    greenness = (infrared - red) / (infrared + red)
    dry, wet = greenness[[0, 1, 11]].mean(), greenness[[5, 6, 7]].mean()  # February, and July to September
    assert wet > dry + 0.1
    shortwave = togo["s2"][0, bands.index("B11")].mean()
    assert 1000 < red[0] < shortwave < 6000  # dry soil, reflectance x 10000
