"""FLAIR #2 and #1: archives in the published layouts with known values."""

import json
import pickle
import shutil

import numpy as np
import pytest
import rasterio

from data_pipelines import load
from data_pipelines.datasets.flair import CARD, CLASSES, FlairReader, holds_raw
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.flair import write_archive
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.fake_reader import data_config, examples_of

PLACE, KEY = "D006_2020/Z1_UF", "D006_2020-Z1_UF-000002"
IMAGE, LABELS = f"flair_aerial_train/{PLACE}/img/IMG_000002.tif", f"flair_labels_train/{PLACE}/msk/MSK_000002.tif"
SEN = f"flair_sen_train/{PLACE}/sen/SEN2_sp_D006_2020-Z1_UF"
DATA, CLOUDS, PRODUCTS = f"{SEN}_data.npy", f"{SEN}_masks.npy", f"{SEN}_products.txt"
CENTROIDS = "flair-2_centroids_sp_to_patch.json"
DAYS = ("20201230", "20210102", "20210703")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flair")
    write_archive(folder, {"train": 5, "val": 1, "test": 1})
    return folder


def put(path, content):
    """Writes a file anew: text, a raster, or an array."""
    path.unlink(missing_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".tif":
        write_raster(path, content)
    else:
        np.save(path, content)


def write_series(root, days=DAYS, values=None, clouds=None, height=60, width=70):
    shape = (len(days), 10, height, width)
    put(root / DATA, np.ones(shape, np.uint16) if values is None else values)
    put(root / CLOUDS, np.zeros((len(days), 2, height, width), np.uint8) if clouds is None else clouds)
    put(root / PRODUCTS, "".join(f"S2A_MSIL2A_{day}T105021_N0300_R051_T31UDP_20990101T135921\n" for day in days))


def write_centroids(root, **places):
    table = json.loads((root / CENTROIDS).read_text())
    put(root / CENTROIDS, json.dumps(table | {f"{name}.tif": place for name, place in places.items()}))


def example_of(root, key=KEY):
    reader = FlairReader(root)
    (split,) = [s for s in reader.splits() if key in reader.keys(s)]
    return reader.example(split, key)


def test_the_fake_archive_keeps_the_card_s_promise(written):
    check_card(CARD)
    reader = FlairReader(written)
    assert holds_raw(written) and not holds_raw(written / "flair_sen_train")
    assert {s: len(reader.keys(s)) for s in reader.splits()} == {"train": 5, "val": 1, "test": 1}
    assert "7 images, 0 without labels, 0 of no split, 0 without s2" in reader.summary
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            check_example(CARD, key, example)
            assert example["id"] == key and example["s2_cloud"].any() and example["crs"] == "EPSG:2154"
    assert not reader.example("train", "D006_2020-Z1_UF-000001")["s2_mask"].all()


def test_the_same_seed_writes_the_same_archive(written, tmp_path):
    write_archive(tmp_path, {"train": 5})
    for name in (IMAGE, LABELS, DATA, CLOUDS, PRODUCTS):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_bands_are_red_green_blue_infrared_elevation(archive):
    image = np.stack([np.full((512, 512), v, np.uint8) for v in (10, 20, 30, 40, 50)])
    image[:, 0, 511], image[:, 511, 0] = 1, 2
    (archive / IMAGE).unlink()
    write_raster(archive / IMAGE, image, crs="EPSG:2154", transform=(0.2, 0, 7e5, 0, -0.2, 6e6))
    example = example_of(archive)
    np.testing.assert_array_equal(example["aerial-flair"], image)
    assert example["crs"] == "EPSG:2154" and example["transform"].tolist() == [0.2, 0, 7e5, 0, -0.2, 6e6]


def test_labels_count_from_zero_and_the_rare_ones_are_one_class(archive):
    labels = np.full((1, 512, 512), 3, np.uint8)
    labels[0, 0, :6] = (1, 12, 13, 14, 18, 19)
    put(archive / LABELS, labels)
    example = example_of(archive)
    assert example["dense"].dtype == np.int8 and example["dense"].shape == (512, 512)
    assert example["dense"][0, :7].tolist() == [0, 11, 12, 12, 12, 12, 2]
    found = [CLASSES[i] for i in np.flatnonzero(example["tile"])]
    assert found == ["building", "impervious surface", "plowed land", "other"]


def test_the_tile_is_cut_around_its_place_in_the_series(archive):
    rows, columns = np.arange(60)[:, None] * 100, np.arange(70)[None]
    bands = np.arange(10)[:, None, None] * 6000
    values = np.stack([bands + rows + columns + 1 + date for date in range(3)]).astype(np.uint16)
    clouds = np.zeros((3, 2, 60, 70), np.uint8)
    clouds[0, 0, 20, 33], clouds[0, 1, 20, 33], clouds[1, 1, 29, 42], clouds[2, 1, 19, 33] = 30, 20, 100, 99
    write_series(archive, values=values, clouds=clouds)
    write_centroids(archive, IMG_000002=[25, 38])  # row, column
    example = example_of(archive)
    np.testing.assert_array_equal(example["s2"], values[:, :, 20:30, 33:43])
    assert example["s2"].dtype == np.uint16 and example["s2_mask"].all()
    percent = np.zeros((3, 1, 10, 10), np.uint8)
    percent[0, 0, 0, 0], percent[1, 0, 9, 9] = 30, 100
    np.testing.assert_array_equal(example["s2_cloud"], percent)


def test_dates_come_from_the_products_with_their_year(archive):
    write_series(archive)
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [364, 1, 183] and example["s2_years"].tolist() == [2020, 2021, 2021]


def test_series_are_put_in_time_order(archive):
    values = np.arange(1, 4, dtype=np.uint16)[:, None, None, None] * np.ones((10, 60, 70), np.uint16)
    clouds = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((2, 60, 70), np.uint8)
    write_series(archive, DAYS[::-1], values, clouds)
    example = example_of(archive)
    assert example["s2"][:, 0, 0, 0].tolist() == [3, 2, 1] and example["s2_cloud"][:, 0, 0, 0].tolist() == [2, 1, 0]
    assert example["s2_dates"].tolist() == [364, 1, 183]


def test_what_was_not_observed_is_masked_and_empty_dates_are_left_out(archive):
    values = np.ones((3, 10, 60, 70), np.uint16)
    values[1] = 0
    values[2, :, 20, 33] = 0
    values[0, 5, 20, 34] = 0  # one dark band is an observation
    write_series(archive, values=values)
    write_centroids(archive, IMG_000002=[25, 38])
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [364, 183] and len(example["s2_cloud"]) == 2
    assert np.argwhere(~example["s2_mask"]).tolist() == [[1, 0, 0, 0]]
    check_example(CARD, KEY, example)


def test_image_and_label_belong_together_by_number(archive):
    """A missing label must not shift the others, and 10 comes after 9."""
    for folder, kind, prefix in (("aerial", "img", "IMG"), ("labels", "msk", "MSK")):
        where = archive / f"flair_{folder}_train" / PLACE / kind
        for old, new in (("000003", "10"), ("000004", "9")):
            (where / f"{prefix}_{old}.tif").rename(where / f"{prefix}_{new}.tif")
    write_centroids(archive, IMG_9=[20, 20], IMG_10=[20, 30])
    put(archive / f"flair_labels_train/{PLACE}/msk/MSK_9.tif", np.full((1, 512, 512), 9, np.uint8))
    put(archive / f"flair_labels_train/{PLACE}/msk/MSK_10.tif", np.full((1, 512, 512), 10, np.uint8))
    (archive / LABELS).unlink()
    reader = FlairReader(archive)
    assert [key.rsplit("-", 1)[1] for key in reader.keys("train")] == ["000001", "9", "10", "000005"]
    assert "7 images, 1 without labels" in reader.summary
    classes = [int(e["dense"][0, 0]) for e in examples_of(reader, "train")[1:3]]
    assert classes == [8, 9]


def test_a_cut_at_the_edge_of_the_series(archive):
    write_series(archive)
    for place in ([5, 5], [55, 65]):
        write_centroids(archive, IMG_000002=place)
        assert example_of(archive)["s2"].shape == (3, 10, 10, 10)
    for place in ([4, 5], [5, 4], [56, 65], [55, 66]):
        write_centroids(archive, IMG_000002=place)
        with pytest.raises(
            ValueError, match=rf"{DATA} has 60 x 70 pixels, but the tile's 10 x 10 lie around \({place[0]}"
        ):
            example_of(archive)


def test_validation_domains_of_the_baseline(archive):
    reader = FlairReader(archive)
    assert reader.keys("val") == ("D004_2021-Z1_UF-000006",) and reader.keys("test") == ("D015_2020-Z1_UF-000007",)


def test_splits_of_a_list(archive):
    put(archive / "splits.json", json.dumps({"train": ["D004_2021"], "val": ["D006_2020"], "test": ["D015_2020"]}))
    reader = FlairReader(archive)
    assert {s: len(reader.keys(s)) for s in reader.splits()} == {"train": 1, "val": 5, "test": 1}
    assert reader.fingerprint != FlairReader(_without(archive, "splits.json")).fingerprint


def _without(root, name):
    (root / name).unlink()
    return root


def test_domains_that_the_list_does_not_name_or_has_elsewhere_are_counted(archive):
    put(archive / "splits.json", json.dumps({"train": ["D006_2020", "D015_2020"], "val": [], "test": []}))
    reader = FlairReader(archive)
    assert reader.splits() == ("train",) and "2 of no split" in reader.summary  # a test folder's tile is not trained on


def test_flair_1_has_no_series(archive):
    for name in ("flair_sen_train", "flair_2_sen_test"):
        shutil.rmtree(archive / name)
    for kind in ("aerial", "labels"):
        (archive / f"flair_2_{kind}_test").rename(archive / f"flair_1_{kind}_test")
    (archive / CENTROIDS).unlink()
    assert holds_raw(archive)
    reader = FlairReader(archive)
    assert "7 without s2" in reader.summary and len(reader.keys("test")) == 1
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            assert "s2" not in example and "s2_dates" not in example
            check_example(CARD, key, example)


def test_the_test_set_of_the_second_edition_comes_first(archive):
    for kind in ("aerial", "labels"):
        shutil.copytree(archive / f"flair_2_{kind}_test", archive / f"flair_1_{kind}_test")
    assert FlairReader(archive).keys("test") == ("D015_2020-Z1_UF-000007",)


def test_all_kinds_of_files_below_one_folder(archive, tmp_path):
    """As unzipped from the archives of one domain each."""
    for part, folder in (("train", "data/train-val"), ("test", "data/flair#2-test")):
        prefix = "flair" if part == "train" else "flair_2"
        for kind in ("aerial", "labels", "sen"):
            shutil.copytree(archive / f"{prefix}_{kind}_{part}", tmp_path / "new" / folder, dirs_exist_ok=True)
    (tmp_path / "new/aux-data").mkdir()
    shutil.copy(archive / CENTROIDS, tmp_path / "new/aux-data")
    reader = FlairReader(tmp_path / "new")
    assert {s: len(reader.keys(s)) for s in reader.splits()} == {"train": 5, "val": 1, "test": 1}
    np.testing.assert_array_equal(reader.example("train", KEY)["s2"], example_of(archive)["s2"])


def test_files_right_in_the_area_s_folder(archive):
    for path in [*archive.rglob("img"), *archive.rglob("msk"), *archive.rglob("sen")]:
        for file in path.iterdir():
            file.rename(path.parent / file.name)
        path.rmdir()
    check_example(CARD, KEY, example_of(archive))


def test_a_partial_download(archive):
    before = FlairReader(archive).fingerprint
    shutil.rmtree(archive / "flair_2_aerial_test")
    shutil.rmtree(archive / f"flair_sen_train/{PLACE}")
    reader = FlairReader(archive)
    assert reader.splits() == ("train", "val") and "4 without s2" in reader.summary and reader.fingerprint != before
    assert ["s2" in e for e in examples_of(reader, "train")] == [False] * 4 + [True]


def test_a_reader_goes_to_worker_processes(written):
    reader = pickle.loads(pickle.dumps(FlairReader(written)))
    check_example(CARD, KEY, reader.example("train", KEY))


def test_prepared_and_batched(written, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = data_config(written)
    config.datasets = {CARD.name: dict(batch_size=1, weight=1.0, patch_sizes=(50,), max_dates=3)}
    batch = next(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=50, batch_size=1))
    assert batch.observations["aerial-flair"].values.shape == (1, 5, 500, 500)
    assert batch.observations["s2"].values.shape == (1, 3, 10, 10, 10) and batch.labels["tile"].shape == (1, 13)


def test_an_empty_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tile of 'flair'; see https://ignf"):
        FlairReader(tmp_path)


def test_names_that_are_no_tiles_are_not_read(archive):
    for name in ("D006_2020/Z1_UF/img/IMG_..tif", "D006_2020/Z1_UF/img/IMG_a.tif", "D006_2020/readme.txt", "__MACOSX"):
        (archive / "flair_aerial_train" / name).touch()
    assert "7 images" in FlairReader(archive).summary


SPOILED_TEXTS = {
    "no json": (CENTROIDS, "{", "cannot be read"),
    "list": (CENTROIDS, "[]", "is not as published; expected FLAIR #2's places"),
    "one number": (CENTROIDS, '{"IMG_000002.tif": [3]}', "is not as published"),
    "splits": ("splits.json", '{"train": []}', "has no lists 'train', 'val' and 'test'"),
    "twice": ("splits.json", '{"train": ["D006_2020"], "val": ["D006_2020"], "test": []}', "names 1 domains more than"),
}


@pytest.mark.parametrize("case", SPOILED_TEXTS)
def test_spoiled_lists(archive, case):
    name, text, message = SPOILED_TEXTS[case]
    put(archive / name, text)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        FlairReader(archive)


def test_series_without_their_places(archive):
    (archive / CENTROIDS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{CENTROIDS}; expected FLAIR #2's places"):
        FlairReader(archive)


def test_a_tile_without_its_place(archive):
    put(archive / CENTROIDS, "{}")
    with pytest.raises(ValueError, match=rf"{CENTROIDS} does not name IMG_000002\.tif; expected its row and column"):
        example_of(archive)


def test_two_series_in_an_area(archive):
    shutil.copy(archive / DATA, (archive / DATA).with_name("SEN2_sp_other_data.npy"))
    with pytest.raises(ValueError, match=r"Z1_UF/sen holds 2 files \*data\.npy; expected the one series"):
        FlairReader(archive)


ones = np.ones
SPOILED_FILES = {
    "image bands": (IMAGE, ones((3, 512, 512), np.uint8), r"is uint8 \(3, 512, 512\); expected a GeoTIFF of 5 bands"),
    "image size": (IMAGE, ones((5, 500, 500), np.uint8), r"is uint8 \(5, 500, 500\)"),
    "image dtype": (IMAGE, ones((5, 512, 512), np.uint16), "is uint16"),
    "label size": (LABELS, ones((1, 500, 512), np.uint8), r"is uint8 \(1, 500, 512\); expected a GeoTIFF of one band"),
    "label 0": (LABELS, np.zeros((1, 512, 512), np.uint8), "holds labels 0 to 0; expected .* from 1 to 19"),
    "label 20": (LABELS, 20 * ones((1, 512, 512), np.uint8), "holds labels 20 to 20"),
    "dates": (DATA, ones((2, 10, 60, 70), np.uint16), r"expected reflectances of shape \(3, 10, .* each line of SEN2"),
    "bands": (DATA, ones((3, 9, 60, 70), np.uint16), r"is uint16 \(3, 9, 60, 70\)"),
    "text": (DATA, ones((3, 10, 60, 70), np.uint16).astype("S"), r"is \|S"),
    "negative": (DATA, -ones((3, 10, 60, 70), np.int32), "runs from -1 to -1; expected reflectances x 10000"),
    "cloud size": (
        CLOUDS,
        ones((3, 2, 60, 60), np.uint8),
        r"expected percentages of snow and cloud of shape \(3, 2, 60",
    ),
    "cloud": (CLOUDS, 101 * ones((3, 2, 60, 70), np.uint8), "runs from 101 to 101; expected percentages"),
    "date": (PRODUCTS, "S2A_MSIL2A_20211305T1\n", "'20211305' is not a day"),
    "short": (PRODUCTS, "S2A\n", "is not a day"),
    "no date": (PRODUCTS, "\n", "is empty; expected names of Sentinel-2 products"),
}


@pytest.mark.parametrize("case", SPOILED_FILES)
def test_spoiled_files(archive, case):
    name, content, message = SPOILED_FILES[case]
    write_series(archive)
    put(archive / name, content)
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        example_of(archive)


@pytest.mark.parametrize("name", [IMAGE, LABELS, DATA, CLOUDS])
def test_truncated_files(archive, name):
    content = (archive / name).read_bytes()
    (archive / name).unlink()
    (archive / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name} cannot be read .*download or copy it again"):
        example_of(archive)


@pytest.mark.parametrize("name", [IMAGE, LABELS, DATA, CLOUDS, PRODUCTS])
def test_files_that_vanish(archive, name):
    reader = FlairReader(archive)
    (archive / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{name}; expected"):
        reader.example("train", KEY)


def test_the_image_is_read_as_published(written):
    with rasterio.open(written / IMAGE) as file:
        np.testing.assert_array_equal(example_of(written)["aerial-flair"], file.read())
