"""A folder of one's own tiles: written here with known values, and read back."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from anysat_jax import sensors
from anysat_jax.sensors import SENSORS
from data_pipelines import load, registry
from data_pipelines.locate import find_card, locate
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from data_pipelines.reader import num_tiles
from data_pipelines.registry import fingerprint, get_entry
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
def _registries_stay(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(registry, "_DESCRIBED", set())


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
    assert example["dense"][0].tolist() == [0, -1, 1, 0] and example["dense"].dtype == np.int8


def test_a_ratio_of_linear_power_is_a_quotient(tmp_path):
    path = write_everything(tmp_path)
    describe(tmp_path, path.read_text().replace('units = "dB"', 'units = "linear power"'))
    for tile in "ab":
        power = np.broadcast_to(np.array([0.01, 0.05], np.float32)[:, None, None], (1, 2, 4, 4))
        np.savez(tmp_path / "s1" / f"{tile}.npz", power=power, days=np.array([20200104]))
    np.testing.assert_allclose(example_of(path)["s1"][0, :, 0, 0], [0.05, 0.01, 5])


def test_class_numbers_are_not_mistaken_for_no_label(tmp_path):
    """What stands for no label in the files is the number of a class once classes are counted from 0."""
    path = write_everything(tmp_path)
    describe(tmp_path, path.read_text().replace("values = [10, 20]\nignore = 255", "values = [1, 2]\nignore = 0"))
    for tile in "abc":
        write_raster(tmp_path / "mask" / f"{tile}.tif", np.array([[[0, 1, 2, 0]] * 4], np.uint8), nodata=0)
    assert example_of(path)["dense"][0].tolist() == [-1, 0, 1, -1]
    assert reader_of(path).card.ignore_label == -1


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
    write_raster(tmp_path / "s2" / f"a_{DAYS[1]}.tif", np.zeros((11, 4, 4), np.uint16), nodata=0)
    with pytest.raises(ValueError, match=r"no date of 's2' .*the file's nodata \(0\.0\) nor .* description \(None\)"):
        example_of(path)


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


def test_what_stands_for_no_number(tmp_path):
    text = DESCRIPTION + '[mask]\nfiles = "agb/{tile}.npy"\nunit = "t/ha"\n'
    path = write_folder(tmp_path, text)
    (tmp_path / "agb").mkdir()
    values = np.arange(16, dtype=np.float32).reshape(4, 4) - 2
    for tile in "abc":
        np.save(tmp_path / "agb" / f"{tile}.npy", values)
    np.testing.assert_array_equal(example_of(path)["dense"], values)  # -1 and -2 are numbers
    describe(tmp_path, text + "ignore = -2\n")
    np.testing.assert_array_equal(example_of(path)["dense"].ravel(), [np.nan, *range(-1, 14)])


def test_splits_come_from_the_column_or_from_the_names(tmp_path):
    reader = reader_of(write_folder(tmp_path))
    assert reader.tiles == {"train": ("a", "b"), "val": ("c",), "test": ()}
    assert reader.card.splits == ("train", "val")  # what is prepared promises no split that is not there
    path = describe(tmp_path, DESCRIPTION.replace('column = "split"', "val = 0.3\ntest = 0.3\nseed = 3"))
    drawn = reader_of(path).tiles
    assert sorted(sum(drawn.values(), ())) == ["a", "b", "c"] and drawn == reader_of(path).tiles


def test_a_table_out_of_a_spreadsheet(tmp_path):
    """A byte order mark, empty rows at the end, spaces behind names."""
    table = "\ufefftile,cover,split\r\na ,forest,train\r\nb,field ,train\r\nc,field,val\r\n,,\r\n,,\r\n"
    reader = reader_of(write_folder(tmp_path, table=table))
    assert reader.tiles == {"train": ("a", "b"), "val": ("c",), "test": ()} and "no files" not in reader.summary


def test_both_spellings_of_an_umlaut_are_one_tile(tmp_path):
    path = write_folder(tmp_path, table=TABLE.replace("a,", "\N{LATIN SMALL LETTER A WITH DIAERESIS},"))
    for day in DAYS:
        (tmp_path / "s2" / f"a_{day}.tif").rename(tmp_path / "s2" / f"a\N{COMBINING DIAERESIS}_{day}.tif")
    assert example_of(path, "\N{LATIN SMALL LETTER A WITH DIAERESIS}")["tile"] == 0


def test_rasters_without_a_place_are_taken_on_trust(tmp_path):
    path = write_folder(tmp_path)
    place = rasterio.Affine.identity()
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_raster(tmp_path / "s2" / f"a_{DAYS[0]}.tif", s2_values("a", DAYS[0]), transform=place)
    assert len(example_of(path)["s2"]) == 2


def test_rows_without_files_are_counted(tmp_path):
    reader = reader_of(write_folder(tmp_path, table=TABLE + "d,field,val\n"))
    assert num_tiles(reader) == 3 and reader.summary.endswith("1 of the 4 tiles in tiles.csv have no files")


def test_masks_without_a_tile_are_counted(tmp_path):
    path = write_everything(tmp_path)
    assert "belong to no tile" not in reader_of(path).summary
    (tmp_path / "mask" / "d.tif").touch()
    assert reader_of(path).summary.endswith("; 1 of the 4 masks belong to no tile")


def test_the_fingerprint_follows_description_and_labels(tmp_path):
    path = write_folder(tmp_path)
    first = reader_of(path).fingerprint
    assert reader_of(path).fingerprint == first
    (tmp_path / "tiles.csv").write_text(TABLE.replace("a,forest", "a,field"))
    second = reader_of(path).fingerprint
    describe(tmp_path, DESCRIPTION + "# changed\n")
    assert len({first, second, reader_of(path).fingerprint}) == 3


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
    batch = next(load.open_datasets(data)["own_tiles"].evaluation_batches("val", patch_size=10, batch_size=1))
    assert batch.labels["dense"][0, 0].tolist() == [0, -1, 1, 0] and batch.grid == (4, 4)
    trained = next(load.train_iterator(load.open_datasets(data), seed=0))
    assert trained.observations["s2"].values.shape == (2, 2, 10, 4, 4)


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
    card = find_card("own_tiles", str(tmp_path / "out"))
    assert card == reader.card and sensors.get_sensor("fixture_scanner") == card.own_sensors[0]
    dataset = load.open_datasets(load_config(tmp_path / "out"))["own_tiles"]
    batch = next(dataset.evaluation_batches("val", patch_size=10, batch_size=1))
    assert batch.observations["fixture_scanner"].values.shape == (1, 4, 8, 8)


def load_config(root):
    from ml_collections import ConfigDict

    section = dict(batch_size=2, weight=1.0, patch_sizes=(10,), max_dates=4)
    return ConfigDict(dict(root=str(root), num_workers=0, datasets={"own_tiles": section}))
