"""Runs are read from files that may be anything, and grouped into repetitions with mean and spread."""

import dataclasses
import math

import numpy as np
import pytest

from anysat_jax.report.runs import LONGEST_TEXT, by_row, clean, group_runs, mean_and_spread, read_runs
from tests.report.fake_runs import CROPS, MOISTURE, TREES, scored, summary, write_run


def read_one(tmp_path, content):
    return read_runs([write_run(tmp_path / "run", content, logs=False, panels=False)])


def test_what_a_summary_says(tmp_path):
    [run], problems = read_one(
        tmp_path, summary(CROPS, row="A/pastis_hd_semseg/finetune", scores=scored(CROPS, accuracy=0.7))
    )
    assert not problems
    assert (run.label, run.row, run.seed, run.split, run.best_epoch) == (
        "run",
        "A/pastis_hd_semseg/finetune",
        0,
        "test",
        2,
    )
    assert run.scores["accuracy"] == 0.7 and run.confusion.shape == (3, 3)
    assert (run.commit, run.seconds, run.start) == ("012345678", 61.4, "run geoplex")


def test_without_a_test_split_the_scores_are_of_the_validation_split(tmp_path):
    [run], _ = read_one(tmp_path, summary(MOISTURE, scores={"val": scored(MOISTURE)["test"], "test": None}))
    assert run.split == "val" and run.confusion is None


