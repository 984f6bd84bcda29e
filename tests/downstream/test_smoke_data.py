"""Made-up archives of smoke runs: whole or not there, and made once."""

import multiprocessing

import pytest

from anysat_jax.downstream import data as smoke_data
from anysat_jax.errors import ConfigError
from data_pipelines.registry import get_entry

NAME = "timesen2crop"  # text files: quick to write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "anysat_jax" / "smoke"


def test_the_archive_is_as_published():
    folder = smoke_data.make_fake_archive(NAME, 2)
    entry = get_entry(NAME)
    assert entry.find_raw(folder) == folder
    reader = entry.reader(folder)
    assert {split: len(reader.keys(split)) for split in reader.splits()} == {"train": 2, "val": 2, "test": 2}


def test_it_is_made_once(monkeypatch):
    folder = smoke_data.make_fake_archive(NAME, 2)
    monkeypatch.setattr(smoke_data, "write_fake", pytest.fail)
    assert smoke_data.make_fake_archive(NAME, 2) == folder


def test_other_tiles_and_other_code_are_other_archives(monkeypatch):
    folders = [smoke_data.make_fake_archive(NAME, 1), smoke_data.make_fake_archive(NAME, 2)]
    monkeypatch.setattr(smoke_data, "CODE", smoke_data.CODE[:1])
    folders.append(smoke_data.make_fake_archive(NAME, 2))
    assert len(set(folders)) == 3


def test_what_was_left_half_written_is_not_taken(monkeypatch, cache):
    def fail(name, folder, tiles):
        folder.mkdir()
        (folder / "half").touch()
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(smoke_data, "write_fake", fail)
        with pytest.raises(OSError, match="disk is full"):
            smoke_data.make_fake_archive(NAME, 1)
    assert [path.name for path in cache.iterdir()] == [f"{NAME}.lock"]
    assert not (smoke_data.make_fake_archive(NAME, 1) / "half").exists()


def test_two_processes_may_ask_at_once():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.starmap(smoke_data.make_fake_archive, [(NAME, 1), (NAME, 1)])
    assert first == second
    assert get_entry(NAME).find_raw(first) == first


def test_data_that_are_no_archive_are_refused():
    with pytest.raises(ConfigError, match=r"no archive of 'mini_flair' can be made up, only of .*pastis_hd"):
        smoke_data.make_fake_archive("mini_flair", 2)
