"""TreeSatAI-TS: an archive written here in the published layout, and the real sample."""

import json
import sys

import h5py
import numpy as np
import pytest
import rasterio

from data_pipelines import load
from data_pipelines.datasets.treesatai_ts import CARD, GENERA, LABELS, TreeSatReader, holds_raw
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepare.shards import read_tile
from data_pipelines.prepared import PreparedDataset
from data_pipelines.reader import num_tiles
from tests.data_pipelines.fake_reader import data_config, examples_of

S2_DAYS = ("20200105", "20200301", "20201231")
S1_DAYS = ("20191231", "20200102")
REAL = "Abies_alba_1_1005_WEFL_NLF"


def aerial_image(seed):
    return np.random.default_rng(seed).integers(0, 256, (4, 304, 304), dtype=np.uint8)


def write_aerial(path, image):
    profile = dict(driver="GTiff", width=image.shape[2], height=image.shape[1], count=len(image), dtype=image.dtype)
    transform = rasterio.Affine(0.2, 0.0, 5e5, 0.0, -0.2, 5.7e6)
    with rasterio.open(path, "w", crs="EPSG:25832", transform=transform, **profile) as file:
        file.write(image)


def sentinel_arrays(seed):
    rng = np.random.default_rng(seed)
    s2 = [f"S2A_MSIL2A_{day}T102421_N0213_R065_T32UNC_{day}T115419" for day in S2_DAYS]
    s1 = [f"S1A_IW_GRDH_1SDV_{day}T170841_{day}T170906_030639_0382D5_360A" for day in S1_DAYS]
    return {
        "sen-2-data": rng.integers(1, 15000, (3, 10, 6, 6)).astype(np.float32),
        "sen-2-masks": np.zeros((3, 10, 6, 6), np.float32),
        "sen-2-products": np.array(s2, "S"),
        "sen-1-asc-data": rng.gamma(1.0, 0.1, (2, 2, 6, 6)).astype(np.float32) + 1e-6,
        "sen-1-asc-products": np.array(s1, "S"),
    }


