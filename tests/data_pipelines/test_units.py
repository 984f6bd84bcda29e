"""Values that cannot be in their unit are refused for every reader; zeros of all bands are nothing observed."""

import dataclasses
import functools

import numpy as np
import pytest

from data_pipelines import units
from data_pipelines.card import DatasetCard
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.report import read_report, report_text
from data_pipelines.prepare.shards import read_tile
from data_pipelines.registry import ARCHIVE_NAMES, get_entry
from data_pipelines.units import check_values, unit_of
from tests.data_pipelines.fake_reader import FakeReader
from tests.data_pipelines.own_tiles.folders import (
    DAYS,
    DESCRIPTION,
    describe,
    example_of,
    reader_of,
    s2_values,
    write_folder,
    write_raster,
)

DECIBELS, POWER, RATIO = -12.0, 0.06, 6.0

UNITS = {
    "treesatai_ts": {"aerial": "grey values", "s2": "reflectance x 10000", "s1-asc": "linear power"},
    "pastis_hd": {"spot": "grey values", "s2": "reflectance x 10000", "s1": "dB"},
    "flair": {"aerial-flair": "grey values", "s2": "reflectance x 10000"},
    "planted": dict.fromkeys(("s2", "l7", "modis"), "reflectance of any scale") | {"s1": "dB", "alos": "any unit"},
    "s2naip": {"naip": "grey values", "s2": "reflectance x 10000", "s1": "dB", "l8": "reflectance of any scale"},
    "bradd_s1ts": {"s1": "dB"},
    "sickle": {"s2": "reflectance x 10000", "s1": "dB", "l8": "reflectance of any scale"},
    "timesen2crop": {"s2": "reflectance x 10000"},
    "sen1floods11": {"s2": "reflectance x 10000", "s1": "dB"},
    "so2sat": {"s2": "reflectance", "s1": "linear power"},
    "hls_burn_scars": {"hls": "reflectance"},
    "spacenet7": {"planet": "grey values"},
    "biomassters": {"s2": "reflectance x 10000", "s1": "dB"},
}


@pytest.mark.parametrize("name", ARCHIVE_NAMES)
def test_the_words_of_each_card_are_a_unit(name):
    card = get_entry(name).card
    like = "sen1floods11" if name.startswith("fuel") else name
    assert {sensor: unit_of(card, sensor).name for sensor in card.sensors} == UNITS[like.removesuffix("_chip")]


def tile(sensor, values, unit=""):
    """A card of one sensor and an example of it, valid everywhere; one value for each band, then as given."""
    values = np.asarray(values)
    card = DatasetCard("one", "One", (sensor,), 40.0, (10,), ("train",), masks={sensor: "pixel"})
    card = dataclasses.replace(card, units={sensor: unit} if unit else {})
    example = {"id": "a", sensor: values, f"{sensor}_mask": np.ones((*values.shape[:-3], 1, *values.shape[-2:]), bool)}
    if values.ndim == 4:
        example |= {f"{sensor}_{k}": np.arange(len(values), dtype=np.int32) for k in ("dates", "years")}
    return card, example


def radar(first, *others):
    values = np.full((2, 3, 4, 4), first, np.float32)
    values[:, 2] = RATIO
    for number, value in enumerate(others):
        values[1, 0, 0, number] = value
    return values


def optical(value, *others, dtype=np.float32):
    values = np.full((2, 10, 4, 4), value, dtype)
    for number, one in enumerate(others):
        values[1, 3, 0, number] = one
    return values