def test_a_missing_score_is_nan(tmp_path):
    scores = {"test": {"accuracy": 0.5, "macro_f1": None}}
    [run], _ = read_one(tmp_path, summary(CROPS, scores=scores))
    assert run.scores["accuracy"] == 0.5 and math.isnan(run.scores["macro_f1"]) and "mean_iou" not in run.scores


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ({"source": "none", "kind": "none"}, "random"),
        ({"source": "/home/a b/AnySat.pth", "kind": "published"}, "published weights AnySat.pth"),
        ({"source": "C:\\runs\\mini", "kind": "export"}, "export mini"),
        ({"source": "runs/mini/", "kind": "run"}, "run mini"),
    ],
)
def test_the_start_is_named_without_its_folder(tmp_path, init, words):
    [run], _ = read_one(tmp_path, summary(init=init))
    assert run.start == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"task": {"dataset": "x", "level": "tile", "metric": "accuracy", "kind": "song"}},
            "'song' - at `$.task.kind`",
        ),
        (
            {"task": dataclasses.asdict(CROPS) | {"metric": "rmse"}},
            "there is no task of kind 'class' and metric 'rmse'",
        ),
        ({"scores": {}}, "neither the split 'test' nor 'val'"),
        ({"scores": {"test": {"accuracy": "high"}}}, "Expected `float | null`, got `str` - at `$.scores[...][...]`"),
        ({"confusion": {"test": [[1, 2], [3, 4]]}}, "must be (3, 3) counts"),
        ({"confusion": {"test": [[1, 2, 3]] * 2 + [[1, 2, -3]]}}, "must be (3, 3) counts"),
        ({"seed": "first"}, "Expected `int`, got `str` - at `$.seed`"),
        ({"fraction": 3}, "fraction = 3 is not in (0, 1]"),
        ({"config": [1]}, "cannot be used"),
        ({"provenance": {"seconds": "long"}}, "at `$.provenance.seconds`"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_the_file(tmp_path, changes, words):
    runs, [problem] = read_one(tmp_path, summary() | changes)
    assert not runs
    assert problem.startswith("run/summary.json") and words in problem and problem.endswith(".")
    assert str(tmp_path) not in problem


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": 3}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_summary_is_a_sentence(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(text)
    runs, [problem] = read_runs([tmp_path / "run"])
    assert not runs and problem.startswith("run/summary.json")


def test_a_key_that_is_missing_is_named(tmp_path):
    content = summary()
    del content["mode"]
    _, [problem] = read_one(tmp_path, content)
    assert "missing required field `mode`" in problem


def test_a_run_that_is_not_there_leaves_the_others(tmp_path):
    good = write_run(tmp_path / "good", summary(TREES), logs=False, panels=False)
    [run], [problem] = read_runs([tmp_path / "gone", good, tmp_path / "good"])
    assert run.label == "good"
    assert problem == "gone/summary.json is not there: there is no such folder."


def test_what_is_no_finished_run_is_told_apart(tmp_path):
    file, strange, unfinished = tmp_path / "file", tmp_path / "strange", tmp_path / "unfinished"
    file.write_text("")
    strange.mkdir()
    (unfinished / "checkpoints").mkdir(parents=True)
    _, problems = read_runs([file, strange, unfinished])
    assert problems == [
        "file is a file: give the folder of a run (--workdir).",
        "strange/summary.json is not there: the folder is not one of a run.",
        "unfinished/summary.json is not there: the run is not finished; the same command continues it.",
    ]


def test_folders_of_the_same_name_get_numbers(tmp_path):
    folders = [write_run(tmp_path / part / "run", summary(), logs=False, panels=False) for part in "abc"]
    runs, _ = read_runs(folders)
    assert [run.label for run in runs] == ["run", "run (2)", "run (3)"]


def test_texts_are_one_short_line():
    assert clean("a\n\tb\x1b[31m\u202ec") == "a b [31m c"
    assert len(clean("x" * 1000)) == LONGEST_TEXT


def test_settings_are_the_config_without_what_repetitions_differ_in(tmp_path):
    contents = [
        summary(config={"seed": 0, "epochs": 3, "data": {"root": "/a", "datasets": {"x": {"fraction_seed": 0}}}}),
        summary(config={"seed": 1, "epochs": 3, "data": {"root": "/b", "datasets": {"x": {"fraction_seed": 1}}}}),
        summary(config={"seed": 1, "epochs": 4, "data": {"root": "/b", "datasets": {"x": {"fraction_seed": 1}}}}),
    ]
    folders = [write_run(tmp_path / str(i), content, logs=False, panels=False) for i, content in enumerate(contents)]
    first, second, third = read_runs(folders)[0]
    assert first.settings == second.settings != third.settings


def test_counts_of_several_labels(tmp_path):
    [run], _ = read_one(tmp_path, summary(TREES))
    np.testing.assert_array_equal(run.confusion[0], [[30, 5], [4, 11]])


ROW = "A/pastis_hd_semseg/finetune"


def groups_of(tmp_path, *contents):
    folders = [write_run(tmp_path / f"run{i}", one, logs=False, panels=False) for i, one in enumerate(contents)]
    runs, problems = read_runs(folders)
    assert not problems
    return group_runs(runs)


def seeded(seed, miou=0.5, start="geoplex", **changes):
    init = {"source": start, "kind": "run"}
    return summary(CROPS, row=ROW, seed=seed, init=init, scores=scored(CROPS, mean_iou=miou), **changes)


def test_runs_with_other_seeds_are_repetitions(tmp_path):
    [group] = groups_of(tmp_path, seeded(2, 0.7), seeded(0, 0.5), seeded(1, 0.6))
    assert [run.seed for run in group.runs] == [0, 1, 2]
    mean, spread = group.score("mean_iou")
    assert (mean, spread) == (pytest.approx(0.6), pytest.approx(0.1))  # the sample's deviation, not the population's
    assert group.paper_row == ROW


@pytest.mark.parametrize(
    "changes",
    [{"mode": "probe"}, {"job": "evaluate"}, {"fraction": 0.1}, {"config": {"epochs": 9}}, {"row": ""}],
)
def test_runs_that_differ_otherwise_are_not(tmp_path, changes):
    assert len(groups_of(tmp_path, seeded(0), seeded(1) | changes)) == 2


def test_each_seed_may_have_a_start_of_its_own(tmp_path):
    assert len(groups_of(tmp_path, seeded(0, start="pretrained_0"), seeded(1, start="pretrained_1"))) == 1


def test_the_same_seeds_from_two_starts_are_two_experiments(tmp_path):
    contents = [seeded(seed, start=start) for seed in (0, 1) for start in ("mini", "large")]
    groups = groups_of(tmp_path, *contents)
    assert sorted(group.distinct(lambda run: run.start) for group in groups) == ["run large", "run mini"]


def test_synthetic_tiles_and_fewer_labels_are_no_row_of_the_paper(tmp_path):
    synthetic = seeded(0, config={"data": {"fake_tiles": 8}})
    groups = groups_of(tmp_path, synthetic, seeded(0, fraction=0.1), seeded(0) | {"row": "A/nonsense/finetune"})
    assert [group.paper_row for group in groups] == ["", "", ""]
    assert list(by_row(groups)) == [""]


def test_the_spread_of_one_is_unknown_and_a_missing_score_is_no_mean():
    mean, spread = mean_and_spread([0.5])
    assert mean == 0.5 and math.isnan(spread)
    assert all(map(math.isnan, mean_and_spread([0.5, math.nan])))
