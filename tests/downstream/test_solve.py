"""Heads solved at once, against scikit-learn and against the head that they become."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from anysat_jax.downstream.linear_probe import HEAD_PENALTIES, layer_norm, solve_head
from anysat_jax.downstream.network import Head, HeadConfig
from anysat_jax.downstream.task import Task

CLASSES = Task("fake", "Fake", "tile", "class", ("a", "b", "c"))
LABELS = Task("fake", "Fake", "tile", "multi_label", ("a", "b", "c"), metric="weighted_f1")
NUMBER = Task("fake", "Fake", "tile", "regression", metric="r2", offset=5.0, scale=2.0)


def draw(seed: int, samples: int = 240, width: int = 12):
    """Features that share most of what they are, and three directions that tell the label."""
    rng = np.random.default_rng(seed)
    features = 3 * rng.standard_normal(width)[None] + 0.1 * rng.standard_normal((samples, width))
    scores = 10 * features @ np.random.default_rng(9).standard_normal((width, 3))
    scores -= scores.mean(axis=0)
    return features.astype(np.float32), scores


def answers(task, head, features):
    return np.asarray(Head(HeadConfig(), task).apply({"params": head}, features))


def whitened(train, other):
    scaler = StandardScaler().fit(np.asarray(layer_norm(train)))
    return scaler.transform(np.asarray(layer_norm(train))), scaler.transform(np.asarray(layer_norm(other)))


def parts(label):
    features, scores = draw(0, 360)
    labels = label(scores)
    return (features[:240], labels[:240]), (features[240:], labels[240:])


def test_a_classifier_is_the_logistic_regression_of_its_penalty():
    train, val = parts(lambda scores: scores.argmax(axis=1).astype(np.int32))
    head, penalty, loss = solve_head(CLASSES, train, val)
    logits = answers(CLASSES, head, val[0])
    assert np.mean(logits.argmax(axis=1) == val[1]) > 0.8
    inputs, others = whitened(train[0], val[0])
    reference = LogisticRegression(C=1 / (penalty * len(inputs)), max_iter=5000, tol=1e-8).fit(inputs, train[1])
    expected = reference.predict_proba(others)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=0.03)
    assert penalty in HEAD_PENALTIES
    np.testing.assert_allclose(loss, -np.log(expected[np.arange(len(expected)), val[1]]).mean(), atol=0.02)


def test_unknown_labels_are_left_out():
    train, val = parts(lambda scores: scores.argmax(axis=1).astype(np.int32))
    more = np.concatenate([train[0], 100 * val[0]]), np.concatenate([train[1], np.full(len(val[1]), -1)])
    for one, two in zip(
        jax.tree.leaves(solve_head(CLASSES, train, val)), jax.tree.leaves(solve_head(CLASSES, more, val))
    ):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_several_labels_are_told_apart():
    train, val = parts(lambda scores: (scores > 0).astype(np.float32))
    head, _, _ = solve_head(LABELS, train, val)
    assert np.mean((answers(LABELS, head, val[0]) > 0) == val[1]) > 0.8


def test_a_number_is_the_ridge_regression_of_its_penalty():
    train, val = parts(lambda scores: (5 + 2 * scores[:, 0]).astype(np.float32))
    head, penalty, _ = solve_head(NUMBER, train, val)
    predicted = 5 + 2 * answers(NUMBER, head, val[0])[:, 0]
    inputs, others = whitened(train[0], val[0])
    expected = Ridge(alpha=penalty * len(inputs)).fit(inputs, train[1]).predict(others)
    np.testing.assert_allclose(predicted, expected, atol=2e-2 * np.std(val[1]))
    assert np.corrcoef(predicted, val[1])[0, 1] > 0.95


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_without_labels_is_refused(part):
    both = list(parts(lambda scores: scores.argmax(axis=1).astype(np.int32)))
    both[part] = (both[part][0], np.full(len(both[part][1]), -1))
    with pytest.raises(ValueError, match=f"no sample of the {('training', 'validation')[part]} part has a label"):
        solve_head(CLASSES, *both)


def test_features_that_are_not_finite_are_refused():
    train, val = parts(lambda scores: scores.argmax(axis=1).astype(np.int32))
    train[0][3, 2] = np.nan
    with pytest.raises(ValueError, match="features of the training part are not finite"):
        solve_head(CLASSES, train, val)
