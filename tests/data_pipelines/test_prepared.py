"""Reading what was prepared, and what is said when the files are not what they were."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import CARD, FakeReader
from tests.data_pipelines.odd_readers import RICH_CARD, RichReader


@pytest.fixture
def folder(tmp_path):
    return prepare_dataset(FakeReader(), tmp_path, "1.0.0")


@pytest.fixture
def opened(folder):
    """What happens to the files later on, not even opening can tell."""
    return PreparedDataset.open(CARD, folder)


def read_all(prepared):
    records = prepared.records("train")
    return [records[index]["id"] for index in range(len(records))]


def test_records_come_in_the_order_of_the_reader(opened):
    assert read_all(opened) == [f"train{i}".encode() for i in range(7)]


def test_unknown_split(folder):
    with pytest.raises(ValueError, match=r"has no split 'test' .* it has \['train', 'val'\]"):
        PreparedDataset.open(CARD, folder).records("test")


def test_missing_statistics(folder):
    (folder / "statistics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"statistics\.json"):
        PreparedDataset.open(CARD, folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_damaged_records_are_named(folder, opened, damage):
    (path,) = folder.glob("*train*")
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {"cut": content[:middle], "empty": b"", "changed": content[:30000] + b"x" * 500 + content[30500:]}
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=r"'fake_tiles': tile \d of split 'train' cannot be read .* prepare it again"):
        read_all(opened)


def test_missing_records_are_named(folder, opened):
    next(folder.glob("*train*")).unlink()
    with pytest.raises(ValueError, match=r"tile 0 of split 'train' cannot be read"):
        read_all(opened)


@pytest.mark.parametrize("damage", ["cut", "template"])
def test_damaged_metadata_are_named(folder, opened, damage):
    path = folder / "dataset_info.json"
    path.write_text("{" if damage == "cut" else path.read_text().replace("{SHARD_X_OF_Y}", "{SHARD_XOOF_Y}"))
    with pytest.raises(ValueError, match=r"'fake_tiles': the metadata cannot be read .* prepare it again"):
        read_all(opened)


@pytest.mark.parametrize("kind", ["*train*", "dataset_info.json", "features.json", "series_lengths.npz", "report.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_copy_that_is_not_whole_is_refused_at_once(folder, kind, damage):
    (path,) = folder.glob(kind)
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    for refused in (
        lambda: PreparedDataset.open(CARD, folder),
        lambda: prepare_dataset(FakeReader(), folder.parents[1], "1.0.0"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{path.name}.*{folder} and prepare it again"):
            refused()


@pytest.mark.parametrize("name", ["statistics.json", "dataset_info.json", "series_lengths.npz", "plan.json"])
def test_a_changed_digit_does_not_pass(folder, name):
    """Another mean, another number of tiles: files that can be read, and would be wrong without a word."""
    path = folder / name
    content = bytearray(path.read_bytes())
    if name.endswith("npz"):
        content[-1] ^= 1
    else:
        at = next(i for i in range(len(content) - 1, 0, -1) if chr(content[i]) in "0123456789")
        content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.* (damaged|no numbers|no plan|not a statistics).*again"):
        PreparedDataset.open(CARD, folder)


@pytest.mark.parametrize(
    "name", ["card.json", "plan.json", "statistics.json", "contents.json", "dataset_info.json", "features.json"]
)
def test_json_that_is_deep_or_of_another_kind_is_refused(folder, name):
    """Also where the list of files does not list the file, so that its digest does not count."""
    path, manifest, deep = folder / name, folder / "contents.json", "[" * 100_000 + "]" * 100_000
    listed = json.loads(manifest.read_text())
    listed["files"].pop(name, None)
    manifest.write_text(json.dumps(listed))
    inside = path.read_text().rstrip().removesuffix("}") + f', "more": {deep}}}'
    for text in (deep, inside, "9" * 5000, "1e999", '"text"', "null", '{"featuresDict": null}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{name}|'fake_tiles': the metadata cannot be read"):
            PreparedDataset.open(CARD, folder).records("train")


@pytest.mark.parametrize("value", [10**19, 1e300])
def test_counts_that_no_array_can_hold_are_refused(folder, value):
    content = json.loads((folder / "statistics.json").read_text())
    content["sensors"]["spot"]["count"][0] = value
    (folder / "statistics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"statistics\.json is not a statistics file .*too large.*prepare the dataset"):
        PreparedDataset.open(CARD, folder)


@pytest.mark.parametrize("text", [None, "", "[]", '{"files": {"a": 1}}'])
def test_a_list_of_files_that_cannot_be_read(folder, text):
    (folder / "contents.json").unlink()
    if text is not None:
        (folder / "contents.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=r"contents\.json.* and prepare it again"):
        PreparedDataset.open(CARD, folder)


def test_what_others_lay_beside_the_files_does_no_harm(folder):
    (folder / "notes.txt").write_text("mine")
    assert len(read_all(PreparedDataset.open(CARD, folder))) == 7


def test_the_lengths_of_all_series_are_known_without_reading_a_tile(tmp_path):
    prepared = PreparedDataset.open(RICH_CARD, prepare_dataset(RichReader(), tmp_path, "1.0.0"))
    for split in ("train", "val"):
        records, lengths = prepared.records(split), prepared.series_lengths(split)
        assert set(lengths) == {"s2", "s1-asc", "modis"}
        for name, counts in lengths.items():
            assert counts.dtype == np.int32
            assert counts.tolist() == [len(records[i][name]) for i in range(len(records))]
    assert prepared.series_lengths("train")["s1-asc"].tolist() == [0, 3, 4, 0, 3, 4, 0]


@pytest.mark.parametrize("damage", ["missing", "cut", "split"])
def test_damaged_lengths_are_named(folder, opened, damage):
    path = folder / "series_lengths.npz"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(ValueError, match=r"no numbers of dates of split '\w+' in .*series_lengths\.npz.*prepare it"):
        opened.series_lengths("test" if damage == "split" else "train")


def test_a_folder_of_another_card_is_refused(folder):
    other = dataclasses.replace(CARD, dense_classes=tuple("abcdefgi"))
    with pytest.raises(ValueError, match=r"another card of .*: dense_classes is .*'h'\], here .*'i'\]"):
        PreparedDataset.open(other, folder)


@pytest.mark.parametrize("name", ["card.json", "plan.json"])
def test_missing_descriptions_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{name}.*prepare it again"):
        PreparedDataset.open(CARD, folder)


def test_the_facts_tell_whether_two_machines_hold_the_same(tmp_path):
    facts = []
    for name, tiles, source in (("one", 4, "here"), ("two", 4, "there"), ("three", 5, "here")):
        folder = prepare_dataset(FakeReader({"train": tiles, "val": 1}), tmp_path / name, "1.0.0", source=source)
        facts.append(PreparedDataset.open(CARD, folder).facts)
    assert facts[0] == facts[1] and facts[0]["tiles"] == {"train": 4, "val": 1}
    assert facts[0]["tiles_digest"] != facts[2]["tiles_digest"]
