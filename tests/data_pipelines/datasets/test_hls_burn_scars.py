"""HLS Burn Scars: an archive written here in the published layout, a real mask, and a real HLS raster."""

import pickle
import shutil

import numpy as np
import pytest
import rasterio

from data_pipelines import load
from data_pipelines.datasets.hls_burn_scars import CARD, BurnScarsReader, holds_raw, split_of
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.hls_burn_scars import write_archive
from data_pipelines.prepare.plan import plan_facts
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepare.shards import read_tile
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import data_config, examples_of

PLACE = dict(crs="EPSG:32610", transform=(30.0, 0.0, 7e5, 0.0, -30.0, 5.2e6))
SCENE = "subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4"


def scene(level=0.1):
    """Each band holds a tenth more than the one before."""
    return np.full((6, 512, 512), level, np.float32) + np.float32(0.1) * np.arange(6, dtype=np.float32)[:, None, None]


def mask(value=0):
    return np.full((1, 512, 512), value, np.int16)


def write_pair(root, name=SCENE, folder="training", image=None, label=None):
    write_raster(root / folder / f"{name}_merged.tif", scene() if image is None else image, **PLACE)
    write_raster(root / folder / f"{name}.mask.tif", mask() if label is None else label, nodata=-1, **PLACE)


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "raw"
    write_pair(root)
    return root


def example_of(archive, split="train"):
    return examples_of(BurnScarsReader(archive), split)[0]


