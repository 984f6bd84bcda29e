"""Curves read back from the training's log."""

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.report.curves import draw_curves, read_curves, smooth

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
