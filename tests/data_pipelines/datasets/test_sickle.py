"""SICKLE: an archive written here in the published layout."""

import csv
import pickle
import shutil

import numpy as np
import pytest

from anysat_jax.sensors import get_sensor
from data_pipelines import load
from data_pipelines.datasets.sickle import CARD, LAYOUT, TABLE, SickleReader, holds_raw, nearest
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.sickle import L8_BANDS, S2_BANDS, write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import data_config

S2_DAYS = {"20181231T051219_20181231T051817_T44PLT": 31, "T44PLT_20180102T051219": 2, "20190101T051219_X_T44PLT": 1}
S1_NAME = "S1A_IW_GRDH_1SDV_20190104T003123_20190104T003148_025313_02CC5C_2F0A"
L8_NAME = "LC08_142053_20190110"


def image_file(root, satellite, name, uid=1):
    folder = root / "images" / satellite / "npy" / str(uid)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.npz"


def numbered(bands, add=0.0, side=32):
    """Band number k of the file is k + 1 + add everywhere."""
    return {band: np.full((side, side), k + 1 + add, np.float32) for k, band in enumerate(bands)}


def mask_layers():
    layers = np.zeros((6, 32, 32), np.float32)
    layers[:2, 0, :8] = [[10], [1]]  # a paddy plot of the split
    layers[:2, 1, :8] = [[10], [2]]
    layers[:2, 2, :8] = [[10], [21]]
    layers[:2, 3, :8] = [[10], [0]]  # of the split, but nothing known to grow
    layers[:2, 4, :8] = [[20], [1]]  # of the other split
    layers[:2, 5, :8] = [[99], [1]]  # of none
    return layers


def write_table(root, rows):
    with (root / TABLE).open("w", newline="") as file:
        csv.writer(file).writerows([("UNIQUE_ID", "PLOT_ID", "SPLIT"), *rows])


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "raw"
    for name, add in S2_DAYS.items():
        np.savez(image_file(root, "S2", name), **numbered(S2_BANDS, 100 * add))
    np.savez(image_file(root, "S1", S1_NAME), VH=np.full((32, 32), -17.0), VV=np.full((32, 32), -10.0))
    np.savez(image_file(root, "L8", L8_NAME), **numbered(L8_BANDS, side=11))
    write_raster(root / "masks" / "10m" / "1.tif", mask_layers())
    shutil.copytree(root / "images" / "S1" / "npy" / "1", root / "images" / "S1" / "npy" / "2")
    write_raster(root / "masks" / "10m" / "2.tif", mask_layers())
    write_table(root, [("1", "10", "train"), ("2", "20", "val"), ("3", "30", "train"), ("4", "40", "test")])
    return root


def example_of(archive, split="train", key="1"):
    return SickleReader(archive).example(split, key)


def test_bands_are_taken_by_name(archive):
    """The files' order is B1, ..., B8, B8A, B9, B11, B12; B8 and B8A are easily exchanged."""
    s2 = example_of(archive)["s2"]
    names = [S2_BANDS[int(value) % 100 - 1] for value in s2[0, :, 0, 0]]
    assert tuple(names) == get_sensor("s2").bands
    assert s2.dtype == np.float32 and s2.shape == (3, 10, 32, 32)


