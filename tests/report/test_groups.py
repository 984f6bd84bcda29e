"""Repetitions of an experiment and their mean and spread."""

import math

import pytest

from anysat_jax.report.runs import by_row, group_runs, mean_and_spread, read_runs
from tests.report.fake_runs import CROPS, scored, summary, write_run

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
    assert sorted(group.words(lambda run: run.start) for group in groups) == ["run large", "run mini"]


def test_synthetic_tiles_and_fewer_labels_are_no_row_of_the_paper(tmp_path):
    synthetic = seeded(0, config={"data": {"fake_tiles": 8}})
    groups = groups_of(tmp_path, synthetic, seeded(0, fraction=0.1), seeded(0) | {"row": "A/nonsense/finetune"})
    assert [group.paper_row for group in groups] == ["", "", ""]
    assert list(by_row(groups)) == [""]


def test_the_spread_of_one_is_unknown_and_a_missing_score_is_no_mean():
    mean, spread = mean_and_spread([0.5])
    assert mean == 0.5 and math.isnan(spread)
    assert all(map(math.isnan, mean_and_spread([0.5, math.nan])))
