"""Tasks of datasets, and their losses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anysat_jax.downstream.task import METRICS, LossConfig, Task, balanced_weights, make_task, task_loss
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh, put_batch
from data_pipelines.registry import ARCHIVE_NAMES, get_entry


def card(name):
    return get_entry(name).card


@pytest.mark.parametrize(
    ("name", "level", "kind", "metric", "sensor", "pixels"),
    [
        ("pastis_hd", "dense", "class", "mean_iou", "s2", 1),
        ("flair", "dense", "class", "mean_iou", "aerial-flair", 10),
        ("bradd_s1ts", "dense", "class", "mean_iou", "s1", 1),
        ("hls_burn_scars", "dense", "class", "mean_iou", "hls", 1),
        ("spacenet7", "dense", "class", "mean_iou", "planet", 4),
        ("biomassters", "dense", "regression", "rmse", "s2", 1),
    ],
)
def test_a_dense_task_is_made_of_the_fitting_sensor(name, level, kind, metric, sensor, pixels):
    task = make_task(card(name), level)
    assert (task.kind, task.metric, task.sensor, task.pixels_per_subpatch) == (kind, metric, sensor, pixels)
    assert len(task.classes) == (0 if kind == "regression" else task.num_outputs)


@pytest.mark.parametrize(
    ("name", "kind", "outputs"),
    [("treesatai_ts", "multi_label", 15), ("planted", "class", 40), ("so2sat", "class", 17)],
)
def test_a_tile_task_has_an_output_for_each_class(name, kind, outputs):
    task = make_task(card(name), "tile")
    assert (task.kind, task.num_outputs, task.metric, task.sensor) == (kind, outputs, METRICS[kind][0], "")


@pytest.mark.parametrize("name", ARCHIVE_NAMES)
def test_every_archive_has_a_task_that_survives_json(name):
    level = "dense" if card(name).tile_label == "none" else "tile"
    task = make_task(card(name), level)
    assert Task.from_json(json.loads(json.dumps(dataclasses.asdict(task)))) == task


def test_another_sensor_may_be_asked_for():
    assert make_task(card("pastis_hd"), "dense", sensor="spot").sensor == "spot"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("planted", dict(level="dense"), "'planted' has labels of level 'tile' only"),
        ("planted", dict(level="pixel"), "must be 'tile' or 'dense'"),
        ("planted", dict(level="tile", metric="rmse"), "of kind 'class', measured by accuracy"),
        ("flair", dict(level="dense", sensor="spot"), "'spot': a dense prediction for 'flair' .* aerial-flair, s2"),
    ],
)
def test_what_cannot_be_asked_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(card(name), **arguments)


def test_labels_that_no_sensor_can_draw_are_refused():
    odd = dataclasses.replace(card("pastis_hd"), dense_metres=7.0)
    with pytest.raises(ValueError, match="no sensor's sub-patches are squares of label pixels of 7 m"):
        make_task(odd, "dense")


sklearn_metrics = pytest.importorskip("sklearn.metrics")

TASKS = {
    "class": Task("d", "D", "dense", "class", ("a", "b", "c"), metric="mean_iou"),
    "multi_label": Task("d", "D", "tile", "multi_label", ("a", "b", "c"), metric="macro_f1"),
    "regression": Task("d", "D", "tile", "regression", metric="rmse", offset=10.0, scale=4.0),
}
UNKNOWN = {"class": -1, "multi_label": -1, "regression": np.nan}
WEIGHTS = (0.5, 2.0, 1.0)


def samples(kind: str, number: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels, all known; (B, 2, 3) labels for the dense task."""
    rng = np.random.default_rng(0)
    draws = {
        "class": (rng.standard_normal((number, 2, 3, 3)), rng.integers(0, 3, (number, 2, 3)).astype(np.int8)),
        "multi_label": (rng.standard_normal((number, 3)), rng.integers(0, 2, (number, 3)).astype(np.float32)),
        "regression": (rng.standard_normal((number, 1)), 10 + 4 * rng.standard_normal(number).astype(np.float32)),
    }
    logits, labels = draws[kind]
    return logits.astype(np.float32), labels