def test_files_come_in_time_order_whatever_their_names(archive):
    """Both forms of name tell the day; alphabetical order would put T44PLT_2018... last."""
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [1, 364, 0] and example["s2_years"].tolist() == [2018, 2018, 2019]
    assert (example["s2"][:, 0, 0, 0] // 100).tolist() == [2, 31, 1]
    assert (example["s1_dates"].tolist(), example["l8_dates"].tolist()) == ([3], [9])


def test_the_ratio_of_decibels_is_their_difference(archive):
    assert example_of(archive)["s1"][0, :, 5, 5].tolist() == [-10.0, -17.0, 7.0]


def test_landsat_lacks_three_bands(archive):
    example = example_of(archive)
    values = dict(zip(get_sensor("l8").bands, example["l8"][0, :, 0, 0]))
    valid = dict(zip(get_sensor("l8").bands, example["l8_mask"][0].all(axis=(1, 2))))
    assert [values[f"B{n}"] for n in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7] and values["B10"] == 8
    assert {band for band, there in valid.items() if not there} == {"B8", "B9", "B11"}
    assert values["B8"] == values["B9"] == values["B11"] == 0
    assert not example["l8_mask"][0, 0].any()


def test_a_date_without_the_thermal_band(archive):
    arrays = numbered(L8_BANDS)
    del arrays["ST_B10"]
    np.savez(image_file(archive, "L8", "LC08_142053_20190126"), **arrays)
    example = example_of(archive)
    band = get_sensor("l8").bands.index("B10")
    assert example["l8_mask"][:, band].all(axis=(1, 2)).tolist() == [True, False]
    assert not example["l8"][1, band].any() and example["l8_mask"][1, 1].all()


def test_every_grid_is_brought_to_32_pixels_by_the_nearest(archive):
    ramp = np.arange(11 * 12, dtype=np.float32).reshape(11, 12) + 1
    np.savez(image_file(archive, "L8", L8_NAME), **dict.fromkeys(L8_BANDS, ramp))
    image = example_of(archive)["l8"][0, 1]
    assert image[0, 0] == ramp[0, 0] and image[31, 31] == ramp[10, 11]
    assert image[16, 16] == ramp[16 * 11 // 32, 16 * 12 // 32]
    np.testing.assert_array_equal(nearest(np.arange(1024).reshape(32, 32), 32), np.arange(1024).reshape(32, 32))


def test_labels_are_paddy_or_not_and_only_of_the_split(archive):
    dense = example_of(archive)["dense"]
    assert dense.dtype == np.int8 and dense[:7, 0].tolist() == [0, 1, 1, -1, -1, -1, -1]
    assert (dense[:, 8:] == -1).all()
    assert example_of(archive, "val", "2")["dense"][:7, 0].tolist() == [-1, -1, -1, -1, 0, -1, -1]


def test_unobserved_pixels_are_masked_and_empty_dates_left_out(archive):
    empty = {band: np.zeros((32, 32)) for band in S2_BANDS}
    np.savez(image_file(archive, "S2", "T44PLT_20180102T051219"), **empty)
    arrays = numbered(S2_BANDS)
    for band in S2_BANDS:
        arrays[band][3, 4] = 0
    arrays["B2"][6, 7] = 0  # one dark band is an observation
    arrays["B3"][8, 9] = np.nan
    np.savez(image_file(archive, "S2", "20190101T051219_X_T44PLT"), **arrays)
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [364, 0] and example["s2_mask"].shape == (2, 1, 32, 32)
    assert np.argwhere(~example["s2_mask"]).tolist() == [[1, 0, 3, 4], [1, 0, 8, 9]]
    check_example(CARD, "1", example)


def test_sensors_may_be_missing(archive):
    example = example_of(archive, "val", "2")
    assert "s1" in example and not {"s2", "l8"} & set(example)
    check_example(CARD, "2", example)


def test_the_table_gives_the_splits_and_the_disk_the_tiles(archive):
    reader = SickleReader(archive)
    assert (reader.keys("train"), reader.keys("val")) == (("1",), ("2",))
    assert "2 tiles" in reader.summary and "the table lists 3" in reader.summary  # the test split has no labels
    write_table(archive, [("1.0", "10.0", "train"), ("2", "20", "train"), ("2", "21", "val")])
    reader = SickleReader(archive)
    assert (reader.keys("train"), reader.keys("val")) == (("1",), ("2",))


def test_the_folders_of_the_authors_code(archive):
    before = example_of(archive)
    for satellite in ("S1", "S2", "L8"):
        (archive / "images" / satellite).rename(archive / satellite)
    (archive / "images").rmdir()
    (archive / "masks" / "yield_distributed").mkdir()
    (archive / "masks" / "10m").rename(archive / "masks" / "yield_distributed" / "10m")
    after = example_of(archive)
    for key in ("s1", "s2", "l8", "dense"):
        np.testing.assert_array_equal(after[key], before[key])


def test_the_fingerprint_follows_the_plots(archive):
    before = SickleReader(archive).fingerprint
    assert SickleReader(archive).fingerprint == before
    write_table(archive, [("1", "11", "train"), ("2", "20", "val")])
    assert SickleReader(archive).fingerprint != before


def test_the_fake_archive_keeps_the_promise_of_the_card(tmp_path):
    check_card(CARD)
    write_archive(tmp_path, {"train": 3, "val": 2})
    reader = SickleReader(tmp_path)
    assert [len(reader.keys(split)) for split in CARD.splits] == [3, 2]
    for split in reader.splits():
        for key in reader.keys(split):
            example = reader.example(split, key)
            check_example(CARD, key, example)
            assert ("l8" in example) == (key != "5") and (example["dense"] >= 0).sum() == 256
            assert example["s2_years"].tolist() == sorted(example["s2_years"]) and example["s2_mask"].all()


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_archive(tmp_path / "raw", {"train": 4, "val": 1})
    reader = SickleReader(tmp_path / "raw")
    folder = prepare_dataset(reader, tmp_path / "out", "1.0.0")
    record = PreparedDataset.open(CARD, folder).records("train")[1]
    np.testing.assert_array_equal(record["l8"], reader.example("train", "2")["l8"])
    config = data_config(tmp_path / "raw")
    config.datasets = {CARD.name: dict(batch_size=2, weight=1.0, patch_sizes=(10,), max_dates=8)}
    batch = next(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=10, batch_size=2))
    assert batch.grid == (32, 32) and batch.observations["l8"].values.shape[2:] == (11, 32, 32)


def spoil(archive, satellite, name, **arrays):
    np.savez(image_file(archive, satellite, name), **arrays)


SPOILED = {
    "lacks": (lambda a: spoil(a, "S1", S1_NAME, VV=np.ones((32, 32))), rf"{S1_NAME}\.npz holds \['VV'\] and lacks"),
    "landsat": (lambda a: spoil(a, "L8", L8_NAME, ST_B10=np.ones((3, 3))), r"lacks \['SR_B1', .*expected two-dim"),
    "rank": (lambda a: spoil(a, "S1", S1_NAME, VV=np.ones(4), VH=np.ones(4)), r"is float64 \(4,\); expected 'VV'"),
    "text": (lambda a: spoil(a, "S1", S1_NAME, VV=np.array([["a"]]), VH=np.ones((1, 1))), r"is <U1 \(1, 1\)"),
    "size": (lambda a: spoil(a, "S1", S1_NAME, VV=np.ones((0, 2)), VH=np.ones((1, 1))), r"'VV' is empty, \(0, 2\)"),
    "pickled": (
        lambda a: spoil(a, "S1", S1_NAME, VV=np.array([[{}]], object), VH=np.ones((1, 1))),
        rf"{S1_NAME}\.npz cannot be read .*allow_pickle.*download",
    ),
    "name": (lambda a: spoil(a, "S2", "today"), r"today\.npz: 'today' does not name a day; expected a name like 2019"),
    "day": (
        lambda a: spoil(a, "S2", "T44PLT_20191345"),
        r"T44PLT_20191345\.npz: 'T44PLT_20191345' does not name a day",
    ),
    "bands": (lambda a: write_raster(a / "masks/10m/1.tif", mask_layers()[:1]), r"1\.tif has 1 bands; expected a Geo"),
    "crop": (lambda a: write_raster(a / "masks/10m/1.tif", mask_layers() * 50), r"1\.tif: the second band holds 100"),
    "part": (lambda a: write_raster(a / "masks/10m/1.tif", mask_layers() / 4), r"holds 0\.25; expected crop numbers"),
    "complex": (lambda a: write_raster(a / "masks/10m/1.tif", mask_layers() * 1j), r"1\.tif is complex"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_files(archive, case):
    change, message = SPOILED[case]
    change(archive)
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        example_of(archive)


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", [f"images/S1/npy/1/{S1_NAME}.npz", "masks/10m/1.tif"])
def test_unreadable_files(archive, name, how):
    path = archive / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>no</html>"}[how])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected .*; download or copy it again"):
        example_of(archive)


def test_a_mask_gone_since_the_listing(archive):
    reader = SickleReader(archive)
    (archive / "masks" / "10m" / "1.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*1\.tif; expected a GeoTIFF with the plot's number"):
        reader.example("train", "1")


def test_a_tile_without_any_image(archive):
    for path in archive.glob("images/*/npy/1/*.npz"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \.npz file of tile 1 below .*images; expected"):
        example_of(archive)


def test_links_that_lead_out_are_refused(archive, tmp_path):
    outside = tmp_path / "secret.tif"
    (archive / "masks" / "10m" / "1.tif").rename(outside)
    (archive / "masks" / "10m" / "1.tif").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of"):
        example_of(archive)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("1", "10", "holdout")], r"line 2: SPLIT is 'holdout', expected train, val or test"),
        ([("1", "10", "train"), ("../2", "10", "val")], r"line 3: UNIQUE_ID is '\.\./2', expected a whole number"),
        ([("1", "ten", "train")], r"line 2: PLOT_ID is 'ten', expected a whole number"),
    ],
)
def test_spoiled_tables(archive, rows, message):
    write_table(archive, rows)
    with pytest.raises(ValueError, match=rf"{TABLE}, {message}"):
        SickleReader(archive)


def test_nothing_on_disk(archive, tmp_path):
    assert holds_raw(archive) and not holds_raw(tmp_path) and TABLE in LAYOUT
    shutil.rmtree(archive / "masks")
    with pytest.raises(FileNotFoundError, match=r"holds no tile of 'sickle'; see https://github"):
        SickleReader(archive)
    (archive / TABLE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{TABLE}; expected SICKLE as published"):
        SickleReader(archive)


def test_readers_go_to_worker_processes(archive):
    assert pickle.loads(pickle.dumps(SickleReader(archive))).example("train", "1")["id"] == "1"
