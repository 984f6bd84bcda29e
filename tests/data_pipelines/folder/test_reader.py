"""A folder of one's own tiles: written here with known values, and read back."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from anysat_jax import sensors
from anysat_jax.sensors import SENSORS
from data_pipelines import load, registry
from data_pipelines.card import num_tiles
from data_pipelines.features import check_example
from data_pipelines.folder import folder_entry
from data_pipelines.locate import locate
from data_pipelines.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from data_pipelines.registry import fingerprint, get_entry
from tests.data_pipelines.folder.folders import (
    DAYS,
    DESCRIPTION,
    TABLE,
    describe,
    s2_values,
    write_folder,
    write_raster,
)

EXTRA = """
[sensors.s1]
files = "s1/{tile}.npz"
bands = ["VH", "VV"]
units = "dB"
array = "power"
dates = "days"
nodata = -9999
optional = true

[sensors.modis]
files = "modis/{tile}.npy"
bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]
dates = "modis.csv"

[mask]
files = "mask/{tile}.tif"
classes = ["water", "land"]
values = [10, 20]
ignore = 255
"""


@pytest.fixture(autouse=True)
def _registries_stay(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(registry, "_DESCRIBED", set())


def reader_of(path):
    return folder_entry(path).reader()


def example_of(path, tile="a"):
    reader = reader_of(path)
    (split,) = (split for split in reader.splits() if tile in reader.keys(split))
    example = reader.example(split, tile)
    check_example(reader.card, tile, example)
    return example


def write_everything(root):
    path = write_folder(root, DESCRIPTION + EXTRA)
    for folder in ("s1", "modis"):
        (root / folder).mkdir()
    power = np.stack([np.full((2, 4, 4), v, np.float32) for v in (-20.0, -21.0)])
    power[:, 1] += 8.0  # VV
    power[0, 0, 2, 3] = -9999
    for tile in "ab":  # c has no radar
        np.savez(root / "s1" / f"{tile}.npz", power=power, days=np.array([20200110, 20200104]), other=np.zeros(2))
    rows = ["tile,date"]
    for tile in "abc":
        np.save(root / "modis" / f"{tile}.npy", np.arange(21, dtype=np.int16).reshape(3, 7, 1, 1))
        rows += [f"{tile},2020-01-0{day}" for day in (1, 3, 2)]
        mask = np.full((1, 4, 4), 20, np.uint8)
        mask[0, 0] = (10, 255, 20, 10)
        write_raster(root / "mask" / f"{tile}.tif", mask)
    (root / "modis.csv").write_text("\n".join(rows))
    return path


def test_written_values_come_back(tmp_path):
    example = example_of(write_folder(tmp_path), "b")
    expected = np.stack([s2_values("b", day)[1:] for day in reversed(DAYS)])  # in time order, without B1
    np.testing.assert_array_equal(example["s2"], expected)
    assert example["s2"].dtype == np.uint16 and example["s2_mask"].all() and example["s2_mask"].shape == (2, 1, 4, 4)
    assert example["s2_dates"].tolist() == [364, 60] and example["s2_years"].tolist() == [2019, 2020]
    assert (example["id"], example["tile"], example["crs"]) == ("b", 1, "EPSG:32632")
    assert example["transform"].tolist() == [10, 0, 5e5, 0, -10, 6e6]


def test_bands_are_picked_by_name(tmp_path):
    path = write_folder(tmp_path)
    text = path.read_text()
    describe(tmp_path, text.replace('"B8", "B8A"', '"B8A", "B8"'))
    assert example_of(path)["s2"][0, :, 0, 0].tolist() == [201, 301, 401, 501, 601, 701, 901, 801, 1001, 1101]


def test_arrays_of_every_kind(tmp_path):
    example = example_of(write_everything(tmp_path))
    assert example["s1_dates"].tolist() == [3, 9]
    assert example["s1"][:, :, 0, 0].tolist() == [[-13, -21, 8], [-12, -20, 8]]  # VV, VH and their difference
    assert np.argwhere(~example["s1_mask"]).tolist() == [[1, 0, 2, 3]] and example["s1"][1, :, 2, 3].tolist() == [0] * 3
    assert example["modis_dates"].tolist() == [0, 1, 2] and example["modis"][:, 0, 0, 0].tolist() == [0, 14, 7]
    assert example["dense"][0].tolist() == [0, 255, 1, 0] and example["dense"].dtype == np.uint8


def test_a_ratio_of_linear_power_is_a_quotient(tmp_path):
    path = write_everything(tmp_path)
    describe(tmp_path, path.read_text().replace('units = "dB"', 'units = "linear power"'))
    np.testing.assert_allclose(example_of(path)["s1"][1, :, 0, 0], [-12, -20, -12 / 1e-10])


def test_a_tile_may_lack_an_optional_sensor(tmp_path):
    assert "s1" not in example_of(write_everything(tmp_path), "c")


def test_a_raster_of_all_dates_and_bands(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION.replace("_{date}", "").replace("dtype", 'dates = "s2.csv"\ndtype'))
    for tile in "abc":
        write_raster(tmp_path / "s2" / f"{tile}.tif", np.concatenate([s2_values(tile, day) for day in DAYS]))
        for day in DAYS:
            (tmp_path / "s2" / f"{tile}_{day}.tif").unlink()
    (tmp_path / "s2.csv").write_text("tile,date\n" + "".join(f"{t},{day}\n" for t in "abc" for day in DAYS))
    np.testing.assert_array_equal(example_of(path)["s2"][:, 0, 0, 0], [201, 200])


def test_what_stands_for_nothing_is_masked(tmp_path):
    """By the description, by the GeoTIFF, and NaN."""
    path = write_folder(tmp_path, DESCRIPTION.replace('"uint16"', '"float32"\nnodata = 7'))
    values = s2_values("a", DAYS[0]).astype(np.float32)
    values[3, 0, 0], values[4, 1, 1], values[5, 2, 2] = 7, 8, np.nan
    values[0, 3, 3] = 7  # B1 is not read
    write_raster(tmp_path / "s2" / f"a_{DAYS[0]}.tif", values, nodata=8)
    assert np.argwhere(~example_of(path)["s2_mask"]).tolist() == [[1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 2, 2]]


def test_dates_without_a_valid_pixel_are_left_out(tmp_path):
    path = write_folder(tmp_path)
    write_raster(tmp_path / "s2" / f"a_{DAYS[0]}.tif", np.zeros((11, 4, 4), np.uint16), nodata=0)
    assert example_of(path)["s2_dates"].tolist() == [364]


@pytest.mark.parametrize(
    ("labels", "cell", "expected"),
    [
        ('kind = "multi_label"\nclasses = ["x", "y", "z"]', "z; x", [1, 0, 1]),
        ('kind = "multi_label"\nclasses = ["x", "y", "z"]', "", [0, 0, 0]),
        ('unit = "t/ha"', "12.5", 12.5),
    ],
)
def test_kinds_of_labels(tmp_path, labels, cell, expected):
    text = DESCRIPTION.replace('classes = ["forest", "field"]', labels)
    table = f"tile,cover,split\na,{cell},train\nb,{cell},train\nc,{cell},val\n"
    assert np.asarray(example_of(write_folder(tmp_path, text, table))["tile"]).tolist() == expected


def test_numbers_to_predict(tmp_path):
    text = DESCRIPTION + '[mask]\nfiles = "agb/{tile}.tif"\nunit = "t/ha"\n'
    path = write_folder(tmp_path, text)
    values = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    values[0, 0, :2] = (-9999, np.nan)
    for tile in "abc":
        write_raster(tmp_path / "agb" / f"{tile}.tif", values, nodata=-9999)
    np.testing.assert_array_equal(example_of(path)["dense"].ravel(), [np.nan, np.nan, *range(2, 16)])


def test_splits_come_from_the_column_or_from_the_names(tmp_path):
    reader = reader_of(write_folder(tmp_path))
    assert reader.tiles == {"train": ("a", "b"), "val": ("c",), "test": ()}
    assert reader.card.splits == ("train", "val")  # what is prepared promises no split that is not there
    path = describe(tmp_path, DESCRIPTION.replace('column = "split"', "val = 0.3\ntest = 0.3\nseed = 3"))
    drawn = reader_of(path).tiles
    assert sorted(sum(drawn.values(), ())) == ["a", "b", "c"] and drawn == reader_of(path).tiles


def test_rows_without_files_are_counted(tmp_path):
    reader = reader_of(write_folder(tmp_path, table=TABLE + "d,field,val\n"))
    assert num_tiles(reader) == 3 and reader.summary.endswith("1 of the 4 tiles in tiles.csv have no files")


def test_the_fingerprint_follows_description_and_labels(tmp_path):
    path = write_folder(tmp_path)
    first = reader_of(path).fingerprint
    assert reader_of(path).fingerprint == first
    (tmp_path / "tiles.csv").write_text(TABLE.replace("a,forest", "a,field"))
    second = reader_of(path).fingerprint
    describe(tmp_path, DESCRIPTION + "# changed\n")
    assert len({first, second, reader_of(path).fingerprint}) == 3


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
    with pytest.raises(ValueError, match="1 of 3 tiles, such as 'c', have no label, which is 'mask/.tile..tif'; add"):
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


POWER = np.zeros((2, 2, 4, 4), np.float32)
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
    "few days": (put_npz(power=POWER, days=[20200101]), r"a\.npz has 2 dates, but days tells 1 of them"),
    "day": (put_npz(power=POWER, days=[20200101, 20201301]), r"'days': '20201301' tells no day"),
    "nothing": (put_npz(power=POWER * np.nan, days=[20200101, 20200102]), "no date of 's1' has a valid pixel"),
    "a date": (put_csv("tile,date\na,2020-13-01\n"), r"modis\.csv, line 2: '2020-13-01' tells no day"),
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


def test_a_description_stands_for_a_dataset(tmp_path):
    entry = get_entry(str(write_folder(tmp_path)))
    assert get_entry("own_tiles").card == entry.card and entry.source == tmp_path
    assert entry.holds_raw(tmp_path) and not entry.holds_raw(tmp_path / "s2")
    describe(tmp_path, DESCRIPTION.replace("extent = 40", "extent = 40 # again"))
    first, second = entry.reader(), get_entry(str(tmp_path / "own.toml")).reader(tmp_path)
    assert fingerprint(entry, first, tmp_path) != fingerprint(entry, second, tmp_path)


def test_a_description_may_not_take_a_known_name(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION.replace("own_tiles", "pastis_hd"))
    with pytest.raises(ValueError, match="a dataset 'pastis_hd' is registered already; choose another name"):
        get_entry(str(path))


SCANNER = """
[sensors.fixture_scanner]
files = "scanner/{tile}.npy"
bands = ["R", "G", "B", "red edge"]
kind = "image"
metres_per_pixel = 5
subpatch_pixels = 2
"""


def test_another_process_gets_to_know_the_sensors(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION + SCANNER)
    (tmp_path / "scanner").mkdir()
    for tile in "abc":
        np.save(tmp_path / "scanner" / f"{tile}.npy", np.full((4, 8, 8), 0.5, np.float32))
    example_of(path)
    (tmp_path / "reader").write_bytes(pickle.dumps(reader_of(path)))
    code = (
        "import pickle, sys; reader = pickle.load(open(sys.argv[1], 'rb')); "
        "print(reader.example('train', 'a')['fixture_scanner'].mean(), reader.card.side('fixture_scanner'))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "reader")], capture_output=True, text=True)
    assert run.stdout.split() == ["0.5", "8"], run.stderr


def test_prepared_and_batched(tmp_path):
    path = write_everything(tmp_path / "raw")
    reader = get_entry(str(path)).reader()
    folder = prepare_dataset(reader, tmp_path / "out", "1.0.0")
    record = PreparedDataset.open(reader.card, folder).records("train")[0]
    np.testing.assert_array_equal(record["s2"], example_of(path)["s2"])
    data = load_config(tmp_path / "out")
    batch = next(load.evaluation_batches(data, "own_tiles", "val", patch_size=10, batch_size=1))
    assert batch.labels["dense"][0, 0].tolist() == [0, -1, 1, 0] and batch.grid == (4, 4)
    assert next(load.train_iterator(data, seed=0)).observations["s2"].values.shape == (2, 2, 10, 4, 4)


def test_a_described_folder_is_found_without_a_root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    get_entry(str(write_folder(tmp_path / "raw")))
    assert len(locate("own_tiles", None).records("train")) == 2


def test_what_is_prepared_stands_for_itself(tmp_path):
    """Sensors of one's own included: another process knows neither the description nor them."""
    path = write_folder(tmp_path / "raw", DESCRIPTION + SCANNER)
    (tmp_path / "raw" / "scanner").mkdir()
    for tile in "abc":
        np.save(tmp_path / "raw" / "scanner" / f"{tile}.npy", np.full((4, 8, 8), 0.5, np.float32))
    reader = reader_of(path)
    prepare_dataset(reader, tmp_path / "out", "1.0.0")
    sensors.SENSORS.pop("fixture_scanner")
    card = load.dataset_card("own_tiles", str(tmp_path / "out"))
    assert card == reader.card and sensors.get_sensor("fixture_scanner") == card.own_sensors[0]
    batch = next(
        load.evaluation_batches(load_config(tmp_path / "out"), "own_tiles", "val", patch_size=10, batch_size=1)
    )
    assert batch.observations["fixture_scanner"].values.shape == (1, 4, 8, 8)


def load_config(root):
    from ml_collections import ConfigDict

    section = dict(batch_size=2, weight=1.0, patch_sizes=(10,), max_dates=4)
    return ConfigDict(dict(root=str(root), num_workers=0, datasets={"own_tiles": section}))
