"""The probe finds the optimum of its convex problem, chooses its penalty on held-out groups, and survives odd sets."""

import numpy as np
import pytest

from anysat_jax.downstream import linear_probe as probe


def samples(number: int, width: int = 24, num_classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features whose variances span two orders of magnitude, and classes that follow them."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.01, width)
    features = rng.standard_normal((number, width)) * spread
    weights = np.random.default_rng(99).standard_normal((width, num_classes)) / spread[:, None] / 2
    classes = (features @ weights + rng.gumbel(size=(number, num_classes))).argmax(axis=1)
    return features.astype(np.float32), classes


def standardised(features: np.ndarray) -> np.ndarray:
    normed = np.asarray(probe.layer_norm(features))
    return (normed - normed.mean(axis=0)) / normed.std(axis=0)


@pytest.mark.parametrize("multi_label", [False, True])
def test_solution_equals_scikit_learn(multi_label):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, classes = samples(300)
    targets = (classes[:, None] == np.arange(4)).astype(np.float32)
    penalties = np.float32([1e-3, 1e-1])
    fitted = probe.fit_penalties(features, targets, np.ones(300, bool), penalties, multi_label=multi_label, steps=400)
    for index, penalty in enumerate(penalties):
        model = linear_model.LogisticRegression(C=1 / (300 * float(penalty)), max_iter=5000, tol=1e-8)
        if multi_label:
            theirs = np.stack([model.fit(standardised(features), t).coef_[0] for t in targets.T], axis=1)
        else:
            theirs = model.fit(standardised(features), classes).coef_.T
        np.testing.assert_allclose(fitted.kernel[index], theirs, atol=5e-3 * np.abs(theirs).max())


def test_unused_samples_are_as_if_left_out():
    features, classes = samples(80)
    targets = (classes[:, None] == np.arange(4)).astype(np.float32)
    used = np.arange(80) < 60
    spoilt = np.where(used[:, None], features, 1000 * features[::-1])
    some = probe.fit_penalties(spoilt, targets, used, np.float32([0.1]), multi_label=False)
    alone = probe.fit_penalties(features[:60], targets[:60], used[:60], np.float32([0.1]), multi_label=False)
    np.testing.assert_allclose(some.kernel, alone.kernel, atol=1e-4)


def test_probe_learns_classes_and_chooses_a_weaker_penalty_with_more_samples():
    few, many = (probe.fit_probe(*samples(number), 4) for number in (30, 3000))
    features, classes = samples(500, seed=1)
    assert (many.predict(features) == classes).mean() > 0.6
    assert (many.predict(features) == classes).mean() > (few.predict(features) == classes).mean()
    assert many.penalty <= few.penalty


def test_probe_learns_labels_that_come_together():
    features, _ = samples(400)
    weights = np.random.default_rng(3).standard_normal((24, 3))
    labels = (standardised(features) @ weights > [0.0, 0.5, 99.0]).astype(np.uint8)
    predicted = probe.fit_probe(features, labels, 3).predict(features)
    assert predicted.shape == (400, 3) and predicted.dtype == bool
    assert (predicted == labels).mean() > 0.95
    assert not predicted[:, 2].any()  # never shown in training, never predicted


def test_a_class_absent_in_training_is_never_predicted():
    features, classes = samples(120)
    fitted = probe.fit_probe(features, np.where(classes == 2, -1, classes), 4)
    assert fitted.bias[2] == -np.inf
    predicted = fitted.predict(features.reshape(10, 12, -1))
    assert predicted.shape == (10, 12)
    assert not (predicted == 2).any()


@pytest.mark.parametrize("labels", [np.array([1]), np.array([1, 1, 1]), np.array([0, 1, -1])])
def test_a_handful_of_samples_is_fitted_without_validation(labels):
    features = np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)
    fitted = probe.fit_probe(features, labels, 2)
    assert fitted.penalty == pytest.approx(probe.PENALTIES[2])
    known = labels >= 0
    np.testing.assert_array_equal(fitted.predict(features)[known], labels[known])


def test_features_that_do_not_vary_do_no_harm():
    features, classes = samples(200)
    features[:, 5] = features[:, 6]
    same = np.repeat(features[:1], 200, axis=0)
    assert np.isfinite(probe.fit_probe(features, classes, 4).kernel).all()
    constant = probe.fit_probe(same, classes, 4)
    np.testing.assert_array_equal(constant.predict(same), np.bincount(classes).argmax())


def test_validation_takes_groups_whole():
    groups = np.repeat(np.arange(20), 10)
    chosen = probe._validation_part(groups, np.ones(200, bool), seed=0)
    assert chosen.sum() == 40
    assert set(groups[chosen]).isdisjoint(groups[~chosen])


def test_features_that_are_not_finite_are_refused():
    features, classes = samples(10)
    features[3, :2] = np.nan
    with pytest.raises(ValueError, match="2 of 240 features are not finite"):
        probe.fit_probe(features, classes, 4)


def test_no_label_at_all_is_refused():
    features, classes = samples(10)
    with pytest.raises(ValueError, match="none of 10 samples has a known class"):
        probe.fit_probe(features, np.full_like(classes, -1), 4)
