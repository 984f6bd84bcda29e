"""What is wrong in a folder of tiles is said with the file, what was expected and what to do."""

import numpy as np
import pytest
import rasterio

from anysat_jax.sensors import SENSORS
from tests.data_pipelines.own_tiles.folders import (
    DAYS,
    DESCRIPTION,
    TABLE,
    describe,
    example_of,
    reader_of,
    s2_values,
    write_everything,
    write_folder,
    write_raster,
)


@pytest.fixture(autouse=True)
def _own_sensors_go(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))


FAULTS = {
    "column": ("cover,", "land,", r"tiles\.csv has columns .* and lacks \['cover'\]"),
    "class": ("forest", "wood", "column 'cover' of tile 'a' is 'wood'; expected one of forest, field"),
    "empty": ("forest", "", "column 'cover' of tile 'a' is ''; expected one of forest"),
    "split": ("c,field,val", "c,field,hold", "column 'split' of tile 'c' is 'hold'; expected one of train, val, test"),
    "no row": ("b,field,train\n", "", r"tiles\.csv has no row for tile 'b'; add one, or take its files out"),
    "twice": ("c,field,val", "c,field,val\nc,field,val", r"tiles\.csv names tile 'c' twice"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_the_table(tmp_path, case):
    old, new, message = FAULTS[case]
    path = write_folder(tmp_path, table=TABLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        reader_of(path)


def test_decibels_are_no_linear_power(tmp_path):
    path = write_everything(tmp_path)
    describe(tmp_path, path.read_text().replace('units = "dB"', 'units = "linear power"'))
    with pytest.raises(ValueError, match=r's1/a\.npz has values below 0, so that .* Write units = "dB" there'):
        example_of(path)


def test_cells_between_semicolons(tmp_path):
    path = write_folder(tmp_path, table=TABLE.replace(",", ";"))
    with pytest.raises(ValueError, match=r"tiles\.csv has columns \['tile;cover;split'\] .* cells between commas"):
        reader_of(path)


def test_a_label_that_is_no_number(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION.replace('classes = ["forest", "field"]', 'unit = "t"'))
    with pytest.raises(ValueError, match="column 'cover' of tile 'a' is 'forest'; expected a number"):
        reader_of(path)


def test_tables_outside_the_folder(tmp_path):
    path = write_folder(tmp_path / "in", DESCRIPTION.replace('"tiles.csv"', '"../tiles.csv"'))
    with pytest.raises(ValueError, match=r"'\.\./tiles\.csv' leads out of"):
        reader_of(path)


def test_a_tile_without_a_sensor(tmp_path):
    path = write_everything(tmp_path)
    (tmp_path / "modis" / "b.npy").unlink()
    with pytest.raises(ValueError, match="1 of 3 tiles, such as 'b', have no file .*write optional = true under"):
        reader_of(path)


def test_a_tile_without_a_mask(tmp_path):
    path = write_everything(tmp_path)
    (tmp_path / "mask" / "c.tif").unlink()
    with pytest.raises(ValueError, match="1 of 3 tiles, such as 'c', have no label 'mask/.tile..tif'; add"):
        reader_of(path)


def put(name, values):
    def spoil(root):
        path = root / name
        write_raster(path, values) if path.suffix == ".tif" else np.save(path, values)

    return spoil


def put_csv(text):
    return lambda root: (root / "modis.csv").write_text(text)


def put_npz(**arrays):
    return lambda root: np.savez(root / "s1" / "a.npz", **arrays)


POWER = np.full((2, 2, 4, 4), -9, np.float32)
UPSIDE_DOWN, ELSEWHERE = rasterio.Affine(10, 0, 5e5, 0, 10, 6e6), rasterio.Affine(10, 0, 5e5 + 20, 0, -10, 6e6)
BAD_FILES = {
    "cut": (lambda r: (r / f"s2/a_{DAYS[0]}.tif").write_bytes(b"II*"), r"a_20200301\.tif cannot be read"),
    "bands": (put(f"s2/a_{DAYS[0]}.tif", s2_values("a", DAYS[0])[1:]), r"shape \(10, 4, 4\); expected \(bands, height"),
    "dtype": (
        put(f"s2/a_{DAYS[0]}.tif", -s2_values("a", DAYS[0]).astype(np.int16)),
        "to -200 which uint16 cannot",
    ),
    "fraction": (
        put(f"s2/a_{DAYS[0]}.tif", s2_values("a", DAYS[0]) / np.float32(7)),
        "not all whole, which uint16 cannot hold; describe 's2' with another dtype",
    ),
    "extents": (
        put(f"s2/a_{DAYS[0]}.tif", np.ones((11, 2, 2), np.uint16)),
        r"s2 covers 20 m \(2 x 2 pixels of 10 m, a_20200301\.tif\), s1 covers 40 m .*described extent of 40 m",
    ),
    "oblong": (put(f"s2/a_{DAYS[0]}.tif", np.ones((11, 4, 3), np.uint16)), r"s2 covers 30 x 40 m \(3 x 4 pixels"),
    "classes": (put("mask/a.tif", np.full((1, 4, 4), 30, np.uint8)), r"mask/a\.tif holds 30; expected \(10, 20\) for"),
    "mask": (put("mask/a.tif", np.full((1, 8, 8), 10, np.uint8)), r"\(1, 8, 8\); expected one band of 4 x 4 pixels"),
    "text": (put("modis/a.npy", np.full((3, 7, 1, 1), "x")), r"modis/a\.npy is <U1 .* expected an npy array of num"),
    "rank": (put("modis/a.npy", np.zeros((5, 1, 1))), r"shape \(5, 1, 1\); expected \(dates, bands, height, width\)"),
    "no array": (put_npz(days=np.arange(2)), r"a\.npz has the arrays \['days'\]; say which one to read"),
    "no days": (put_npz(power=POWER), r"a\.npz has the arrays \['power'\], not 'days', which is to hold the dates"),
    "few days": (put_npz(power=POWER, days=[20200101]), r"a\.npz has 2 dates, but days lists 1"),
    "day": (put_npz(power=POWER, days=[20200101, 20201301]), r"'days': '20201301' is not a day"),
    "units": (
        put_npz(power=-POWER, days=[20200101, 20200102]),
        r"a\.npz has no value below 0, so .* units = \"li",
    ),
    "upside down": (
        lambda r: write_raster(r / "mask/a.tif", np.full((1, 4, 4), 10, np.uint8), transform=UPSIDE_DOWN),
        r"mask/a\.tif has its first row in the south",
    ),
    "elsewhere": (
        lambda r: write_raster(r / f"s2/a_{DAYS[0]}.tif", s2_values("a", DAYS[0]), transform=ELSEWHERE),
        r"a_20200301\.tif is centred 2 pixels away from .*a_20191231\.tif; expected the files of a tile to cover",
    ),
    "nothing": (put_npz(power=POWER * np.nan, days=[20200101, 20200102]), "no date of 's1' has a valid pixel"),
    "a date": (put_csv("tile,date\na,2020-13-01\n"), r"modis\.csv, line 2: '2020-13-01' is not a day"),
    "no dates": (put_csv("tile,date\na,2020-01-01\n"), r"modis\.csv has no date of tile 'b'"),
    "header": (put_csv("tile,day\na,2020-01-01\n"), r"modis\.csv has columns .* lacks \['date'\]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_faults_of_files(tmp_path, case):
    path = write_everything(tmp_path)
    spoil, message = BAD_FILES[case]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        example_of(path)


def test_pickled_arrays_are_refused(tmp_path):
    path = write_everything(tmp_path)
    np.save(tmp_path / "modis" / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"modis/a\.npy cannot be read"):
        example_of(path)
