"""Reading what was prepared, and what is said when the files are not what they were."""

import pytest

from data_pipelines.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import CARD, FakeReader


@pytest.fixture
def folder(tmp_path):
    return prepare_dataset(FakeReader(), tmp_path, "1.0.0")


def read_all(folder):
    records = PreparedDataset.open(CARD, folder).records("train")
    return [records[index]["id"] for index in range(len(records))]


def test_records_come_in_the_order_of_the_reader(folder):
    assert read_all(folder) == [f"train{i}".encode() for i in range(7)]


def test_unknown_split(folder):
    with pytest.raises(ValueError, match=r"has no split 'test' .* it has \['train', 'val'\]"):
        PreparedDataset.open(CARD, folder).records("test")


def test_missing_statistics(folder):
    (folder / "statistics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"statistics\.json"):
        PreparedDataset.open(CARD, folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_damaged_records_are_named(folder, damage):
    (path,) = folder.glob("*train*")
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {"cut": content[:middle], "empty": b"", "changed": content[:30000] + b"x" * 500 + content[30500:]}
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=r"'fake_tiles': tile \d of split 'train' cannot be read .* prepare it again"):
        read_all(folder)


def test_missing_records_are_named(folder):
    next(folder.glob("*train*")).unlink()
    with pytest.raises(ValueError, match=r"tile 0 of split 'train' cannot be read"):
        read_all(folder)


def test_damaged_metadata_are_named(folder):
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"'fake_tiles': the metadata cannot be read"):
        read_all(folder)
