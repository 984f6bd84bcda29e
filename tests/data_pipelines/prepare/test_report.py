"""The report of a preparation: counts, JSON and text."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from data_pipelines.card import essentials
from data_pipelines.prepare.plan import make_plan, plan_facts
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import complete_example
from data_pipelines.prepare.report import make_report, read_report, report_json, report_text
from data_pipelines.prepare.statistics import ShardStats, Skipped
from tests.data_pipelines.fake_reader import CARD, FakeReader, examples_of, make_example
from tests.data_pipelines.odd_readers import RICH_CARD, RichReader


@pytest.fixture
def rich(tmp_path):
    folder = prepare_dataset(RichReader(), tmp_path, "1.0.0", source="a folder", say=lambda _: None)
    return read_report(folder)


def test_examples_and_sizes(rich):
    assert {split: one["examples"] for split, one in rich["splits"].items()} == {"train": 7, "val": 3}
    assert rich["splits"]["train"]["shards"] == 1 and rich["splits"]["train"]["megabytes"] > 0
    assert (rich["dataset"], rich["version"], rich["source"], rich["limit"]) == (
        "rich_tiles",
        "1.0.0",
        "a folder",
        None,
    )


def test_missing_sensors_dates_masks_and_clouds(rich):
    examples = [example for split in ("train", "val") for example in examples_of(RichReader(), split)]
    sensors = rich["sensors"]
    assert (sensors["s1-asc"]["missing"], sensors["spot"]["missing"], sensors["s2"]["missing"]) == (4, 3, 0)
    masks = np.concatenate([example["s2_mask"].ravel() for example in examples])
    assert sensors["s2"]["invalid_share"] == pytest.approx((~masks).mean())
    assert sensors["s2"]["cloudy_share"] == pytest.approx(0.75)  # one column of four is clear
    counts = [len(example["s2"]) for example in examples]
    dates = sensors["s2"]["dates"]
    assert (dates["least"], dates["most"], dates["mean"]) == (min(counts), max(counts), np.mean(counts))
    assert dates["histogram"] == [[n, n, counts.count(n)] for n in range(3, 7)]
    radar = [len(example["s1-asc"]) for example in examples if "s1-asc" in example]
    assert sensors["s1-asc"]["dates"]["least"] == min(radar) and "dates" not in sensors["spot"]


def test_labels(rich):
    labels = rich["splits"]["train"]["labels"]
    assert labels["tile"] == {"a": 7, "b": 3, "c": 0, "(no label)": 0}
    assert labels["dense"]["count"] == 7 * 15 and labels["dense"]["unit"] == "t/ha"
    maps = np.stack([example["dense"] for example in examples_of(RichReader(), "train")])
    assert labels["dense"]["mean"] == pytest.approx(np.nanmean(maps), rel=1e-6)
    assert (labels["dense"]["min"], labels["dense"]["max"]) == (1.0, np.nanmax(maps))


def test_class_counts(tmp_path):
    labels = read_report(prepare_dataset(FakeReader(), tmp_path, "1.0.0"))["splits"]["train"]["labels"]
    assert labels["tile"] == {"a": 3, "b": 2, "c": 2, "(no label)": 0}
    maps = np.stack([make_example("train", i)["dense"] for i in range(7)])
    assert labels["dense"] == {
        **{c: int((maps == n).sum()) for n, c in enumerate("abcdefgh")},
        "(no label)": int((maps == -1).sum()),
    }


def test_the_text(rich):
    text = report_text(rich)
    assert text.startswith("Fake tiles (rich_tiles) 1.0.0 from a folder\n\n| split ")
    rows = {cells[0]: cells for line in text.splitlines() if (cells := line.replace("|", " ").split())}
    assert rows["train"] == ["train", "7", "0", "1", "0.1"]
    assert "- train, tile: a 7, b 3; none of c" in text
    assert "- train, dense: 105 values in t/ha: mean 11, std" in text
    assert rows["spot"] == ["spot", "3"] and rows["modis"][:3] == ["modis", "5", "5.0"]
    assert rows["s2"][:4] == ["s2", "3", "to", "6"] and rows["s2"][-1] == "75.0%" and "cloudy (from 50 %)" in text
    assert "Tiles by their dates of s2:\n           3 ##############" in text


def test_wide_ranges_of_dates_make_few_bars():
    card, reader = CARD, FakeReader()
    part = ShardStats.empty(card)
    for index in range(40):
        example = make_example("train", index % 3)
        part.update(example | {"modis": np.zeros((1 + 3 * index, 7, 1, 1), np.int16)}, 10)
    part.skipped += [Skipped("train", f"t{i}", "cut") for i in range(9)]
    facts = dataclasses.replace(plan_facts(reader, "1.0.0", 40, None), tiles={"train": 40})
    plan = make_plan(facts, 10)
    report = make_report(card, plan, {"train": part})
    histogram = report["sensors"]["modis"]["dates"]["histogram"]
    assert len(histogram) <= 8 and sum(count for *_, count in histogram) == 40
    assert histogram[0][0] == 1 and histogram[-1][1] == 118
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(histogram))
    text = report_text(report)
    assert (
        "ONLY the first 40 tiles" in text
        and "Skipped tiles (9):" in text
        and text.endswith("and 4 more, in report.json")
    )
    assert json.loads(report_json(report)) == report


def test_many_classes_are_cut_short(rich):
    counts = {f"c{number}": number for number in range(30)} | {f"e{number}": 0 for number in range(9)}
    rich["splits"]["train"]["labels"] = {"tile": counts | {"(no label)": 0}}
    (line,) = (line for line in report_text(rich).splitlines() if "c29" in line)
    assert line.startswith("- train, tile: c29 29, c28 28, ") and "c9 9" not in line
    assert line.endswith(", and 9 more; none of c0, e0, e1, e2, e3 and 5 more")


def test_shard_statistics_come_back_as_they_were():
    reader = RichReader()
    part = ShardStats.empty(RICH_CARD)
    for key in reader.keys("train"):
        part.update(complete_example(RICH_CARD, reader.example("train", key)), 100)
    part.skipped.append(Skipped("train", "x", "y"))
    content = part.to_json()
    again = ShardStats.from_json(content)
    assert again.to_json() == content and again.examples == 7 and again.skipped == part.skipped
    with pytest.raises(ValueError, match="truncated"):
        ShardStats.from_json(content[:-50])


def test_a_report_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report\.json.*prepare the dataset again"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json is not a report"):
        read_report(tmp_path)


def test_essentials_leave_out_what_does_not_decide_how_data_are_read():
    assert "notes" not in essentials(CARD) and essentials(CARD)["arrays"]["s2"] == ["uint16", None, 10, 4, 4]
