"""Scores from summed counts equal scikit-learn's on everything at once."""

import jax
import numpy as np
import pytest

from anysat_jax.downstream import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")

NUM_CLASSES = 6


@pytest.fixture(scope="module")
def classes() -> tuple[np.ndarray, np.ndarray]:
    """Truth and predictions; class 5 never occurs, class 4 is predicted only, a tenth of the truth is unknown."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 500)
    predicted = np.where(rng.random(500) < 0.6, truth, rng.integers(0, 5, 500))
    truth[rng.random(500) < 0.1] = -1
    return truth, predicted


@pytest.fixture(scope="module")
def counts(classes) -> metrics.Counts:
    """Counts summed over unequal batches."""
    confusion = sum(
        metrics.confusion_matrix(truth, predicted, NUM_CLASSES)
        for truth, predicted in zip(*(np.split(array, [7, 130, 480]) for array in classes), strict=True)
    )
    return metrics.class_counts(confusion)


def known(classes) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = classes
    return truth[truth >= 0], predicted[truth >= 0]


def test_confusion_matrix_equals_scikit_learn_and_leaves_unknown_truth_out(classes):
    truth, predicted = classes
    mine = jax.jit(metrics.confusion_matrix, static_argnums=2)(truth, predicted, NUM_CLASSES)
    theirs = sklearn_metrics.confusion_matrix(*known(classes), labels=range(NUM_CLASSES))
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (metrics.accuracy, lambda t, p: sklearn_metrics.accuracy_score(t, p)),
        (metrics.macro_f1, lambda t, p: sklearn_metrics.f1_score(t, p, average="macro", zero_division=np.nan)),
        (metrics.weighted_f1, lambda t, p: sklearn_metrics.f1_score(t, p, average="weighted", zero_division=np.nan)),
        (metrics.mean_iou, lambda t, p: sklearn_metrics.jaccard_score(t, p, average="macro")),
    ],
)
def test_scores_of_summed_counts_equal_scikit_learn(classes, counts, mine, theirs):
    assert mine(counts) == pytest.approx(theirs(*known(classes)), abs=1e-12)


def test_a_class_that_never_occurs_has_no_score(classes, counts):
    theirs = sklearn_metrics.jaccard_score(*known(classes), labels=range(5), average=None)
    np.testing.assert_allclose(metrics.iou_by_class(counts)[:5], theirs)
    assert metrics.iou_by_class(counts)[4] == 0.0  # predicted, never true
    assert np.isnan(metrics.iou_by_class(counts)[5])
    assert np.isnan(metrics.f1_by_class(counts)[5])


@pytest.mark.parametrize(("score", "average"), [(metrics.macro_f1, "macro"), (metrics.weighted_f1, "weighted")])
def test_multi_label_scores_of_summed_counts_equal_scikit_learn(score, average):
    rng = np.random.default_rng(1)
    truth = rng.random((90, 5)) < [0.5, 0.2, 0.05, 0.9, 0.0]
    predicted = truth ^ (rng.random((90, 5)) < [0.2, 0.2, 0.2, 0.2, 0.0])
    counts = metrics.label_counts(truth[:40], predicted[:40]) + metrics.label_counts(truth[40:], predicted[40:])
    theirs = sklearn_metrics.f1_score(truth, predicted, average=average, zero_division=np.nan)
    assert score(counts) == pytest.approx(theirs, abs=1e-12)


def test_padding_is_not_counted():
    truth, predicted = np.ones((3, 2), bool), np.array([[1, 1], [0, 1], [0, 0]], bool)
    counts = metrics.label_counts(truth, predicted, valid=np.array([True, True, False]))
    np.testing.assert_array_equal(counts.misses, [1, 0])


def test_nothing_counted_is_nan_and_not_zero():
    counts = metrics.class_counts(np.zeros((3, 3), np.int64))
    assert all(np.isnan(score(counts)) for score in (metrics.accuracy, metrics.macro_f1, metrics.mean_iou))
