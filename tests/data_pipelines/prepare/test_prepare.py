"""Datasets written and read back, second runs, and samples of the first tiles."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from data_pipelines.prepare import plan as plan_module
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import CARD, FakeReader, make_example
from tests.data_pipelines.odd_readers import RICH_CARD, RichReader, assert_holds, contents


def silent(line):
    """Drops the messages of a run."""


def prepare(reader, base, **options):
    return prepare_dataset(reader, base, "1.0.0", say=silent, **options)


def records_of(folder, split, card=CARD):
    return PreparedDataset.open(card, folder).records(split)


def test_everything_comes_back_exactly_and_in_order(tmp_path):
    folder = prepare(FakeReader(), tmp_path)
    assert folder == tmp_path / "fake_tiles" / "1.0.0"
    assert_holds(records_of(folder, "train"), "train", range(7))
    assert_holds(records_of(folder, "val"), "val", range(3))
    assert "tensorflow" not in sys.modules
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["1.0.0"]


def test_several_shards_keep_the_order_and_the_names_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)
    folder = prepare(FakeReader(), tmp_path)
    assert sorted(path.name for path in folder.glob("*array_record*")) == [
        "fake_tiles-train.array_record-00000-of-00003",
        "fake_tiles-train.array_record-00001-of-00003",
        "fake_tiles-train.array_record-00002-of-00003",
        "fake_tiles-val.array_record-00000-of-00001",
    ]
    assert_holds(records_of(folder, "train"), "train", range(7))


def test_tfds_opens_it(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepare(FakeReader(), tmp_path))
    assert builder.info.splits["train"].num_examples == 7 and builder.info.description == "Fake tiles"
    assert builder.as_data_source(split="val")[2]["id"] == b"val2"


def test_shards_do_not_change_the_statistics(tmp_path, monkeypatch):
    whole = PreparedDataset.open(CARD, prepare(FakeReader(), tmp_path / "a")).statistics
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)
    parts = PreparedDataset.open(CARD, prepare(FakeReader(), tmp_path / "b")).statistics
    for name, one in whole.items():
        for field in ("mean", "std", "minimum", "maximum", "count"):
            np.testing.assert_allclose(getattr(parts[name], field), getattr(one, field), rtol=1e-12)
        assert parts[name].longest_series == one.longest_series


def test_statistics_are_of_the_training_split(tmp_path):
    statistics = PreparedDataset.open(CARD, prepare(FakeReader(), tmp_path)).statistics
    pixels = np.concatenate([make_example("train", i)["spot"].reshape(3, -1) for i in range(7)], axis=1)
    np.testing.assert_allclose(statistics["spot"].mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics["spot"].std, pixels.std(axis=1), rtol=1e-12)


def test_missing_sensors_are_stored_and_leave_no_trace_in_the_statistics(tmp_path):
    reader = RichReader()
    folder = prepare(reader, tmp_path)
    prepared = PreparedDataset.open(RICH_CARD, folder)
    records = prepared.records("train")
    assert [bool(records[i]["s1-asc_present"]) for i in range(4)] == [False, True, True, False]
    assert len(records[0]["s1-asc"]) == 0 and records[1]["spot"].max() == 0
    there = np.concatenate([make_example("train", i)["spot"][0].ravel() for i in (0, 2, 3, 5, 6)])
    assert prepared.statistics["spot"].count[0] == there.size
    np.testing.assert_allclose(prepared.statistics["spot"].mean[0], there.mean(), rtol=1e-12)


def test_the_second_time_nothing_is_read_or_written(tmp_path):
    folder = prepare(FakeReader(), tmp_path)
    before, times = contents(folder), {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    reader = FakeReader()
    assert prepare(reader, tmp_path) == folder and reader.opened == 0
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == times


def test_two_runs_give_the_same_bytes(tmp_path):
    first, second = (contents(prepare(RichReader(), tmp_path / name)) for name in "ab")
    assert first == second


def test_progress_says_tiles_and_speed(tmp_path, capsys):
    prepare(FakeReader(pause=0.05), tmp_path)
    shown = capsys.readouterr().err
    assert "10/10" in shown and "tile/s" in shown and "<00:00" in shown


def test_the_report_is_said_at_the_end(tmp_path):
    said = []
    prepare_dataset(FakeReader(), tmp_path, "1.0.0", source="somewhere", say=said.append)
    assert said[-1].startswith("Fake tiles (fake_tiles) 1.0.0 from somewhere\n\n| split ")


def test_a_sample_is_marked_and_the_full_run_replaces_it(tmp_path):
    said = []
    folder = prepare_dataset(FakeReader(), tmp_path, "1.0.0", limit=2, say=said.append)
    prepared = PreparedDataset.open(CARD, folder)
    assert prepared.limit == 2 and "ONLY the first 2 tiles" in said[-1]
    assert_holds(prepared.records("train"), "train", range(2))
    assert_holds(prepared.records("val"), "val", range(2))
    assert "first 2 tiles" in (folder / "dataset_info.json").read_text()
    assert json.loads((folder / "report.json").read_text())["limit"] == 2
    assert prepare_dataset(FakeReader(), tmp_path, "1.0.0", limit=3, say=said.append) == folder
    assert_holds(records_of(folder, "train"), "train", range(3))
    prepare_dataset(FakeReader(), tmp_path, "1.0.0", say=said.append)
    assert any("holds only the first tiles" in line for line in said)
    assert_holds(records_of(folder, "train"), "train", range(7))
    assert PreparedDataset.open(CARD, folder).limit is None
    assert contents(folder) == contents(prepare(FakeReader(), tmp_path / "other"))


def test_a_sample_does_not_replace_the_whole(tmp_path):
    folder = prepare(FakeReader(), tmp_path)
    with pytest.raises(ValueError, match=r"1\.0\.0 holds all tiles, and a run with a limit does not replace it"):
        prepare(FakeReader(), tmp_path, limit=2)
    assert_holds(records_of(folder, "train"), "train", range(7))


def test_what_was_prepared_from_other_tiles_is_not_passed_off(tmp_path):
    prepare(FakeReader(), tmp_path)
    with pytest.raises(ValueError, match=r"from other tiles \(it was made of .*'train': 7.* now .*'train': 8"):
        prepare(FakeReader({"train": 8, "val": 3}), tmp_path)


def test_another_card_is_refused_by_name(tmp_path):
    prepare(FakeReader(), tmp_path)
    other = FakeReader()
    other.card = dataclasses.replace(CARD, tile_classes=("a", "b", "z"))
    with pytest.raises(ValueError, match=r"another card .*: tile_classes is \['a', 'b', 'c'\], here .*'z'"):
        prepare(other, tmp_path)


def test_another_description_is_no_other_card(tmp_path):
    folder = prepare(FakeReader(), tmp_path)
    other = FakeReader()
    other.card = dataclasses.replace(CARD, notes=("new",), licence="none", title="Tiles")
    assert prepare(other, tmp_path) == folder


@pytest.mark.parametrize("plan", [None, "{", '{"facts": {}}'])
def test_a_folder_of_something_else_is_not_passed_off(tmp_path, plan):
    folder = prepare(FakeReader(), tmp_path)
    (folder / "plan.json").unlink()
    if plan is not None:
        (folder / "plan.json").write_text(plan)
    with pytest.raises(ValueError, match=r"plan\.json.*; delete it to prepare the dataset anew"):
        prepare(FakeReader(), tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "a b", "a-b"])
def test_names_never_lead_out_of_the_folder(tmp_path, name):
    reader = FakeReader()
    reader.card = dataclasses.replace(CARD, name=name)
    with pytest.raises(ValueError, match="is not a file name"):
        prepare(reader, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()


def test_versions_and_splits_are_names_too(tmp_path):
    with pytest.raises(ValueError, match=r"version '\.\./1' must be three numbers"):
        prepare_dataset(FakeReader(), tmp_path, "../1")
    reader = FakeReader()
    reader.card = dataclasses.replace(CARD, splits=("train", "../val"))
    reader.sizes = {"train": 1, "../val": 1}
    with pytest.raises(ValueError, match=r"split '\.\./val' is not a file name"):
        prepare(reader, tmp_path)


def test_options_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="limit is 0; it must be positive"):
        prepare(FakeReader(), tmp_path, limit=0)
    for options in (dict(workers=-1), dict(workers=2, cluster="tcp://127.0.0.1:8786")):
        with pytest.raises(ValueError, match=r"workers is .*; it must be 0 .* and 0 with a cluster"):
            prepare(FakeReader(), tmp_path, **options)


def test_no_training_tile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tile of split 'train'"):
        prepare(FakeReader({"val": 2}), tmp_path)


def test_a_key_that_comes_twice_is_refused(tmp_path):
    class Twice(FakeReader):
        def keys(self, split):
            return ["same", "same"] if split == self.twice else ["same"]

    reader = Twice()
    reader.twice = "train"
    with pytest.raises(ValueError, match="tile 'same' comes twice in split 'train'"):
        prepare(reader, tmp_path)
    reader.twice = ""
    with pytest.raises(ValueError, match="tile 'same' comes in 'train' and 'val'"):
        prepare(reader, tmp_path)
