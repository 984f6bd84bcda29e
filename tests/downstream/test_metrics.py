"""However a set is cut into batches, padded and spread over devices, its scores are scikit-learn's on all of it."""

import functools
import json
import math
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.downstream.metrics import SplitScores, count_batch, json_values
from anysat_jax.downstream.task import METRICS, Task, prediction
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh, put_batch

sk = pytest.importorskip("sklearn.metrics")

CLASSES = ("a", "b", "c", "d")
TASKS = {
    "tile class": Task("d", "D", "tile", "class", CLASSES),
    "dense class": Task("d", "D", "dense", "class", CLASSES, metric="mean_iou"),
    "multi_label": Task("d", "D", "tile", "multi_label", CLASSES, metric="macro_f1"),
    "tile regression": Task("d", "D", "tile", "regression", metric="rmse", offset=100.0, scale=15.0),
    "dense regression": Task("d", "D", "dense", "regression", metric="rmse", offset=100.0, scale=15.0),
}
BATCH = 6
count = jax.jit(count_batch, static_argnums=0)
SIZES = st.lists(st.integers(0, BATCH), min_size=1, max_size=6)


def draw(task: Task, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels; a fifth of the labels unknown, some classes rare or absent."""
    shape = (number, 2, 3) if task.level == "dense" else (number,)
    logits = rng.standard_normal((*shape, task.num_outputs)).astype(np.float32)
    if task.kind == "multi_label":
        return logits, (rng.random(logits.shape) < [0.5, 0.1, 0.9, 0.0]).astype(np.float32)
    unknown = rng.random(shape) < 0.2
    if task.kind == "class":
        return logits, np.where(unknown, -1, rng.choice(3, shape, p=[0.7, 0.2, 0.1])).astype(np.int32)
    truth = np.round(100 + 15 * (logits[..., 0] + rng.standard_normal(shape)))
    return logits, np.where(unknown, np.nan, truth).astype(np.float32)


def padded(rows: np.ndarray) -> np.ndarray:
    """As many rows as a batch has, the last of them again: what an evaluation's last batch looks like."""
    return np.resize(rows, (BATCH, *rows.shape[1:])) if len(rows) else np.zeros((BATCH, *rows.shape[1:]), rows.dtype)


def total_of(task: Task, logits: np.ndarray, labels: np.ndarray, sizes: list[int]) -> SplitScores:
    """The summary of all samples, in batches that hold `sizes` of them and padding."""
    total, start = SplitScores(task), 0
    for size in sizes:
        chosen = slice(start, start + size)
        total.add(count(task, padded(logits[chosen]), padded(labels[chosen]), np.arange(BATCH) < size))
        start += size
    return total


def reference(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scikit-learn's scores of all samples at once."""
    if task.kind == "regression":
        known = np.isfinite(labels)
        return regression_scores(labels[known].astype(np.float64), prediction(task, logits.astype(np.float64))[known])
    if task.kind == "class":
        known = labels >= 0
        return class_scores(labels[known], logits.argmax(axis=-1)[known])
    return f1_scores(labels == 1, logits > 0)


def regression_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    if not len(truth):
        return dict.fromkeys(METRICS["regression"], math.nan)
    return {
        "rmse": sk.root_mean_squared_error(truth, predicted),
        "mae": sk.mean_absolute_error(truth, predicted),
        "r2": sk.r2_score(truth, predicted) if np.ptp(truth) > 0 else math.nan,
    }


def f1_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    score = functools.partial(sk.f1_score, truth, predicted, zero_division=np.nan)
    if not (truth.any() or predicted.any()):
        return dict.fromkeys(METRICS["multi_label"], math.nan)
    return {f"{average}_f1": score(average=average) for average in ("macro", "micro", "weighted")}


def class_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    if not len(truth):
        return dict.fromkeys(METRICS["class"], math.nan)
    score = functools.partial(sk.f1_score, truth, predicted, zero_division=np.nan)
    return {
        "accuracy": sk.accuracy_score(truth, predicted),
        "mean_iou": sk.jaccard_score(truth, predicted, average="macro"),
        **{f"{average}_f1": score(average=average) for average in ("macro", "micro", "weighted")},
    }


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_scores_of_any_cut_equal_scikit_learn_on_the_whole_set(name, sizes, seed):
    task = TASKS[name]
    logits, labels = draw(task, np.random.default_rng(seed), sum(sizes))
    mine = total_of(task, logits, labels, sizes).scores
    assert set(mine) == {*METRICS[task.kind], "count"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference(task, logits, labels)
    for metric in METRICS[task.kind]:
        assert mine[metric] == pytest.approx(theirs[metric], rel=2e-5, abs=1e-5, nan_ok=True), metric


@pytest.mark.parametrize("name", TASKS)
def test_devices_count_together_what_one_counts(name):
    task = TASKS[name]
    logits, labels = draw(task, np.random.default_rng(0), 16)
    valid = np.arange(16) < 13
    cut = put_batch({"logits": logits, "labels": labels, "valid": valid}, make_mesh(MeshConfig(data=4, fsdp=2)))
    both = [count(task, logits, labels, valid), count(task, cut["logits"], cut["labels"], cut["valid"])]
    alone, together = (SplitScores(task) for _ in both)
    alone.add(both[0])
    together.add(both[1])
    assert together.scores == pytest.approx(alone.scores, rel=1e-6)


def test_confusion_and_scores_of_each_class():
    task = TASKS["dense class"]
    logits, labels = draw(task, np.random.default_rng(1), 10)
    logits[..., 3] = -9  # d is neither true nor predicted
    total = total_of(task, logits, labels, [6, 4])
    known = labels >= 0
    truth, predicted = labels[known], logits.argmax(axis=-1)[known]
    np.testing.assert_array_equal(total.confusion, sk.confusion_matrix(truth, predicted, labels=range(4)))
    found = total.per_class
    np.testing.assert_allclose([found["iou"][c] for c in "abc"], sk.jaccard_score(truth, predicted, average=None))
    np.testing.assert_allclose([found["f1"][c] for c in "abc"], sk.f1_score(truth, predicted, average=None))
    assert math.isnan(found["iou"]["d"])
    assert list(found["count"].values()) == np.bincount(truth, minlength=4).tolist()


def test_confusion_of_each_label_leaves_unknown_ones_out():
    task = TASKS["multi_label"]
    logits, labels = draw(task, np.random.default_rng(1), 10)
    total = total_of(task, logits, labels, [4, 6])
    theirs = sk.multilabel_confusion_matrix(labels == 1, logits > 0)
    np.testing.assert_array_equal(total.confusion, theirs)
    labels[:3, 2] = -1
    partly = total_of(task, logits, labels, [4, 6]).confusion
    np.testing.assert_array_equal(partly[[0, 1, 3]], theirs[[0, 1, 3]])
    np.testing.assert_array_equal(partly[2], sk.confusion_matrix(labels[3:, 2] == 1, logits[3:, 2] > 0))


@pytest.mark.parametrize(("offset", "number"), [(0.0, 6), (1e4, 6), (-273.0, 4)])
def test_r2_is_exact_where_the_labels_lie_far_from_zero(offset, number):
    task = Task("d", "D", "dense", "regression", metric="r2", offset=offset, scale=2.0)
    rng = np.random.default_rng(0)
    labels = (offset + 2 * rng.standard_normal((number, 2, 3))).astype(np.float32)
    logits = rng.standard_normal((number, 2, 3, 1)).astype(np.float32)
    mine = total_of(task, logits, labels, [1] * number).scores
    theirs = sk.r2_score(labels.ravel().astype(np.float64), offset + 2.0 * logits.ravel().astype(np.float64))
    assert mine["r2"] == pytest.approx(theirs, abs=1e-5)


def test_labels_that_do_not_vary_have_no_r2_whatever_rounding_leaves():
    task = TASKS["dense regression"]
    logits, labels = draw(task, np.random.default_rng(0), 12)
    found = total_of(task, logits, np.full_like(labels, 112.3), [5, 6, 1]).scores
    assert math.isnan(found["r2"]) and found["rmse"] > 0


def test_sums_do_not_overflow():
    task = TASKS["tile class"]
    logits, labels = draw(task, np.random.default_rng(0), BATCH)
    counts = jax.device_get(count(task, logits, labels, np.ones(BATCH, bool)))
    large = counts.replace(confusion=np.full_like(counts.confusion, 2**30))
    total = SplitScores(task)
    for _ in range(5):
        total.add(large)
    assert total.count == 5 * 16 * 2**30


@pytest.mark.parametrize("name", TASKS)
def test_nothing_counted_has_no_score_and_is_valid_json(name):
    task = TASKS[name]
    found = json_values({"scores": SplitScores(task).scores, "per_class": SplitScores(task).per_class})
    assert found["scores"] == {**dict.fromkeys(METRICS[task.kind]), "count": 0}
    json.dumps(found, allow_nan=False)


def test_json_values_of_arrays_and_lists():
    assert json_values({"a": np.array([1.0, np.inf]), "b": (np.float32(0.5), None, "x"), "c": np.int64(3)}) == {
        "a": [1.0, None],
        "b": [0.5, None, "x"],
        "c": 3,
    }


def test_shapes_that_do_not_belong_together_are_refused():
    task = TASKS["multi_label"]
    with pytest.raises(ValueError, match=r"need logits of shape \(6, 4\)"):
        count_batch(task, np.zeros((6, 3)), np.zeros((6, 3)))
