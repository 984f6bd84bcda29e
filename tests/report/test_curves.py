"""Curves read back from the logs of runs."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from anysat_jax.report.curves import draw_curves, draw_fit_curves, draw_series, read_curves, read_fit_log, smooth
from anysat_jax.report.runs import BrokenRun
from tests.report.fake_runs import CROPS, has_colour, run_of, summary

HEADER = "step,dataset,patch_size,loss,loss_predictive,loss_contrastive,learning_rate,ema\n"


def test_rows_are_parted_by_dataset(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "1,b,10,3,1,2,0.1,0.9\n2,a,10,3,0.5,2.5,0.2,0.9\n3,b,20,nan,nan,2,0.3,0.9\n")
    first, second = read_curves(path)
    assert (first.dataset, second.dataset) == ("a", "b")
    np.testing.assert_array_equal(second.steps, [1, 3])
    np.testing.assert_array_equal(second.values["loss_predictive"], [1, np.nan])
    np.testing.assert_array_equal(second.values["learning_rate"], [0.1, 0.3])


def test_values_that_a_resumed_run_measured_later_are_nan_before(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER.strip() + ",feature_rank\n1,a,10,3,1,2,0.1,0.9,\n2,a,10,3,1,2,0.1,0.9,7.5\n")
    (curve,) = read_curves(path)
    np.testing.assert_array_equal(curve.values["feature_rank"], [np.nan, 7.5])
    assert "feature_cosine" not in curve.values


@pytest.mark.parametrize("measured", [True, False])
def test_health_is_drawn_where_the_log_has_it(tmp_path, measured):
    path = tmp_path / "metrics.csv"
    names, values = (",feature_rank,feature_cosine", ",9.0,0.5") if measured else ("", "")
    path.write_text(HEADER.strip() + names + "\n" + "".join(f"{i},a,10,3,1,2,0.1,0.9{values}\n" for i in range(9)))
    draw_curves(tmp_path / "curves.png", "toy", read_curves(path))
    height, width, _ = image.imread(tmp_path / "curves.png").shape
    assert (height / width > 0.5) == measured  # a second row of panels


def test_no_file_and_no_rows_are_no_curves(tmp_path):
    assert read_curves(tmp_path / "metrics.csv") == []
    (tmp_path / "metrics.csv").write_text(HEADER)
    assert read_curves(tmp_path / "metrics.csv") == []


def test_smoothing_keeps_a_line_and_calms_noise():
    steps = np.arange(200.0)
    np.testing.assert_allclose(smooth(steps, np.full(200, 3.0), steps[::7], 10), 3.0)
    noise = np.random.default_rng(0).standard_normal(200)
    assert smooth(steps, noise, steps, 10).std() < 0.4
    np.testing.assert_allclose(smooth(steps, noise, steps, 0.0), noise)


def test_a_value_that_is_not_finite_leaves_the_smoothing():
    values = np.array([1.0, np.nan, 1.0, 1.0])
    np.testing.assert_allclose(smooth(np.arange(4.0), values, np.arange(4.0), 1.0), 1.0)


def test_the_log_of_a_fit(tmp_path):
    log = read_fit_log(run_of(tmp_path, summary(CROPS)))
    assert (log.steps[-1], log.loss[0], log.rate[0], log.best) == (30, 1.5, 1e-4, 2)
    np.testing.assert_array_equal(log.values, [0.4, 0.6, 0.55])
    assert log.label == "seed 0, best 0.600 at epoch 2"


def test_a_run_without_a_log_has_no_curves(tmp_path):
    assert read_fit_log(run_of(tmp_path, summary(CROPS, job="evaluate"), logs=False)) is None


def test_a_fit_that_was_never_evaluated_has_no_best_epoch(tmp_path):
    run = run_of(tmp_path, summary(CROPS))
    (run.folder / "evaluation.csv").unlink()
    log = read_fit_log(run)
    assert log.label == "seed 0"
    draw_fit_curves(tmp_path / "c.png", "Title", "mIoU", [log])
    assert not has_colour(tmp_path / "c.png", "#d1495b")


def test_the_best_epoch_has_a_ring(tmp_path):
    draw_fit_curves(tmp_path / "c.png", "Title", "mIoU", [read_fit_log(run_of(tmp_path, summary(CROPS)))])
    assert has_colour(tmp_path / "c.png", "#d1495b")


def test_a_value_that_is_not_there_is_a_gap(tmp_path):
    run = run_of(tmp_path, summary(CROPS))
    (run.folder / "metrics.csv").write_text("step,loss,learning_rate\n1,,0.1\n2,inf,0.1\n3,0.5,0.1\n")
    log = read_fit_log(run)
    assert math.isnan(log.loss[0])
    draw_fit_curves(tmp_path / "c.png", "Title", "mIoU", [log])


@pytest.mark.parametrize("steps", [1, 2, 19, 40])
def test_short_logs_are_drawn_as_they_are(tmp_path, steps):
    """The smoothed line stays between the lowest and the highest loss, also where few steps lie far apart."""
    log = dataclasses.replace(
        read_fit_log(run_of(tmp_path, summary(CROPS))),
        **{name: np.arange(0, 100 * steps, 100.0) for name in ("steps", "rate")},
        loss=np.full(steps, 3.0),
    )
    figure = Figure()
    draw_series(figure.subplots(), log.steps, log.loss, "#1b6ca8", "seed 0", 100.0 * steps)
    for line in figure.axes[0].lines:
        np.testing.assert_allclose(line.get_ydata(), 3.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [("step,loss\n1,2\n", "has no column 'learning_rate'"), ("step,loss,learning_rate\n1,x,2\n", "cannot be read")],
)
def test_a_broken_log_is_a_sentence(tmp_path, text, words):
    run = run_of(tmp_path, summary(CROPS))
    (run.folder / "metrics.csv").write_text(text)
    with pytest.raises(BrokenRun, match=f"^run/metrics.csv {words}"):
        read_fit_log(run)
