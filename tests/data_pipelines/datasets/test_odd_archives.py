"""Archives of GeoPlex that are odd, but legal: copied by other tools, in parts, or with sensors that saw nothing."""

import json
import os
import pathlib
import shutil
import tarfile

import h5py
import numpy as np
import pytest

from data_pipelines.archives import _members
from data_pipelines.datasets import flair, pastis_hd, planted, s2naip, treesatai_ts
from data_pipelines.datasets.planted import LABELS
from data_pipelines.datasets.s2naip import TileFiles
from data_pipelines.fakes import write_fake
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.planted import write_archive as write_planted
from data_pipelines.fakes.s2naip import write_archive as write_s2naip
from data_pipelines.prepare.records import check_example
from data_pipelines.rasters import read_raster
from data_pipelines.registry import GEOPLEX_NAMES, get_entry


def read_all(reader):
    for split in reader.splits():
        for key in reader.keys(split):
            check_example(reader.card, key, reader.example(split, key))


@pytest.mark.parametrize("name", GEOPLEX_NAMES)
def test_what_macos_and_windows_lay_beside_files(name, tmp_path):
    write_fake(name, tmp_path, tiles=1)
    before = get_entry(name).reader(tmp_path)
    for folder, _, names in list(os.walk(tmp_path)):
        for beside in (".DS_Store", "Thumbs.db", *(f"._{name}" for name in names)):
            with open(os.path.join(folder, beside), "wb") as file:
                file.write(b"\0\5\x16\7" * 10)
    reader = get_entry(name).reader(tmp_path)
    assert reader.summary == before.summary
    read_all(reader)


@pytest.mark.parametrize("name", GEOPLEX_NAMES)
def test_folders_that_are_links_to_another_disk(name, tmp_path):
    write_fake(name, tmp_path / "disk", tiles=1)
    (tmp_path / "raw").mkdir()
    for path in (tmp_path / "disk").iterdir():
        (tmp_path / "raw" / path.name).symlink_to(path)
    read_all(get_entry(name).reader(tmp_path / "raw"))


# PASTIS-HD


@pytest.fixture
def pastis(tmp_path):
    write_fake("pastis_hd", tmp_path, tiles=1)
    return tmp_path


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_pastis_of_wider_numbers(pastis, dtype):
    path = pastis / "DATA_S2" / "S2_10000.npy"
    values = pastis_hd.PastisReader(pastis).example("train", "10000")["s2"]
    np.save(path, np.load(path).astype(dtype))
    again = pastis_hd.PastisReader(pastis).example("train", "10000")["s2"]
    assert again.dtype == np.int16
    np.testing.assert_array_equal(again, values)


def test_pastis_metadata_with_the_days_as_text(pastis):
    reader = pastis_hd.PastisReader(pastis)
    table = json.loads((pastis / "metadata.geojson").read_text())
    for feature in table["features"]:
        for field in ("dates-S2", "dates-S1A"):
            feature["properties"][field] = json.dumps(feature["properties"][field])
    (pastis / "metadata.geojson").write_text(json.dumps(table))
    assert pastis_hd.PastisReader(pastis).patches == reader.patches


def test_a_patch_whose_radar_saw_nothing_lacks_it(pastis):
    path = pastis / "DATA_S1A" / "S1A_10000.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    example = pastis_hd.PastisReader(pastis).example("train", "10000")
    check_example(pastis_hd.CARD, "10000", example)
    assert "s2" in example and not any(key.startswith("s1") for key in example)


# FLAIR


@pytest.fixture
def flair_series(tmp_path):
    """The archive, its first training tile, and the file of the tile's series."""
    write_fake("flair", tmp_path, tiles=1)
    key = flair.FlairReader(tmp_path).keys("train")[0]
    (path,) = (tmp_path / "flair_sen_train").glob("D006_2020/*/sen/*data.npy")
    return tmp_path, key, path


def test_a_tile_of_flair_that_was_never_seen_lacks_s2(flair_series):
    root, key, path = flair_series
    np.save(path, np.zeros_like(np.load(path)))
    example = flair.FlairReader(root).example("train", key)
    check_example(flair.CARD, key, example)
    assert not any(key.startswith("s2") for key in example)


def test_flair_of_floats_with_nan(flair_series):
    root, key, path = flair_series
    before = flair.FlairReader(root).example("train", key)
    values = np.load(path).astype(np.float32)
    values[1, 4, 20, 20] = np.nan  # the middle of the tile is (20, 20)
    values[2] = np.nan
    np.save(path, values)
    example = flair.FlairReader(root).example("train", key)
    check_example(flair.CARD, key, example)
    assert len(example["s2"]) == len(before["s2"]) - 1 and not example["s2_mask"][1, 0, 5, 5]
    assert example["s2_mask"].sum() == before["s2_mask"][[0, 1, *range(3, len(before["s2"]))]].sum() - 1


# PLANTED


