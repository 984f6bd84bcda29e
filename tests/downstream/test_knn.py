"""Nearest neighbours vote as scikit-learn's do, whatever the labels are."""

import numpy as np
import pytest

from anysat_jax.downstream import probe as knn

neighbors = pytest.importorskip("sklearn.neighbors")

SETTINGS = {"n_neighbors": 5, "metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / 0.07)}


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Training features, and more test features than a block holds."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((40, 6)).astype(np.float32), rng.standard_normal((300, 6)).astype(np.float32)


def test_votes_equal_scikit_learn(features):
    train, test = features
    classes = np.arange(40) % 3
    theirs = neighbors.KNeighborsClassifier(**SETTINGS).fit(train, classes).predict_proba(test)
    mine = knn.knn_predict(train, classes, test, 3, k=5)
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("several", [True, False])
def test_means_of_labels_and_of_numbers_equal_scikit_learn(features, several):
    train, test = features
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (40, 3)) if several else rng.standard_normal(40).astype(np.float32)
    theirs = neighbors.KNeighborsRegressor(**SETTINGS).fit(train, labels).predict(test)
    mine = knn.knn_predict(train, labels, test, 3 if several else 1, k=5)
    np.testing.assert_allclose(mine, theirs.reshape(300, -1), atol=1e-3)


@pytest.mark.parametrize(
    "labels", [np.arange(40) % 3, np.eye(3)[np.arange(40) % 3], np.arange(40.0)], ids=["class", "multi_label", "number"]
)
def test_samples_without_a_label_are_no_neighbours(features, labels):
    train, test = features
    unknown = np.arange(40) % 4 == 0
    spoilt = labels.copy()
    spoilt[unknown] = -1 if labels.dtype.kind == "i" else np.nan
    expected = knn.knn_predict(train[~unknown], labels[~unknown], test, 3)
    np.testing.assert_allclose(knn.knn_predict(train, spoilt, test, 3), expected, atol=1e-6)


def test_more_neighbours_than_samples_and_no_question(features):
    train, test = features
    assert knn.knn_predict(train[:3], np.array([0, 1, 1]), test, 2, k=20).shape == (300, 2)
    assert knn.knn_predict(train, np.zeros(40, int), test[:0], 2).shape == (0, 2)


def test_half_precision_and_a_feature_of_zeros_do_no_harm(features):
    train, test = features
    train = train.astype(np.float16)
    train[0] = 0
    scores = knn.knn_predict(train, np.arange(40) % 2, test.astype(np.float16), 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_no_label_and_broken_features_are_refused(features):
    train, test = features
    with pytest.raises(ValueError, match="none of 40 training samples"):
        knn.knn_predict(train, np.full(40, -1), test, 3)
    broken = test.copy()
    broken[2, 1] = np.inf
    with pytest.raises(ValueError, match="test features are not finite"):
        knn.knn_predict(train, np.zeros(40, int), broken, 3)
