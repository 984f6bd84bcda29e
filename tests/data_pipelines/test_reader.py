"""Entries of the registry, their readers, and splits by a hash."""

import collections

import pytest

from data_pipelines.locate import locate
from data_pipelines.reader import DatasetEntry, hashed_split, layout_check
from data_pipelines.registry import ARCHIVE_NAMES, get_entry
from tests.data_pipelines.fake_reader import CARD, FakeReader, fake_entry


def raw_entry(**fields) -> DatasetEntry:
    def opened(folder):
        reader = FakeReader()
        reader.folder = folder
        return reader

    return DatasetEntry(CARD, opened, lambda folder: (folder / "tiles").is_dir(), layout="tiles/*.bin", **fields)


@pytest.mark.parametrize("name", ARCHIVE_NAMES)
def test_an_archive_asks_for_its_folder(name):
    with pytest.raises(ValueError, match=f"{name} is read from a download: give .* --source DIR; get it from https"):
        get_entry(name).reader()


def test_a_layout_is_of_files_and_folders(tmp_path):
    (tmp_path / "a" / "tiles").mkdir(parents=True)
    (tmp_path / "list.csv").touch()
    assert layout_check("list.csv", "*/tiles/")(tmp_path)
    assert not layout_check("list.csv", "other/")(tmp_path)
    assert layout_check("list.csv", "other/", enough=any)(tmp_path)
    # A file is not a folder, nor the other way round.
    assert not layout_check("list.csv/", "*/tiles", enough=any)(tmp_path)
    assert not layout_check("list.csv", enough=any)(tmp_path / "not there")


def test_a_described_folder_is_known(tmp_path):
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "tiles").mkdir(parents=True)
    assert raw_entry(source=tmp_path).reader().folder == tmp_path
    assert raw_entry(source=tmp_path).reader(tmp_path / "other").folder == tmp_path / "other"


def test_generated_data_take_no_folder(tmp_path):
    entry = fake_entry()
    assert entry.generate and not raw_entry().generate and entry.reader().keys("train")
    with pytest.raises(ValueError, match="fake_tiles is made by .*, not read from .*; leave out --source"):
        entry.reader(tmp_path)


def test_raw_data_lie_in_the_folder_or_under_their_name(tmp_path):
    entry = raw_entry()
    assert entry.find_raw(tmp_path) is None
    (tmp_path / "tiles").mkdir()
    assert entry.find_raw(tmp_path) == tmp_path
    (tmp_path / "fake_tiles" / "tiles").mkdir(parents=True)
    assert entry.find_raw(tmp_path) == tmp_path / "fake_tiles"


@pytest.mark.parametrize("above", ["", "fake_tiles"])
def test_a_download_one_folder_deeper_is_named(tmp_path, monkeypatch, above):
    inner = tmp_path / above / "Fake-Tiles-main"
    (inner / "tiles").mkdir(parents=True)
    (tmp_path / "a file").touch()
    with pytest.raises(FileNotFoundError, match=f"expected tiles/.*; {inner} does: name that folder"):
        raw_entry().reader(tmp_path)
    monkeypatch.setattr("data_pipelines.registry._ENTRIES", {"fake_tiles": raw_entry})
    with pytest.raises(FileNotFoundError, match=f"published layout .*; {inner} does: name that folder"):
        locate("fake_tiles", str(tmp_path))


def test_links_to_folders_of_another_disk_are_followed(tmp_path):
    (tmp_path / "disk" / "tiles").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fake_tiles").symlink_to(tmp_path / "disk")
    assert raw_entry().reader(tmp_path / "data").folder == tmp_path / "data" / "fake_tiles"


def test_shares():
    counts = collections.Counter(hashed_split(f"tile_{i}", 0.2, 0.1) for i in range(20_000))
    assert abs(counts["val"] - 4000) < 200 and abs(counts["test"] - 2000) < 200


def test_a_name_keeps_its_split():
    """On every machine: these were drawn once."""
    names = [f"tile_{i}" for i in range(8)]
    assert [hashed_split(name, 0.3) for name in names] == [hashed_split(name, 0.3) for name in names]
    assert [hashed_split(name, 0.3)[0] for name in names] == list("tvtttvvt")


def test_a_seed_draws_anew():
    drawn = {seed: [hashed_split(f"tile_{i}", 0.5, seed=seed) for i in range(64)] for seed in (0, 1)}
    assert drawn[0] != drawn[1]


def test_nothing_is_held_out_without_shares():
    assert {hashed_split(f"tile_{i}", 0.0) for i in range(100)} == {"train"}