def reference(kind: str, logits: np.ndarray, labels: np.ndarray, weights: tuple[float, ...] = (1, 1, 1)) -> float:
    """Scikit-learn's value."""
    if kind == "class":
        truth = labels.ravel()
        shares = np.asarray(jax.nn.softmax(logits.astype(np.float64).reshape(-1, 3)))
        shares = shares / shares.sum(axis=1, keepdims=True)
        return sklearn_metrics.log_loss(truth, shares, sample_weight=np.array(weights)[truth], labels=[0, 1, 2])
    if kind == "multi_label":
        shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
        each = [sklearn_metrics.log_loss(labels[:, k], shares[:, k], labels=[0, 1]) for k in range(3)]
        return float(np.average(each, weights=weights))
    return sklearn_metrics.mean_squared_error((labels - 10) / 4, logits[:, 0])


@pytest.mark.parametrize("kind", TASKS)
def test_losses_equal_scikit_learn_for_all_and_for_each_sample(kind):
    logits, labels = samples(kind)
    loss, per_sample = task_loss(TASKS[kind], LossConfig(), logits, labels)
    assert loss == pytest.approx(reference(kind, logits, labels), rel=1e-5)
    assert per_sample.shape == (8,)
    assert per_sample[3] == pytest.approx(reference(kind, logits[3:4], labels[3:4]), rel=1e-5)


@pytest.mark.parametrize("kind", ["class", "multi_label"])
def test_class_weights_weigh_and_are_divided_by(kind):
    logits, labels = samples(kind)
    loss, _ = task_loss(TASKS[kind], LossConfig(class_weights=WEIGHTS), logits, labels)
    assert loss == pytest.approx(reference(kind, logits, labels, WEIGHTS), rel=1e-5)


@pytest.mark.parametrize("kind", ["class", "multi_label"])
def test_smoothed_labels(kind):
    logits, labels = samples(kind)
    loss, _ = task_loss(TASKS[kind], LossConfig(label_smoothing=0.2), logits, labels)
    if kind == "class":
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.2))
    else:
        losses = optax.sigmoid_binary_cross_entropy(logits, np.where(labels == 1, 0.9, 0.1).astype(np.float32))
    assert loss == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_unknown_labels_and_padding_touch_nothing_even_where_logits_are_nan(kind):
    task, (logits, labels) = TASKS[kind], samples(kind)
    expected = task_loss(task, LossConfig(), logits[:5], labels[:5])[0]
    labels, logits = labels.copy(), logits.copy()
    labels[5:7], logits[5:] = UNKNOWN[kind], np.nan
    valid = np.arange(8) < 7

    def loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return task_loss(task, LossConfig(), logits, labels, valid)

    (value, per_sample), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    assert value == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_array_equal(per_sample[5:], 0)
    np.testing.assert_array_equal(gradient[5:], 0)
    assert np.isfinite(gradient).all() and (gradient[:5] != 0).any()


@pytest.mark.parametrize("kind", TASKS)
def test_nothing_known_is_zero(kind):
    logits, labels = samples(kind)
    loss, per_sample = task_loss(TASKS[kind], LossConfig(), logits, np.full_like(labels, UNKNOWN[kind]))
    assert loss == 0 and not per_sample.any()


def test_the_sample_to_blame_is_the_one_that_is_not_finite():
    logits, labels = samples("class")
    logits[2, 1, 1, 0] = np.nan
    loss, per_sample = task_loss(TASKS["class"], LossConfig(), logits, labels)
    assert not np.isfinite(loss)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(per_sample)), [2])


def test_the_mean_is_over_all_devices():
    logits, labels = samples("class")
    labels[1:4] = -1  # unequal shares of known labels on the devices
    task, config = TASKS["class"], LossConfig(class_weights=WEIGHTS)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    cut = put_batch({"logits": logits, "labels": labels}, mesh)
    loss = jax.jit(lambda cut: task_loss(task, config, cut["logits"], cut["labels"])[0])(cut)
    assert loss == pytest.approx(float(task_loss(task, config, logits, labels)[0]), rel=1e-6)


def test_balanced_weights_equal_scikit_learn_and_average_to_one():
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    counts = np.array([10, 0, 1, 29])
    theirs = class_weight.compute_class_weight(
        "balanced", classes=np.array([0, 2, 3]), y=np.repeat(np.arange(4), counts)
    )
    weights = np.array(balanced_weights(counts))
    np.testing.assert_allclose(weights[[0, 2, 3]], theirs)
    assert weights[1] == 0
    assert np.average(weights, weights=counts) == pytest.approx(1)


def test_what_does_not_fit_is_refused():
    logits, labels = samples("class")
    with pytest.raises(ValueError, match=r"need logits of shape \(8, 2, 3, 3\)"):
        task_loss(TASKS["class"], LossConfig(), logits[:, :1], labels)
    with pytest.raises(ValueError, match="no label of any"):
        balanced_weights([0, 0])