def test_two_versions_of_planted_side_by_side(tmp_path):
    """They hold the same tiles, which would be read twice, or trained and tested on."""
    write_planted(tmp_path / "1.0.1", {"train": 1, "val": 1})
    shutil.copytree(tmp_path / "1.0.1", tmp_path / "1.2.0")
    with pytest.raises(
        ValueError, match=r"holds files of 'train' in the folders 1\.0\.1, 1\.2\.0; expected those of one"
    ):
        planted.open_reader(tmp_path)
    for split in ("train", "validation"):  # a folder for each split is fine
        (tmp_path / "own" / split).mkdir(parents=True)
        shutil.copy(next((tmp_path / "1.0.1").glob(f"*{split}*")), tmp_path / "own" / split)
    assert planted.open_reader(tmp_path / "own").splits() == ("train", "val")


def test_a_million_labels_of_planted_are_no_questions_to_the_disk(tmp_path, monkeypatch):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / LABELS).write_text(json.dumps({f"tile{i}": 1 for i in range(9)} | {"a": 1}))
    monkeypatch.setattr(pathlib.Path, "resolve", None)  # which asks for every folder on the way
    assert planted.open_reader(tmp_path).keys("train") == ("a",)


# S2NAIP


def test_tiles_of_s2naip_come_archive_by_archive(tmp_path):
    """By name they would jump between hundreds of archives, and each would be listed again for every tile."""
    write_s2naip(tmp_path, {"train": 6}, layout="tars")
    (path,) = (tmp_path / "naip_32612").glob("*.tar")
    with tarfile.open(path) as archive:
        members = [(m, archive.extractfile(m)) for m in archive if m.isreg()]
        for number in range(2):
            with tarfile.open(path.with_name(f"{number}.tar"), "w") as half:
                for member, content in sorted(members, key=lambda one: one[0].name)[number::2]:
                    half.addfile(member, content)
    path.unlink()
    (path.parent / "._0.tar").write_bytes(b"\0\5\x16\7" * 200)
    keys = s2naip.S2NaipReader(tmp_path).keys("train")
    assert keys == (*sorted(keys)[::2], *sorted(keys)[1::2])
    (tmp_path / "train.csv").write_text("name\n" + "\n".join(sorted(keys, reverse=True)))
    listed = s2naip.S2NaipReader(tmp_path).keys("train")
    assert listed == (*sorted(keys)[-2::-2], *sorted(keys)[-1::-2])
    files = TileFiles(tmp_path)
    assert [files.archive(key)[1] for key in keys] == ["0.tar"] * 3 + ["1.tar"] * 3
    assert _members.cache_info().maxsize >= 8  # an archive of each kind of data at once


def test_the_fingerprint_of_s2naip_follows_dates_and_files(tmp_path):
    write_s2naip(tmp_path, {"train": 2})
    found = [s2naip.S2NaipReader(tmp_path).fingerprint for _ in range(2)]
    assert found[0] == found[1]
    table = tmp_path / "landsat.csv"
    table.write_text(table.read_text().replace("_202", "_201"))
    found.append(s2naip.S2NaipReader(tmp_path).fingerprint)
    next((tmp_path / "sentinel1").glob("*.tif")).unlink()
    found.append(s2naip.S2NaipReader(tmp_path).fingerprint)
    assert len(set(found)) == 3
    read_all(s2naip.S2NaipReader(tmp_path))


def test_radar_of_s2naip_with_unsaid_no_data_and_in_other_units(tmp_path):
    write_s2naip(tmp_path, {"train": 1})
    reader = s2naip.S2NaipReader(tmp_path)
    (key,) = reader.keys("train")
    path = tmp_path / "sentinel1" / f"{key}.tif"
    bands, _ = read_raster(path, (None, 64, 64), "f", "bands")
    bands[0, 3, 4] = bands[1, 5, 6] = -9999
    write_raster(path, bands)
    example = reader.example("train", key)
    assert np.argwhere(~example["s1_mask"][0, 0]).tolist() == [[3, 4], [5, 6]] and example["s1"].min() > -40
    write_raster(path, (100 * bands.clip(-30)).astype(np.int16))
    with pytest.raises(ValueError, match=rf"{key}\.tif: backscatter runs from -.* \(int16\); expected dB or linear"):
        reader.example("train", key)


# TreeSatAI-TS


def test_treesat_with_nan(tmp_path):
    write_fake("treesatai_ts", tmp_path, tiles=1)
    reader = treesatai_ts.TreeSatReader(tmp_path)
    (key,) = reader.keys("train")
    before = reader.example("train", key)
    with h5py.File(tmp_path / "sentinel" / f"{key}.h5", "a") as file:
        file["sen-2-data"][0, 3, 2, 1] = np.nan
        file["sen-1-asc-data"][-1, 1, 4, 5] = np.inf
    example = reader.example("train", key)
    check_example(reader.card, key, example)
    for sensor, place in (("s2", (0, 0, 2, 1)), ("s1-asc", (-1, 0, 4, 5))):
        lost = before[f"{sensor}_mask"] & ~example[f"{sensor}_mask"]
        assert lost[place] and lost.sum() == 1