def touch_pair(root, folder, name):
    """For tests of names alone."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for ending in ("_merged.tif", ".mask.tif"):
        (root / folder / f"{name}{ending}").touch()


def test_written_values_come_back(archive):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (6, 512, 512)).astype(np.float32)
    label = rng.integers(-1, 2, (1, 512, 512)).astype(np.int16)
    write_pair(archive, image=image, label=label)
    example = example_of(archive)
    np.testing.assert_array_equal(example["hls"][0], image)
    np.testing.assert_array_equal(example["dense"], label[0])
    assert example["id"] == SCENE and example["hls_mask"].all() and example["hls"].dtype == np.float32
    assert example["crs"] == "EPSG:32610" and example["transform"].tolist() == list(PLACE["transform"])


def test_the_name_tells_the_date(archive):
    example = example_of(archive)
    assert (example["hls_dates"].tolist(), example["hls_years"].tolist()) == ([284], [2018])


@pytest.mark.parametrize(("day", "message"), [("2019366", "2019 has no day 366"), ("2019000", "is not a day")])
def test_a_day_that_the_year_lacks_is_refused(tmp_path, day, message):
    touch_pair(tmp_path, "training", f"subsetted_512x512_HLS.S30.T10TGS.{day}.v1.4")
    with pytest.raises(ValueError, match=rf"T10TGS\.{day}\.v1\.4_merged\.tif.*{message}"):
        BurnScarsReader(tmp_path)


@pytest.mark.parametrize("name", ["scene_1", "subsetted_512x512_HLS.S30.T10TGS.v1.4", "HLS.S30.T10TGS.20181012.v1.4"])
def test_a_name_without_place_and_day_is_refused(tmp_path, name):
    touch_pair(tmp_path, "training", name)
    with pytest.raises(
        ValueError, match=rf"{name}_merged\.tif does not name a place and a day; expected a name like subsetted"
    ):
        BurnScarsReader(tmp_path)


def test_pairs_are_made_by_name_not_by_order(archive):
    """A mask without its scene, first in the list, would shift every pair of two sorted lists."""
    other = SCENE.replace("T10TGS", "T10SDH")
    write_raster(archive / "training" / f"{other}.mask.tif", mask(1))
    reader = BurnScarsReader(archive)
    assert reader.keys("train") == (SCENE,) and "1 files without the scene or mask" in reader.summary
    assert not example_of(archive)["dense"].any()


def test_nodata_negatives_and_nan_are_masked_band_by_band(archive):
    image = scene()
    image[:, 0, 0] = 9999
    image[2, 1, 1], image[3, 2, 2], image[4, 3, 3] = -0.01, np.nan, -0.9999
    image[0, 4, 4], image[1, 5, 5] = 0.0, 1.6  # black, and a bright cloud, are observations
    write_pair(archive, image=image)
    example = example_of(archive)
    check_example(CARD, SCENE, example)
    hidden = np.argwhere(~example["hls_mask"][0]).tolist()
    assert hidden == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 1], [3, 0, 0], [3, 2, 2], [4, 0, 0], [4, 3, 3], [5, 0, 0]]


@pytest.mark.parametrize("scale", [10_000, 100])
def test_the_wrong_unit_is_refused(archive, scale):
    write_pair(archive, image=scene() * scale)
    with pytest.raises(ValueError, match=r"_merged\.tif goes up to \d+; expected reflectance from 0 to about 1"):
        example_of(archive)


def test_a_scene_without_data_is_refused(archive):
    write_pair(archive, image=np.full_like(scene(), 9999))
    with pytest.raises(ValueError, match=r"_merged\.tif holds no valid value"):
        example_of(archive)


SPOILED = {
    "bands": (scene()[:5], mask(), r"_merged\.tif is float32 \(5, 512, 512\); expected .* 6 bands B02, B03, B04, B8A"),
    "pixels": (scene()[:, :500], mask(), r"_merged\.tif is float32 \(6, 500, 512\)"),
    "integers": ((scene() * 1e4).astype(np.int16), mask(), r"_merged\.tif is int16 .* float32"),
    "mask size": (scene(), mask()[:, :, :500], r"\.mask\.tif is int16 \(1, 512, 500\); expected .* one band"),
    "mask type": (scene(), mask().astype(np.float32), r"\.mask\.tif is float32 .* whole numbers -1"),
    "classes": (scene(), mask(255), r"\.mask\.tif holds \[255\]; expected"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_files(archive, case):
    image, label, message = SPOILED[case]
    write_pair(archive, image=image, label=label)
    with pytest.raises(ValueError, match=message):
        example_of(archive)


@pytest.mark.parametrize("ending", ["_merged.tif", ".mask.tif"])
def test_truncated_and_missing_files(archive, ending):
    reader, path = BurnScarsReader(archive), archive / "training" / f"{SCENE}{ending}"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected a GeoTIFF"):
        reader.example("train", SCENE)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {path}; expected a GeoTIFF"):
        reader.example("train", SCENE)


def test_nothing_on_disk(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tile of 'hls_burn_scars'; see https"):
        BurnScarsReader(tmp_path)
    assert not holds_raw(tmp_path)


def test_validation_is_the_test_split_and_a_place_is_on_one_side_of_training(tmp_path):
    squares = [f"T10T{a}{b}" for a in "ABCDEFGHJK" for b in "ABCDEFGHJK"]
    for square in squares:
        for day in ("2018285", "2020100"):
            touch_pair(tmp_path, "training", f"subsetted_512x512_HLS.S30.{square}.{day}.v1.4")
    touch_pair(tmp_path, "validation", f"subsetted_512x512_HLS.S30.{squares[0]}.2019001.v1.4")
    reader = BurnScarsReader(tmp_path)
    assert reader.splits() == ("train", "val", "test") and len(reader.keys("test")) == 1
    places = [{key.split(".")[2] for key in reader.keys(split)} for split in ("train", "val")]
    assert not places[0] & places[1] and places[0] | places[1] == set(squares) and 5 <= len(places[1]) <= 15
    assert {split_of("validation", square) for square in squares} == {"test"}


def test_a_scene_keeps_its_split_whatever_else_is_there(tmp_path):
    write_archive(tmp_path, {"train": 2, "val": 1})
    reader = BurnScarsReader(tmp_path)
    (held_out,), first = reader.keys("val"), reader.keys("train")[0]
    (tmp_path / "training" / f"{first}_merged.tif").unlink()
    assert BurnScarsReader(tmp_path).keys("val") == (held_out,)
    assert BurnScarsReader(tmp_path).fingerprint != reader.fingerprint


def test_a_scene_in_both_folders_is_refused(archive):
    shutil.copytree(archive / "training", archive / "validation")
    with pytest.raises(ValueError, match=f"'{SCENE}' comes in 'train' and 'test'"):
        plan_facts(BurnScarsReader(archive), "1.0.0", None, None)


def test_the_made_up_archive_keeps_the_card(tmp_path):
    write_archive(tmp_path, {"train": 3, "val": 1, "test": 2}, seed=3)
    reader = pickle.loads(pickle.dumps(BurnScarsReader(tmp_path)))
    check_card(CARD)
    assert holds_raw(tmp_path) and [len(reader.keys(split)) for split in CARD.splits] == [3, 1, 2]
    for split in CARD.splits:
        for key in reader.keys(split):
            example = reader.example(split, key)
            check_example(CARD, key, example)
            assert set(np.unique(example["dense"])) == {-1, 0, 1} and not example["hls_mask"].all()


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "raw"
    write_archive(root, {"train": 2})
    folder = prepare_dataset(BurnScarsReader(root), tmp_path / "out", "1.0.0")
    assert len(PreparedDataset.open(CARD, folder).records("train")) == 2
    config = data_config(root)
    config.datasets = {CARD.name: dict(batch_size=1, weight=1.0, patch_sizes=(240,))}
    batch = next(load.train_iterator(load.open_datasets(config), seed=0))
    assert batch.observations["hls"].values.shape == (1, 1, 6, 512, 512) and batch.grid == (64, 64)


def test_the_real_mask_with_a_scene_written_here(real_data, tmp_path):
    real = real_data / "terratorch" / "examples" / "notebooks" / f"{SCENE}.mask.tif"
    image = scene()
    write_pair(tmp_path, image=image)
    shutil.copy(real, tmp_path / "training")
    example = example_of(tmp_path)
    check_example(CARD, SCENE, example)
    assert example["id"] == SCENE and example["hls_dates"].tolist() == [284]
    counts = {value: int((example["dense"] == value).sum()) for value in (-1, 0, 1)}
    assert counts == {-1: 0, 0: 211640, 1: 50504}


def test_real_hls_values(real_data, tmp_path):
    """Real reflectance x 10000 is refused; divided, it passes, and what is nodata, negative or 0 in all is masked."""
    path = real_data / "terratorch" / "tests" / "resources" / "inputs" / "regression_test_0_input.tif"
    with rasterio.open(path) as file:
        bands = file.read([2, 3, 4, 5, 6, 7])  # of Landsat: B02, B03, B04, B05, B06, B07
    real = np.tile(bands, (1, 3, 3))[:, :512, :512]
    write_pair(tmp_path, image=real)
    with pytest.raises(ValueError, match=r"goes up to 11317; expected reflectance"):
        example_of(tmp_path)
    write_pair(tmp_path, image=real / np.float32(10_000))
    example = read_tile(BurnScarsReader(tmp_path), "train", SCENE)
    np.testing.assert_array_equal(example["hls_mask"][0], (real >= 0) & (real != 0).any(axis=0))
    assert 0 < (~example["hls_mask"]).sum() < real.size / 50
    red, infrared = (example["hls"][0, band][example["hls_mask"][0, band]].mean() for band in (2, 3))
    assert 0.02 < red < 0.2 < infrared < 0.5
