"""Figures of scores, and the numbers that they draw."""

import math

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.report import figures, paper
from anysat_jax.report.figures import (
    draw_confusion,
    draw_label_curves,
    draw_scores,
    label_fractions,
    label_lines,
    row_fractions,
)
from anysat_jax.report.runs import by_row, group_runs, read_runs
from anysat_jax.report.tables import Score
from tests.report.fake_runs import CROPS, has_colour, run_of, scored, summary, write_run


def test_an_axis_for_each_task_and_no_score_of_ours_where_nothing_was_run(tmp_path):
    row, scores = "B/sickle/finetune", scored(CROPS, mean_iou=0.8)
    values = figures.radar_values(by_row(group_runs([run_of(tmp_path, summary(CROPS, row=row, scores=scores))])))
    names = [block.heading for block in paper.BLOCKS]
    assert {len(column) for column in values.values()} == {len(names)}
    ours = dict(zip(names, values["ours"], strict=True))
    assert ours.pop("SICKLE") == 80.0 and all(map(math.isnan, ours.values()))


def test_the_papers_lines():
    values = figures.radar_values({})
    columns = zip(values["AnySat, paper"], values["best other, paper"], strict=True)
    found = dict(zip((block.heading for block in paper.BLOCKS), columns, strict=True))
    assert found["PASTIS-HD - semantic seg"] == (66.5, 66.3)  # mIoU, which SkySense does not report
    assert found["SICKLE"] == (89.3, 82.1) and found["FLAIR - semantic seg"] == (55.1, 56.9)


@pytest.mark.parametrize("ours", [math.nan, 99.0, 3.0])
def test_it_is_drawn_whatever_ours_are(tmp_path, ours):
    values = figures.radar_values({}) | {"ours": [ours] * len(paper.BLOCKS)}
    figures.draw_radar(tmp_path / "radar.png", values)
    assert has_colour(tmp_path / "radar.png", "#d1495b") == math.isfinite(ours)


def test_rows_sum_to_one_and_a_row_without_counts_is_unknown():
    fractions = row_fractions(np.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(fractions, [[0.75, 0.25], [np.nan, np.nan]])


def test_outcomes_of_labels():
    counts = np.array([[[80, 20], [3, 7]]])  # [[true negatives, false alarms], [misses, hits]]
    np.testing.assert_allclose(label_fractions(counts), [[0.7, 0.3, 0.2, 0.8]])


@pytest.mark.parametrize("classes", [2, 40])
def test_cells_stay_large_enough_to_be_read(tmp_path, classes):
    draw_confusion(tmp_path / "c.png", "Title", [f"class {i}" for i in range(classes)], np.eye(classes, dtype=int))
    assert image.imread(tmp_path / "c.png").shape[0] > 45 * classes
    assert has_colour(tmp_path / "c.png", "#08306b")  # 100 % of a row


def groups_of(tmp_path):
    contents = [
        summary(CROPS, seed=seed, fraction=fraction, mode=mode, scores=scored(CROPS, mean_iou=score + 0.01 * seed))
        for mode, scores in (("finetune", (0.4, 0.5, 0.6)), ("scratch", (0.1, 0.3, 0.6)))
        for fraction, score in zip((0.01, 0.1, 1.0), scores, strict=True)
        for seed in (0, 1)
    ]
    contents += [summary(CROPS, mode="probe", fraction=0.1), summary(CROPS, job="evaluate", fraction=0.5)]
    folders = [write_run(tmp_path / str(i), one, logs=False, panels=False) for i, one in enumerate(contents)]
    return group_runs(read_runs(folders)[0])


def test_a_line_for_each_method_with_several_fractions(tmp_path):
    lines = label_lines(groups_of(tmp_path))
    assert list(lines) == ["fine-tuned, start: run", "trained from scratch, start: run"]
    spread = 0.01 / math.sqrt(2)
    np.testing.assert_allclose(
        lines["fine-tuned, start: run"], [(f, s, spread) for f, s in ((0.01, 0.405), (0.1, 0.505), (1, 0.605))]
    )


def test_they_are_drawn(tmp_path):
    draw_label_curves(tmp_path / "l.png", "Title", "mIoU", label_lines(groups_of(tmp_path)))
    assert all(has_colour(tmp_path / "l.png", colour) for colour in ("#1b6ca8", "#e07a1f"))


@pytest.mark.parametrize("dense", [0.3, math.nan])
def test_bars_of_probes_are_drawn_also_if_a_score_is_missing(tmp_path, dense):
    scores = [Score("Toy", "tile", "accuracy", 0.2, 0.4, True), Score("Toy", "dense", "mIoU", dense, 0.4, True)]
    draw_scores(tmp_path / "s.png", "run", scores)
    assert has_colour(tmp_path / "s.png", "#b8b8b8") and has_colour(tmp_path / "s.png", "#1b6ca8")
