"""The probe finds the optimum of its convex problem, chooses its penalty on validation rows, and becomes a head."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from anysat_jax.downstream.linear_probe import PENALTIES, fit_penalties, fit_probe, layer_norm
from anysat_jax.downstream.network import Head, HeadConfig
from anysat_jax.downstream.task import Task, prediction

CLASSES = Task("fake", "Fake", "tile", "class", ("a", "b", "c", "d"))
LABELS = Task("fake", "Fake", "tile", "multi_label", ("a", "b", "c", "d"), metric="weighted_f1")
NUMBER = Task("fake", "Fake", "tile", "regression", metric="r2", offset=5.0, scale=2.0)
TASKS = {task.kind: task for task in (CLASSES, LABELS, NUMBER)}
WIDTH = 24
TRAINING, VALIDATION = 300, 100  # rows: tests with the same numbers share their programs


def rows(kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features whose variances span two orders of magnitude, and labels that follow them."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.01, WIDTH)
    features = rng.standard_normal((count, WIDTH)) * spread
    weights = np.random.default_rng(99).standard_normal((WIDTH, 4)) / spread[:, None] / 2
    scores = features @ weights + rng.gumbel(size=(count, 4))
    labels = {
        "class": scores.argmax(axis=1).astype(np.int32),
        "multi_label": (scores > 0.5).astype(np.float32),
        "regression": (5 + 2 * scores[:, 0]).astype(np.float32),
    }
    return features.astype(np.float32), labels[kind]


def scaled(features: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Features standardised by those of the training rows."""
    normed, reference = np.asarray(layer_norm(features)), np.asarray(layer_norm(like))
    return (normed - reference.mean(axis=0)) / reference.std(axis=0)


def reference_logits(kind: str, penalty: float, train, other: np.ndarray) -> np.ndarray:
    """Logits, or a number, by scikit-learn."""
    inputs, outputs = scaled(train[0], train[0]), scaled(other, train[0])
    logistic = LogisticRegression(C=1 / (penalty * len(inputs)), max_iter=5000, tol=1e-8)
    if kind == "class":
        return logistic.fit(inputs, train[1]).decision_function(outputs)
    if kind == "multi_label":
        return np.stack([logistic.fit(inputs, one).decision_function(outputs) for one in train[1].T], axis=1)
    return Ridge(alpha=penalty * len(inputs)).fit(inputs, (train[1] - 5) / 2).predict(outputs)[:, None]


@pytest.mark.parametrize("kind", TASKS)
def test_the_probe_is_the_optimum_and_its_head_gives_the_same_logits(kind):
    task, train, validation = TASKS[kind], rows(kind, TRAINING), rows(kind, VALIDATION, seed=1)
    probe, penalty, loss = fit_probe(task, train, validation)
    assert penalty in PENALTIES
    logits = np.asarray(probe.logits(validation[0]))
    expected = reference_logits(kind, penalty, train, validation[0])
    if kind == "class":  # logits are defined up to a constant
        logits, expected = (x - x.mean(axis=1, keepdims=True) for x in (logits, expected))
    np.testing.assert_allclose(logits, expected, atol=0.01 * np.abs(expected).max())
    head = Head(HeadConfig(), task).apply({"params": probe.head_params()}, validation[0])
    np.testing.assert_allclose(probe.logits(validation[0]), head, atol=1e-4)
    right = {"class": 0.5, "multi_label": 0.7, "regression": 0.0}[kind]
    assert np.mean(prediction(task, logits) == validation[1]) >= right and np.isfinite(loss)


@pytest.mark.parametrize("kind", ["class", "multi_label"])
def test_every_penalty_is_solved_whatever_the_conditioning(kind):
    """Features of which many are nearly copies, as those of a collapsed encoder are."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 4)) @ rng.standard_normal((4, WIDTH)) + 1e-3 * rng.standard_normal(
        (300, WIDTH)
    )
    labels = rows(kind, 300)[1]
    targets = (labels if labels.ndim == 2 else labels[:, None] == np.arange(4)).astype(np.float32)
    penalties = np.float32([1e-3, 1e-1])
    probes, longer = (fit_penalties(kind, np.float32(features), targets, penalties, steps=n) for n in (200, 2000))
    np.testing.assert_allclose(probes.kernel, longer.kernel, atol=0.02 * np.abs(longer.kernel).max())


def test_unknown_labels_are_left_out():
    train, validation = rows("class", TRAINING), rows("class", VALIDATION, seed=1)
    more = np.concatenate([train[0], 100 * validation[0]]), np.concatenate([train[1], np.full(VALIDATION, -1)])
    some, alone = fit_probe(CLASSES, more, validation), fit_probe(CLASSES, train, validation)
    for one, two in zip(jax.tree.leaves(some), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_more_rows_give_a_weaker_penalty_and_a_better_probe():
    validation, (features, classes) = rows("class", VALIDATION, seed=2), rows("class", 500, seed=1)
    few, many = (fit_probe(CLASSES, rows("class", count), validation) for count in (30, 3000))
    scores = [np.mean(np.argmax(one[0].logits(features), axis=1) == classes) for one in (few, many)]
    assert scores[1] > 0.6 and scores[1] > scores[0]
    assert many[1] <= few[1]


def test_without_validation_rows_the_first_penalty_is_taken():
    features = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    probe, penalty, loss = fit_probe(CLASSES, (features, np.array([2, 0])), penalties=(1e-2,))
    assert penalty == 1e-2 and np.isnan(loss)
    np.testing.assert_array_equal(np.argmax(probe.logits(features.reshape(1, 2, 8)), axis=-1), [[2, 0]])


def test_features_that_do_not_vary_do_no_harm():
    features, classes = rows("class", 200)
    features[:, 5] = features[:, 6]
    same = np.repeat(features[:1], 200, axis=0)
    assert np.isfinite(fit_probe(CLASSES, (features, classes), penalties=(1e-5,))[0].kernel).all()
    constant = fit_probe(CLASSES, (same, classes), penalties=(1e-2,))[0]
    np.testing.assert_array_equal(np.argmax(constant.logits(same), axis=1), np.bincount(classes).argmax())


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_without_labels_or_with_broken_features_is_refused(part):
    name, both = ("training", "validation")[part], [rows("class", 20), rows("class", 10)]
    good = both[part]
    both[part] = (good[0], np.full(len(good[1]), -1))
    with pytest.raises(ValueError, match=rf"no row of the {name} part has a label \({len(good[1])} rows\)"):
        fit_probe(CLASSES, *both)
    broken = good[0].copy()
    broken[3, :2] = np.nan
    both[part] = (broken, good[1])
    with pytest.raises(ValueError, match=f"2 of {24 * len(good[1])} features of the {name} part are not finite"):
        fit_probe(CLASSES, *both)