def write_sentinel(path, arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


TILES = {"Abies_1": [["Abies", 0.9], ["Tilia", 0.07]], "Fagus_2": [["Fagus", 0.5], ["Cleared", 0.0701]]}
TILES |= {"Acer_3": [["Acer", 1.0]], "Bare_4": [["Acer", 0.01]], "Elsewhere_5": [["Acer", 1.0]]}


@pytest.fixture
def archive(tmp_path):
    """Three tiles and a fourth without labels are there; a fifth is listed only."""
    root = tmp_path / "raw"
    for folder in ("aerial", "sentinel", "labels"):
        (root / folder).mkdir(parents=True)
    (root / LABELS).write_text(json.dumps({f"{name}.tif": label for name, label in TILES.items()}))
    (root / "train_filenames.lst").write_text("Fagus_2.tif\r\nAbies_1.tif\nBare_4.tif\nElsewhere_5.tif\n")
    (root / "test_filenames.lst").write_text("Acer_3.tif\n")
    for seed, name in enumerate(["Abies_1", "Fagus_2", "Acer_3", "Bare_4"]):
        write_aerial(root / "aerial" / f"{name}.tif", aerial_image(seed))
        write_sentinel(root / "sentinel" / f"{name}.h5", sentinel_arrays(seed))
    return root


def example_of(archive, split="train", number=1):
    return examples_of(TreeSatReader(archive), split)[number]


def test_written_values_come_back(archive):
    example, image, arrays = example_of(archive), aerial_image(0), sentinel_arrays(0)
    assert example["id"] == "Abies_1"
    np.testing.assert_array_equal(example["aerial"], image[[3, 1, 2, 0]])
    np.testing.assert_array_equal(example["s2"], arrays["sen-2-data"])
    np.testing.assert_array_equal(example["s1-asc"], arrays["sen-1-asc-data"])
    assert example["s2_dates"].tolist() == [4, 60, 365]  # 2020 has a 29 February
    assert example["s1-asc_dates"].tolist() == [364, 1]  # of 2019 and of 2020
    assert [example[s].dtype for s in CARD.sensors] == [np.uint8, np.uint16, np.float32]
    assert example["s2_years"].tolist() == [2020, 2020, 2020] and example["s1-asc_years"].tolist() == [2019, 2020]
    assert example["s2_mask"].all() and example["s1-asc_mask"].all()
    assert example["crs"] == "EPSG:25832" and example["transform"].tolist() == [0.2, 0.0, 5e5, 0.0, -0.2, 5.7e6]
    check_example(CARD, "Abies_1", example)


def test_the_layers_of_clouds_and_snow_are_kept_as_percent(archive):
    arrays = sentinel_arrays(0)
    arrays["sen-2-masks"][0, 0, 2, 3] = 80.0  # snow
    arrays["sen-2-masks"][0, 1, 2, 3] = 30.4  # cloud
    arrays["sen-2-masks"][1, 1, 5, 5] = 60.4
    arrays["sen-2-masks"][2, 5] = 99.0  # a layer that says nothing
    write_sentinel(archive / "sentinel" / "Abies_1.h5", arrays)
    cloud = example_of(archive)["s2_cloud"]
    assert cloud.dtype == np.uint8 and cloud.shape == (3, 1, 6, 6)
    assert {tuple(i): int(cloud[tuple(i)]) for i in np.argwhere(cloud)} == {(0, 0, 2, 3): 80, (1, 0, 5, 5): 60}


def test_bands_are_red_green_blue_infrared(archive):
    """The file's bands are infrared, green, blue, red."""
    image = np.stack([np.full((304, 304), v, np.uint8) for v in (200, 90, 80, 70)])
    write_aerial(archive / "aerial" / "Abies_1.tif", image)
    assert example_of(archive)["aerial"][:, 0, 0].tolist() == [70, 90, 80, 200]


def test_series_are_put_in_order(archive):
    arrays = sentinel_arrays(0)
    turned = {key: value[::-1] for key, value in arrays.items()}
    write_sentinel(archive / "sentinel" / "Abies_1.h5", turned)
    example = example_of(archive)
    np.testing.assert_array_equal(example["s2"], arrays["sen-2-data"])
    assert example["s2_dates"].tolist() == [4, 60, 365]


def test_genera_count_above_seven_percent(archive):
    labels = {
        e["id"]: [GENERA[i] for i in np.flatnonzero(e["tile"])] for e in examples_of(TreeSatReader(archive), "train")
    }
    assert labels == {"Fagus_2": ["Cleared", "Fagus"], "Abies_1": ["Abies"]}


def test_tiles_on_disk_are_read_and_counted(archive):
    reader = TreeSatReader(archive)
    assert num_tiles(reader) == 3 and reader.splits() == ("train", "test")
    assert "4 of 5 listed tiles" in reader.summary and "1 without a genus above 7% left out" in reader.summary


def test_a_tile_in_two_lists_is_held_out(archive):
    (archive / "val_filenames.lst").write_text("Abies_1.tif\nAcer_3.tif\n")
    reader = TreeSatReader(archive)
    names = {split: list(reader.keys(split)) for split in reader.splits()}
    assert names == {"train": ["Fagus_2"], "val": ["Abies_1"], "test": ["Acer_3"]}


def test_the_fingerprint_follows_the_tiles_on_disk(archive):
    before = TreeSatReader(archive).fingerprint
    assert TreeSatReader(archive).fingerprint == before
    (archive / "aerial" / "Abies_1.tif").unlink()
    assert TreeSatReader(archive).fingerprint != before


def test_unobserved_pixels_are_masked_and_empty_dates_left_out(archive):
    arrays = sentinel_arrays(0)
    arrays["sen-2-data"][1] = 0
    arrays["sen-2-data"][2, :, 3, 4] = 0
    arrays["sen-2-data"][0, 5, 0, 0] = 0  # one dark band is an observation
    write_sentinel(archive / "sentinel" / "Abies_1.h5", arrays)
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [4, 365] and example["s2_mask"].shape == (2, 1, 6, 6)
    assert np.argwhere(~example["s2_mask"]).tolist() == [[1, 0, 3, 4]]


def test_prepared_and_batched(archive, tmp_path):
    folder = prepare_dataset(TreeSatReader(archive), tmp_path / "out", "1.0.0")
    records = PreparedDataset.open(CARD, folder).records("train")
    np.testing.assert_array_equal(records[1]["aerial"], example_of(archive)["aerial"])
    np.testing.assert_array_equal(records[1]["s2"], sentinel_arrays(0)["sen-2-data"])


def test_nothing_on_disk(archive):
    for path in (archive / "aerial").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 5 tiles listed in .*raw is there; expected aerial"):
        TreeSatReader(archive)


@pytest.mark.parametrize("name", [LABELS, "train_filenames.lst", "test_filenames.lst"])
def test_missing_lists_and_labels(archive, name):
    (archive / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}; expected TreeSatAI-TS as published"):
        TreeSatReader(archive)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (LABELS, '{"Abies_1.tif": [', "cannot be read"),
        (LABELS, "[]", "expected tile names with lists"),
        (LABELS, "{}", r"no labels of tile \w+\.tif"),
        (LABELS, json.dumps({f"{n}.tif": [["Palma", 1.0]] for n in TILES}), "Palma.*expected pairs"),
        (LABELS, json.dumps({f"{n}.tif": ["Abies"] for n in TILES}), "expected pairs"),
        ("train_filenames.lst", "../secret.tif\n", r"train_filenames\.lst: '\.\./secret\.tif' is not a tile"),
    ],
)
def test_spoiled_lists_and_labels(archive, name, text, message):
    (archive / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        TreeSatReader(archive)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", ["aerial/Abies_1.tif", "sentinel/Abies_1.h5"])
def test_unreadable_files(archive, name, how):
    path = archive / name
    cut(path) if how == "cut" else path.write_bytes({"empty": b"", "text": b"<html>not found</html>"}[how])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected .*; download or copy it again"):
        example_of(archive)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 300, 304), np.uint8), np.zeros((3, 304, 304), np.uint8), np.zeros((4, 304, 304), np.uint16)]
)
def test_misshapen_aerial_images(archive, image):
    write_aerial(archive / "aerial" / "Abies_1.tif", image)
    with pytest.raises(
        ValueError, match=r"Abies_1\.tif is uint.* expected a GeoTIFF of 4 bands IR, G, B, R, 304 x 304"
    ):
        example_of(archive)


