"""Runs are read from files that may be anything."""

import math

import numpy as np
import pytest

from anysat_jax.report.runs import LONGEST_TEXT, clean, read_runs
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
    assert run.scores["accuracy"] == 0.5 and math.isnan(run.scores["macro_f1"]) and math.isnan(run.scores["mean_iou"])


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
        ({"task": {"kind": "song"}}, "'task' is not a task"),
        ({"task": CROPS.to_json() | {"metric": "rmse"}}, "no task of kind 'class', level 'dense' and metric 'rmse'"),
        ({"scores": {}}, "neither the split 'test' nor 'val'"),
        ({"scores": {"test": {"accuracy": "high"}}}, "scores.test.accuracy = 'high' is no number"),
        ({"confusion": {"test": [[1, 2], [3, 4]]}}, "must be (3, 3) counts"),
        ({"confusion": {"test": [[1, 2, 3]] * 2 + [[1, 2, -3]]}}, "must be (3, 3) counts"),
        ({"seed": "first"}, "cannot be used"),
        ({"fraction": 3}, "fraction = 3 is not in (0, 1]"),
        ({"config": [1]}, "cannot be used"),
        ({"provenance": {"seconds": "long"}}, "provenance.seconds = 'long'"),
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
    assert "has no value 'mode'" in problem


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
        "unfinished/summary.json is not there: the run is not finished; start it again, and it goes on.",
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
