"""Where datasets are looked for, and where they are made."""

import dataclasses
import pathlib

import pytest

from data_pipelines import registry
from data_pipelines.features import check_card
from data_pipelines.locate import cache_folder, locate
from data_pipelines.registry import DatasetEntry, dataset_names, fingerprint, get_entry, register_dataset
from tests.data_pipelines.fake_reader import CARD, FakeReader, fake_entry

NAME = CARD.name


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "anysat_jax"


def enter(monkeypatch, entry):
    monkeypatch.setitem(registry._ENTRIES, NAME, lambda: entry)
    return entry


def raw_entry():
    return DatasetEntry(CARD, lambda _: FakeReader(), lambda f: (f / "tiles").is_dir(), layout="tiles/*.bin")


def test_the_cache_follows_the_environment(cache, monkeypatch):
    assert cache_folder() == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == pathlib.Path.home() / ".cache" / "anysat_jax"


def test_generated_data_go_to_the_cache_or_to_the_root(cache, tmp_path, monkeypatch):
    enter(monkeypatch, fake_entry())
    assert cache in locate(NAME, None).folder.parents
    assert cache in locate(NAME, "").folder.parents
    assert tmp_path / "root" in locate(NAME, str(tmp_path / "root")).folder.parents


def test_a_prepared_root_is_taken_as_it_is(tmp_path, monkeypatch):
    enter(monkeypatch, fake_entry())
    made = locate(NAME, str(tmp_path / "root")).folder
    enter(monkeypatch, dataclasses.replace(fake_entry(), open_reader=None))
    said = []
    assert locate(NAME, str(made.parents[1]), said.append).folder == made
    assert said == [f"{NAME}: prepared in {made}"]


def test_raw_data_are_converted_into_the_cache(cache, tmp_path, monkeypatch):
    enter(monkeypatch, raw_entry())
    for root, raw in ((tmp_path / "a", tmp_path / "a"), (tmp_path / "b", tmp_path / "b" / NAME)):
        (raw / "tiles").mkdir(parents=True)
        before = sorted(tmp_path.glob(f"{root.name}/**"))
        said = []
        folder = locate(NAME, str(root), said.append).folder
        assert cache in folder.parents and sorted(tmp_path.glob(f"{root.name}/**")) == before
        assert said == [f"{NAME}: 10 tiles in {raw}", f"{NAME}: prepared in {folder}"]
    assert len(list(cache.iterdir())) == 2


def test_missing_raw_data_are_named(tmp_path, monkeypatch):
    enter(monkeypatch, dataclasses.replace(raw_entry(), card=dataclasses.replace(CARD, url="https://example.org")))
    with pytest.raises(ValueError, match=r"'fake_tiles' is not generated: set --config\.data\.root .*example\.org"):
        locate(NAME, None)
    with pytest.raises(FileNotFoundError, match=r"'fake_tiles': data\.root is .*nowhere, which is no folder"):
        locate(NAME, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"neither a prepared fake_tiles/1\.0\.0 nor.*\(tiles/\*\.bin\)"):
        locate(NAME, str(tmp_path))


def test_the_fingerprint_follows_what_is_read(tmp_path):
    entry, reader = raw_entry(), FakeReader()
    first = fingerprint(entry, reader, tmp_path)
    assert fingerprint(entry, reader, tmp_path) == first and first.startswith("fake_tiles-")
    other_reader = FakeReader()
    other_reader.fingerprint = "more tiles"
    others = {
        fingerprint(dataclasses.replace(entry, version="1.0.1"), reader, tmp_path),
        fingerprint(entry, reader, tmp_path / "elsewhere"),
        fingerprint(entry, other_reader, tmp_path),
    }
    assert len(others | {first}) == 4


def test_generated_data_follow_the_code_that_makes_them(tmp_path, monkeypatch):
    entry = dataclasses.replace(fake_entry(), code=("maker_of_tiles",))
    (tmp_path / "maker_of_tiles.py").write_text("SIDE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = fingerprint(entry, FakeReader(), None)
    (tmp_path / "maker_of_tiles.py").write_text("SIDE = 2\n")
    assert fingerprint(entry, FakeReader(), None) != first


def test_one_may_add_a_dataset(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    register_dataset(fake_entry())
    assert NAME in dataset_names() and get_entry(NAME).card is CARD
    with pytest.raises(ValueError, match="'fake_tiles' is registered already"):
        register_dataset(fake_entry())


def test_every_card_is_whole():
    for name in dataset_names():
        card = get_entry(name).card
        assert card.name == name and "train" in card.splits and card.patch_sizes
        check_card(card)
