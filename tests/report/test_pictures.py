"""Colours of pictures, from bands and from features."""

import numpy as np

from anysat_jax.report.maps import principal_colours, stretch


def test_stretch_shares_its_limits_between_images():
    dark, bright = np.zeros((10, 10, 3)), np.ones((10, 10, 3))
    stretched = stretch([dark, bright])
    assert stretched[0].max() == 0.0 and stretched[1].min() == 1.0
    assert np.isfinite(stretch([dark])[0]).all()


def test_principal_colours_separate_what_features_separate():
    rng = np.random.default_rng(0)
    kinds = np.stack([rng.permutation(np.arange(36) % 3).reshape(6, 6) for _ in range(2)])
    features = rng.standard_normal((3, 16))[kinds] + 0.01 * rng.standard_normal((2, 6, 6, 16))
    colours = np.stack(principal_colours(list(features)))
    assert colours.shape == (2, 6, 6, 3) and 0 <= colours.min() <= colours.max() <= 1
    means = np.stack([colours[kinds == kind].mean(axis=0) for kind in range(3)])
    within = max(np.abs(colours[kinds == kind][:, :2] - means[kind, :2]).max() for kind in range(3))
    between = min(np.abs(means[a, :2] - means[b, :2]).max() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 5 * within
