"""Where datasets are looked for, and where they are made."""

import dataclasses
import pathlib

import pytest

from data_pipelines import registry
from data_pipelines.locate import find_card, find_prepared, locate
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card
from data_pipelines.prepare.storage import cache_folder
from data_pipelines.reader import DatasetEntry
from data_pipelines.registry import dataset_names, fingerprint, get_entry, register_dataset
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


def test_a_folder_of_the_datasets_name_comes_first(monkeypatch, tmp_path):
    """Several downloads may lie side by side, and one's folder may look like the whole of another."""
    enter(monkeypatch, raw_entry())
    (tmp_path / "tiles").mkdir()
    (tmp_path / NAME / "tiles").mkdir(parents=True)
    said = []
    locate(NAME, str(tmp_path), said.append)
    assert said[0] == f"{NAME}: 10 tiles in {tmp_path / NAME}"


def test_a_described_folder_knows_where_it_is(cache, tmp_path, monkeypatch):
    (tmp_path / "raw" / "tiles").mkdir(parents=True)
    enter(monkeypatch, dataclasses.replace(raw_entry(), source=tmp_path / "raw"))
    assert cache in locate(NAME, None).folder.parents
    (tmp_path / "empty").mkdir()
    assert locate(NAME, str(tmp_path / "empty")).folder == locate(NAME, None).folder


def prepare(base, version="1.0.0", **options):
    return prepare_dataset(FakeReader(), base, version, say=lambda _: None, **options)


def test_own_data_are_known_by_the_card_of_their_newest_version(tmp_path):
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        prepare(tmp_path, version, limit=1 if version == "1.10.0" else None)
    (tmp_path / NAME / "2.0.0").mkdir()  # something else
    said = []
    prepared = locate(NAME, str(tmp_path), said.append)
    assert prepared.card == CARD == find_card(NAME, str(tmp_path)) and prepared.folder.name == "1.10.0"
    assert said == [f"{NAME}: prepared in {prepared.folder}; ONLY the first 1 tiles of each split"]


def test_own_data_that_are_nowhere(tmp_path):
    for find in (find_card, locate):
        with pytest.raises(ValueError, match=rf"unknown dataset '{NAME}'.*; and {tmp_path} holds no prepared"):
            find(NAME, str(tmp_path))
        with pytest.raises(ValueError, match=rf"unknown dataset '{NAME}'.*; and data\.root is not set"):
            find(NAME, None)
        with pytest.raises(ValueError, match=rf"^data\.root is {tmp_path / 'none'}, which is not a folder"):
            find(NAME, str(tmp_path / "none"))
    assert find_prepared(NAME, str(tmp_path)) is None and find_prepared(NAME, None) is None


@pytest.mark.parametrize("name", ["../secret", "a/b", "", "*", "a b"])
def test_names_of_configs_never_lead_out_of_the_root(tmp_path, name):
    with pytest.raises(ValueError, match="is not a name of a dataset"):
        locate(name, str(tmp_path))


def test_prepared_data_of_another_card_are_refused(tmp_path, monkeypatch):
    prepare(tmp_path)
    card = dataclasses.replace(CARD, tile_classes=("x", "y", "z"))
    enter(monkeypatch, dataclasses.replace(fake_entry(), card=card))
    with pytest.raises(ValueError, match=r"another card of .*: tile_classes is \['a', .*, here \['x'"):
        locate(NAME, str(tmp_path))


def test_missing_raw_data_are_named(tmp_path, monkeypatch):
    enter(monkeypatch, dataclasses.replace(raw_entry(), card=dataclasses.replace(CARD, url="https://example.org")))
    with pytest.raises(ValueError, match=r"'fake_tiles' is not generated: set --config\.data\.root .*example\.org"):
        locate(NAME, None)
    with pytest.raises(FileNotFoundError, match=r"'fake_tiles': data\.root is .*nowhere, which is not a folder"):
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
        check_card(card)
        assert card.name == name and "train" in card.splits and card.patch_sizes