WRONG = {
    "-9999 in decibels": ("s1", radar(DECIBELS, -9999), "dB", r"'VV' of 's1' runs from -9999 to -12; expected dB"),
    "9999 in decibels": ("s1", radar(DECIBELS, 9999), "dB", "to 9999; expected dB, -101 to 60"),
    "1e20 in decibels": ("s1", radar(DECIBELS, 1e20), "dB", r"to 1e\+20; expected dB"),
    "decibels x 100": ("s1", radar(-1200.0), "dB", "expected dB"),
    "power as decibels": ("s1", radar(POWER), "dB", "like linear power; expected dB"),
    "numbers as decibels": ("s1", radar(DECIBELS, 312.0), "dB", "to 312; expected dB"),
    "decibels as power": ("s1", radar(DECIBELS), "linear power", "'VV' .* -12; expected linear power"),
    "numbers as power": ("s1", radar(180.0), "linear power", "like digital numbers; expected linear power"),
    "huge power": ("s1", radar(POWER, 1e20), "linear power", r"to 1e\+20; expected linear power"),
    "-9999 in power": ("s1", radar(POWER, -9999), "linear power", "runs from -9999"),
    "-9999 of unknown radar": ("s1", radar(DECIBELS, -9999), "", "expected dB or linear power"),
    "-9999 in numbers": ("s2", optical(800, -9999), "reflectance x 10000", "'B5' of 's2' runs from -9999 to 800"),
    "-9999 of unknown scale": ("s2", optical(800, -9999, dtype=np.int16), "", "-9999"),
    "1e20 in numbers": ("s2", optical(800, 1e20), "reflectance x 10000", r"1e\+20"),
    "reflectance as numbers": ("s2", optical(0.08), "reflectance x 10000", "like reflectance of 0 to 1"),
    "numbers as reflectance": ("s2", optical(800), "reflectance", "'B2' .* 800; expected reflectance"),
    "-9999 in reflectance": ("s2", optical(0.08, -9999), "reflectance", "-9999 to 0.08"),
    "9999 in reflectance": ("s2", optical(0.08, 9999), "reflectance", "9999"),
    "-9999 x 0.0001 in reflectance": ("s2", optical(0.08, -0.9999), "reflectance", "-0.9999"),
    "9999 in reflectance of unknown scale": ("s2", optical(0.08, 9999), "", "to 9999; expected reflectance, -0.5"),
    "both scales": ("s2", np.stack([optical(0.08)[0], optical(800)[0]]), "", "0.08 to 800; expected reflectance, -0.5"),
    "16 bits as grey": ("spot", np.full((3, 4, 4), 700, np.uint16), "grey values", "'R' of 'spot' .* 700"),
    "divided by 255": ("spot", np.full((3, 4, 4), 0.4, np.float32), "grey values", "like values divided by 255"),
    "1e20 of no unit": ("spot", np.full((3, 4, 4), 1e20, np.float32), "", "expected any unit"),
}
RIGHT = {
    "decibels": ("s1", radar(DECIBELS, -60, 20), "dB"),
    "power": ("s1", radar(POWER, 1e4, -0.01), "linear power"),
    "radar of either unit": ("s1", radar(DECIBELS, 3), ""),
    "numbers": ("s2", optical(800, 16000, -300), "reflectance x 10000"),
    "whole numbers": ("s2", optical(1, dtype=np.uint16), "reflectance x 10000"),
    "9999 among numbers": ("s2", optical(800, 9999), "reflectance x 10000"),
    "reflectance": ("s2", optical(0.08, 2.8, -0.02), "reflectance"),
    "either scale": ("s2", optical(0.08), ""),
    "numbers of 1 as floats": ("s2", optical(1.0, 900), ""),
    "grey": ("spot", np.full((3, 4, 4), 70, np.uint8), "grey values"),
    "16 bits of no unit": ("spot", np.full((3, 4, 4), 7000, np.uint16), ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case):
    sensor, values, unit, message = WRONG[case]
    card, example = tile(sensor, values, unit)
    with pytest.raises(ValueError, match=f"x: .*{message}"):
        check_values(card, "x", example)
    # Where the mask leaves out a pixel, anything may be, but of one sensor it cannot leave out all.
    with pytest.raises(ValueError, match=f"x: {sensor} have no valid pixel"):
        check_values(card, "x", example | {f"{sensor}_mask": np.zeros_like(example[f"{sensor}_mask"])})


@pytest.mark.parametrize("case", RIGHT)
def test_what_can_be_passes_as_it_is(case):
    card, example = tile(*RIGHT[case])
    checked = check_values(card, "x", example)
    assert set(checked) == set(example)
    for key in set(example) - {"id"}:
        np.testing.assert_array_equal(checked[key], example[key])


def test_a_ratio_has_no_limits():
    values = radar(DECIBELS)
    values[:, 2] = 110
    card, example = tile("s1", values, "dB")
    assert check_values(card, "x", example)["s1_mask"].all()


@pytest.mark.parametrize("unit", ["dB", "linear power", ""])
def test_zeros_of_all_bands_are_nothing_observed(unit):
    values = radar(POWER if unit == "linear power" else DECIBELS)
    values[0] = values[1, :, :, 0] = values[1, 0, 3, 3] = 0
    card, example = tile("s1", values, unit)
    checked = check_values(card, "x", example)
    assert checked["s1_empty"] == 1 and checked["s1_dates"].tolist() == [1] and checked["s1"].shape == (1, 3, 4, 4)
    assert checked["s1_mask"][0, 0].all(axis=0).tolist() == [False, True, True, True]
    assert example["s1_mask"].all()  # the example itself stays
    again = check_values(card, "x", checked)
    assert again["s1_empty"] == 1 and (again["s1_mask"] == checked["s1_mask"]).all()


def test_black_pixels_of_grey_values_stay():
    card, example = tile("spot", np.zeros((3, 4, 4), np.uint8), "grey values")
    assert check_values(card, "x", example)["spot_mask"].all()


def test_a_sensor_of_zeros_only_is_missing_or_refused():
    card, example = tile("s2", optical(0), "reflectance")
    with pytest.raises(ValueError, match="x: 's2' is 0 in all bands of all valid pixels"):
        check_values(card, "x", example)
    optional = dataclasses.replace(card, sensors=("s2", "s1"), optional=("s2",))
    _, radar_alone = tile("s1", radar(DECIBELS))
    assert set(check_values(optional, "x", example | radar_alone)) == set(radar_alone)
    with pytest.raises(ValueError, match="x: s2, s1 have no valid pixel that is not 0; leave the tile out"):
        check_values(optional, "x", example)


def test_every_tile_of_a_preparation_is_checked():
    def spoil(split, index, example):
        example["s2"][0, 4, 1, 2] = 60_000
        example["s2_mask"][:] = True

    card = dataclasses.replace(FakeReader.card, units={"s2": "reflectance"})
    reader = FakeReader(edit=spoil)
    reader.card = card
    with pytest.raises(ValueError, match=r"tile 'train0': band 'B2' of 's2' runs from .*; expected reflectance"):
        read_tile(reader, "train", "train0")


def test_own_images_with_zeros_that_are_not_declared(tmp_path):
    path = write_folder(tmp_path)
    for day in DAYS:
        values = s2_values("a", day)
        values[:, :, :2] = 0
        write_raster(tmp_path / "s2" / f"a_{day}.tif", values)
    undeclared = example_of(path)
    assert undeclared["s2_mask"].mean() == 0.5
    declared = example_of(describe(tmp_path, DESCRIPTION.replace('dtype = "uint16"', 'dtype = "uint16"\nnodata = 0')))
    for key in ("s2", "s2_mask", "s2_dates"):
        np.testing.assert_array_equal(undeclared[key], declared[key])


RADAR = '\n[sensors.s1]\nfiles = "s1/{tile}_{date}.tif"\nbands = ["VV", "VH"]\nunits = "UNIT"\n'


def write_radar(root, unit, fill):
    """Tiles of which a quarter is `fill`, in one of the units."""
    path = write_folder(root, DESCRIPTION + RADAR.replace("UNIT", unit))
    for number, name in enumerate("abc"):
        power = np.random.default_rng(number).gamma(3, 0.03, (2, 4, 4))
        values = (power if unit == "linear power" else 10 * np.log10(power)).astype(np.float32)
        values[:, :, 0] = fill
        write_raster(root / "s1" / f"{name}_20200105.tif", values)
    return path


@pytest.mark.parametrize(("unit", "fill"), [("linear power", 0), ("dB", 0), ("dB", -np.inf), ("dB", np.nan)])
def test_radar_borders_of_own_tiles_are_masked(tmp_path, unit, fill):
    example = example_of(write_radar(tmp_path, unit, fill))
    assert example["s1_mask"][0, 0].all(axis=0).tolist() == [False, True, True, True]


@pytest.mark.parametrize("fill", [-9999, 1e20, -1500])
def test_radar_borders_that_cannot_be_decibels_are_refused(tmp_path, fill):
    reader = reader_of(write_radar(tmp_path, "dB", fill))
    for read in (reader.example, functools.partial(read_tile, reader)):
        with pytest.raises(ValueError, match=r"tile 'a': band 'VV' of 's1' runs from .*; expected dB, .* as nodata"):
            read("train", "a")


def test_what_cannot_be_refused_is_reported(tmp_path):
    path = write_folder(tmp_path)
    for name in "abc":
        values = s2_values(name, DAYS[0])
        values[:, 1:3] = 9999  # a fill that may be a reflectance of 0.9999
        write_raster(tmp_path / "s2" / f"{name}_{DAYS[0]}.tif", values)
    write_raster(tmp_path / "s2" / "a_20200601.tif", np.zeros((11, 4, 4), np.uint16))
    folder = prepare_dataset(reader_of(path), tmp_path / "prepared", "1.0.0", say=lambda _: None)
    report = read_report(folder)
    values = report["sensors"]["s2"]["values"]
    assert (values["smallest"], values["largest"], values["most_frequent"]) == (200.0, 9999.0, 9999.0)
    assert values["most_frequent_share"] == pytest.approx(0.25)
    assert report["sensors"]["s2"]["dates"]["empty"] == 1
    line = "- s2: values from 200 to 9999, of which 9999 makes up 25.0%; 1 dates without data are left out"
    assert line in report_text(report)
    del report["sensors"]["s2"]["values"]  # as in reports of earlier releases
    assert "values from" not in report_text(report)


def test_units_do_not_overlap_by_name():
    named = [value for value in vars(units).values() if isinstance(value, units.Unit)]
    assert len({unit.name for unit in named}) == len(named) >= 8 and all(unit.least < unit.most for unit in named)