def put(key, index, value):
    def change(arrays):
        arrays[key][index] = value

    return change


def replace(key, function):
    def change(arrays):
        arrays[key] = function(arrays[key])

    return change


SPOILED = {
    "no key": (lambda a: a.pop("sen-1-asc-data"), r"has no \['sen-1-asc-data'\]"),
    "bands": (
        replace("sen-2-data", lambda a: a[:, :9]),
        r"'sen-2-data' is float32 \(3, 9, 6, 6\); expected .*10, 6, 6",
    ),
    "rank": (replace("sen-1-asc-data", lambda a: a[0]), "'sen-1-asc-data' is float32"),
    "text": (replace("sen-2-data", lambda a: a.astype("S")), "'sen-2-data' is .* expected numbers"),
    "dates": (
        replace("sen-2-products", lambda a: a[:2]),
        r"'sen-2-products' is \(2,\); expected one name for each of 3",
    ),
    "no clouds": (lambda a: a.pop("sen-2-masks"), r"has no \['sen-2-masks'\]"),
    "clouds": (put("sen-2-masks", (0, 1, 2, 2), 101.0), "'sen-2-masks' is .* outside 0 to 100"),
    "clouds' dates": (replace("sen-2-masks", lambda a: a[:2]), r"sen-2-masks.*\(3, 2 or more, 6, 6\)"),
    "no dates": (lambda a: a.update({k: v[:0] for k, v in a.items()}), "each of 0 > 0 dates"),
    "NaN": (replace("sen-2-data", lambda a: a * np.nan), "'sen-2-data' is zero or NaN everywhere"),
    "negative": (put("sen-2-data", (0, 0, 1, 1), -5), "'sen-2-data' runs from -5 to .* expected digital numbers"),
    "large": (put("sen-2-data", (0, 0, 1, 1), 70000), "runs from 1?.* to 70000"),
    "product": (put("sen-2-products", 1, b"S2A_MSIL2A"), r"'sen-2-products': 'S2A_MSIL2A' does not name a day"),
    "date": (put("sen-2-products", 1, b"S2A_MSIL2A_20201345T1"), "'S2A_MSIL2A_20201345T1' does not name a day"),
    "nothing": (put("sen-1-asc-data", slice(None), 0), "'sen-1-asc-data' is zero or NaN everywhere"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_series(archive, case):
    change, message = SPOILED[case]
    arrays = sentinel_arrays(0)
    change(arrays)
    write_sentinel(archive / "sentinel" / "Abies_1.h5", arrays)
    with pytest.raises(ValueError, match=rf"(?s)Abies_1\.h5.*{message}"):
        example_of(archive)


def test_decibels_are_refused(archive):
    arrays = sentinel_arrays(0)
    replace("sen-1-asc-data", lambda a: 10 * np.log10(a))(arrays)
    write_sentinel(archive / "sentinel" / "Abies_1.h5", arrays)
    with pytest.raises(ValueError, match="tile 'Abies_1': band 'VV' of 's1-asc' .*; expected linear power"):
        read_tile(TreeSatReader(archive), "train", "Abies_1")


@pytest.mark.parametrize("package", ["rasterio", "h5py"])
def test_without_the_readers_the_error_says_what_to_install(archive, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    with pytest.raises(ImportError, match=rf"needs {package}: pip install -e '\.\[data\]'"):
        example_of(archive)


def test_what_holds_the_layout(archive, tmp_path):
    assert holds_raw(archive) and not holds_raw(tmp_path)


def test_the_real_tile(real_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = real_data / "treesatai_ts"
    config = data_config(root)
    config.datasets = {CARD.name: dict(batch_size=2, weight=1.0, patch_sizes=(10, 20, 30), max_dates=32)}
    load.open_datasets(config)
    assert "1 of 50381 listed tiles" in capsys.readouterr().err
    with h5py.File(root / "sentinel" / f"{REAL}.h5") as file, rasterio.open(root / "aerial" / f"{REAL}.tif") as image:
        s2, s1, aerial = file["sen-2-data"][()], file["sen-1-asc-data"][()], image.read()
    (example,) = examples_of(TreeSatReader(root), "train")
    check_card(CARD)
    check_example(CARD, REAL, example)
    assert example["crs"] == "EPSG:25832" and set(example["s2_years"]) == {2020}
    assert example["s2_cloud"].max() == 100 and example["s2_cloud"].min() == 0
    np.testing.assert_array_equal(example["s2"], s2)
    np.testing.assert_array_equal(example["s1-asc"], s1)
    assert (example["s2_dates"][0], example["s2_dates"][-1], example["s1-asc_dates"][0]) == (1, 364, 2)
    batch = next(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=20, batch_size=1))
    assert batch.grid == (3, 3) and batch.observations["s1-asc"].values.shape == (1, 32, 2, 6, 6)
    assert [GENERA[i] for i in np.flatnonzero(batch.labels["tile"][0])] == ["Abies", "Fagus"]
    infrared = aerial[0].astype(np.float64)
    expected = ((infrared - infrared.mean()) / infrared.std())[2:302, 2:302]
    np.testing.assert_allclose(batch.observations["aerial"].values[0, 3], expected, atol=1e-5)
