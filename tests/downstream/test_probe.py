"""Nearest neighbours vote like scikit-learn's, for every kind of label."""

import numpy as np
import pytest
from sklearn import neighbors

from anysat_jax.downstream.probe import neighbour_logits
from anysat_jax.downstream.task import Task

SETTINGS = {"n_neighbors": 5, "metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
CLASSES = Task("toy", "Toy", "tile", "class", ("a", "b", "c"))
LABELS = Task("toy", "Toy", "tile", "multi_label", ("a", "b", "c"), metric="weighted_f1")
NUMBER = Task("toy", "Toy", "tile", "regression", metric="r2", unit="t", offset=10.0, scale=4.0)


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Training features, and more test features than a block holds."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, 6)).astype(np.float32), rng.standard_normal((300, 6)).astype(np.float32)


def labels_of(task: Task) -> np.ndarray:
    rng = np.random.default_rng(1)
    return {
        "class": np.arange(40) % 3,
        "multi_label": rng.integers(0, 2, (40, 3)).astype(np.float32),
        "regression": (10 + 4 * rng.standard_normal(40)).astype(np.float32),
    }[task.kind]


@pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBER], ids=lambda task: task.kind)
def test_votes_equal_scikit_learn_and_rows_without_a_label_have_none(features, task):
    (train, test), labels = features, labels_of(task)
    if task.kind == "class":
        expected = neighbors.KNeighborsClassifier(**SETTINGS).fit(train, labels).predict_proba(test) - 0.5
    else:
        expected = neighbors.KNeighborsRegressor(**SETTINGS).fit(train, labels).predict(test).reshape(300, -1)
        expected = (expected - 10) / 4 if task.kind == "regression" else expected - 0.5
    found = neighbour_logits(task, (train, labels), test, k=5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)
    unknown = np.full((5, *labels.shape[1:]), np.nan if task.kind == "regression" else -1, labels.dtype)
    more = np.concatenate([train, test[:5]]), np.concatenate([labels, unknown])
    np.testing.assert_allclose(neighbour_logits(task, more, test, k=5), found, atol=1e-6)


def test_fewer_rows_than_neighbours_and_no_test_row(features):
    train, test = features
    assert neighbour_logits(CLASSES, (train[:3], np.array([0, 1, 1])), test, k=20).shape == (300, 3)
    assert neighbour_logits(CLASSES, (train, np.zeros(40, int)), test[:0]).shape == (0, 3)


def test_half_precision_and_a_feature_of_zeros_do_no_harm(features):
    train, test = features
    train = train.astype(np.float16)
    train[0] = 0
    votes = neighbour_logits(CLASSES, (train, np.arange(40) % 2), test.astype(np.float16)) + 0.5
    np.testing.assert_allclose(votes.sum(axis=1), 1, atol=1e-5)


def test_no_label_and_broken_features_are_refused(features):
    train, test = features
    with pytest.raises(ValueError, match=r"no row of the training part has a label \(40 rows\)"):
        neighbour_logits(CLASSES, (train, np.full(40, -1)), test)
    broken = test.copy()
    broken[2, 1] = np.inf
    with pytest.raises(ValueError, match="features of the test part are not finite"):
        neighbour_logits(CLASSES, (train, np.zeros(40, int)), broken)
