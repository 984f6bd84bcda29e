"""Datasets uploaded to an address, and downloaded into the cache; manifests."""

import dataclasses

import fsspec
import pytest

from data_pipelines import registry
from data_pipelines.locate import find_card, locate
from data_pipelines.prepare import plan as plan_module
from data_pipelines.prepare import storage
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import CARD, FakeReader, fake_entry
from tests.data_pipelines.odd_readers import assert_holds, contents

BASE = "memory://bucket/data"
TARGET = f"{BASE}/fake_tiles/1.0.0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Gives each test a cache, an empty memory and small shards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)
    fsspec.filesystem("memory").store.clear()
    return tmp_path / "cache" / "anysat_jax"


def prepare(reader, base=BASE, **options):
    return prepare_dataset(reader, base, "1.0.0", say=lambda _: None, **options)


def stored(target=TARGET):
    """Returns the bytes of each file at an address."""
    file_system, folder = storage.open_url(target)
    return {path.rsplit("/", 1)[-1]: file_system.cat_file(path) for path in file_system.find(folder)}


def fail_at(monkeypatch, ending, error):
    """Makes uploads of files with an ending fail."""
    original = fsspec.implementations.memory.MemoryFileSystem.put_file

    def put_file(self, local, address, **options):
        if address.endswith(ending):
            raise error
        return original(self, local, address, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", put_file)
    return lambda: monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", original)


def test_an_address_gets_the_same_bytes_as_a_folder(tmp_path, cache):
    assert prepare(FakeReader()) == TARGET
    assert stored() == contents(prepare(FakeReader(), tmp_path / "local"))
    left = {path.name for path in (cache / "uploads").rglob("*") if path.is_file()}
    assert left == {".1.0.0.lock", ".1.0.0.upload.lock"}


def test_the_second_time_nothing_is_read(tmp_path):
    prepare(FakeReader())
    before, reader = stored(), FakeReader()
    prepare(reader)
    assert reader.opened == 0 and stored() == before


@pytest.mark.parametrize("ending", ["00002-of-00003", "report.json", "contents.json"])
def test_an_upload_that_fails_is_repeated_without_reading_anything(tmp_path, monkeypatch, ending):
    again = fail_at(monkeypatch, ending, RuntimeError("the bucket is full"))
    with pytest.raises(OSError, match=r"cannot be written to memory://.*RuntimeError: the bucket is full.*shards stay"):
        prepare(FakeReader())
    again()
    assert "contents.json" not in stored() and storage.remote_versions(BASE, CARD.name) == []
    reader = FakeReader()
    prepare(reader)
    assert reader.opened == 0
    assert stored() == contents(prepare(FakeReader(), tmp_path / "local"))


def test_an_upload_that_arrives_in_part_is_no_shard(monkeypatch):
    def cut(self, local, address, **options):
        self.pipe_file(address, b"half")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", cut)
    with pytest.raises(OSError, match=r"card.json has 4 bytes after an upload of \d+"):
        prepare(FakeReader())


def test_a_sample_at_an_address_is_replaced(tmp_path):
    prepare(FakeReader(), limit=1)
    sample = set(stored())
    prepare(FakeReader())
    assert stored() == contents(prepare(FakeReader(), tmp_path / "local")) and not sample <= set(stored())


def test_workers_write_for_an_address_too(tmp_path):
    base = f"file://{tmp_path}/there"
    assert prepare(FakeReader(), base, workers=2) == f"{base}/fake_tiles/1.0.0"
    assert contents(tmp_path / "there/fake_tiles/1.0.0") == contents(prepare(FakeReader(), tmp_path / "local"))
    assert [path.name for path in (tmp_path / "there/fake_tiles").iterdir()] == ["1.0.0"]


def enter(monkeypatch, entry=None):
    entries = dict(registry._ENTRIES) | ({CARD.name: lambda: entry} if entry else {})
    monkeypatch.setattr(registry, "_ENTRIES", entries)


def archive_entry():
    return dataclasses.replace(fake_entry(), generate=None, holds_raw=lambda folder: False)


def test_a_dataset_elsewhere_is_copied_once(monkeypatch, cache, capsys):
    enter(monkeypatch, archive_entry())
    prepare(FakeReader())
    prepared = locate(CARD.name, BASE)
    assert prepared.folder.is_relative_to(cache / "mirrors") and contents(prepared.folder) == stored()
    assert_holds(prepared.records("train"), "train", range(7))
    assert "fetching" in capsys.readouterr().err
    monkeypatch.setattr(storage, "_fetch", None)
    assert locate(CARD.name, BASE).folder == prepared.folder


def test_a_copy_that_was_interrupted_goes_on(monkeypatch, cache):
    enter(monkeypatch, archive_entry())
    prepare(FakeReader())
    original, fetched = storage._fetch, []

    def fetch(file_system, address, output, name, size):
        if len(fetched) == 4:
            raise KeyboardInterrupt
        fetched.append(name)
        original(file_system, address, output, name, size)

    monkeypatch.setattr(storage, "_fetch", fetch)
    with pytest.raises(KeyboardInterrupt):
        locate(CARD.name, BASE)
    assert not list(cache.glob("mirrors/*/fake_tiles/1.0.0"))
    again = []
    monkeypatch.setattr(storage, "_fetch", lambda *args: (again.append(args[3]), original(*args)))
    assert contents(locate(CARD.name, BASE).folder) == stored()
    assert not set(again) & set(fetched) and set(again) | set(fetched) == set(stored()) - {"contents.json"}


def test_a_copy_of_what_has_changed_is_made_anew(monkeypatch):
    enter(monkeypatch, archive_entry())
    prepare(FakeReader(), limit=1)
    assert len(locate(CARD.name, BASE).records("train")) == 1
    prepare(FakeReader())
    assert len(locate(CARD.name, BASE).records("train")) == 7


def test_a_file_that_arrives_in_part_is_not_taken(monkeypatch):
    enter(monkeypatch, archive_entry())
    prepare(FakeReader())

    def cut(self, address, local, **options):
        with open(local, "wb") as file:
            file.write(b"half")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", cut)
    with pytest.raises(OSError, match=r"4 bytes arrived of \d+; start again"):
        locate(CARD.name, BASE)


def test_own_data_elsewhere_are_known_by_their_card():
    prepare(FakeReader())
    assert find_card(CARD.name, BASE) == CARD
    assert_holds(locate(CARD.name, BASE).records("val"), "val", range(3))


def test_nothing_elsewhere_is_said(monkeypatch):
    enter(monkeypatch, archive_entry())
    with pytest.raises(
        FileNotFoundError, match=r"'fake_tiles': no complete fake_tiles/1\.0\.0 at data\.root memory://"
    ):
        locate(CARD.name, BASE)
    with pytest.raises(ValueError, match="^nonsense://bucket/fake_tiles: Protocol not known"):
        locate(CARD.name, "nonsense://bucket")


def test_addresses_are_told_from_folders():
    assert storage.is_url("gs://bucket/a") and storage.is_url("memory://") and storage.is_url("s3+x://a")
    assert not storage.is_url("/a/b") and not storage.is_url("C:/a") and not storage.is_url("")


def test_the_local_copy_is_a_prepared_folder(monkeypatch):
    enter(monkeypatch, archive_entry())
    prepare(FakeReader())
    folder = locate(CARD.name, BASE).folder
    assert PreparedDataset.open(CARD, folder).limit is None
