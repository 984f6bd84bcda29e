"""What goes into pictures: colours from bands and from features, and which tiles are shown."""

import numpy as np
import pytest

from anysat_jax.batch import Observation
from anysat_jax.report.maps import Album, natural_colour, principal_colours, stretch, variety
from tests.report.toy import toy_batch, toy_features


def test_natural_colour_of_an_image_takes_the_channels_in_order():
    values = np.arange(2 * 4 * 3 * 5, dtype=np.float32).reshape(2, 4, 3, 5)
    colour = natural_colour(Observation(values), 1, (2, 1, 0))
    assert colour.shape == (3, 5, 3)
    np.testing.assert_array_equal(colour[..., 0], values[1, 2])


def test_natural_colour_of_a_series_is_the_median_of_real_dates():
    values = np.zeros((1, 4, 3, 2, 2), np.float32)
    values[0, :, 0] = np.array([1.0, 2.0, 9.0, 500.0])[:, None, None]  # a cloud, then padding
    mask = np.array([[True, True, True, False]])
    colour = natural_colour(Observation(values, date_mask=mask), 0, (0, 1, 2))
    np.testing.assert_array_equal(colour[..., 0], np.full((2, 2), 2.0))


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


def test_variety_is_zero_for_one_class_and_ignores_the_unknown():
    assert variety(np.array([[1, 1], [-1, -1]]), ignore=-1) == 0.0
    assert variety(np.array([[0, 1], [-1, -1]]), ignore=-1) == pytest.approx(np.log(2))
    assert variety(np.full((2, 2), -1), ignore=-1) == 0.0


def test_album_keeps_the_most_varied_tiles_and_no_padding(plan):
    album = Album(plan, 2)
    for seed in range(3):
        batch = toy_batch(seed=seed, valid=3)
        batch = batch.replace(labels=batch.labels | {"dense": np.zeros((4, 4, 4), np.int32)})
        batch.labels["dense"][1, : seed + 1] = 1
        batch.labels["dense"][3, :2] = np.arange(4)  # the most varied of all, but padding
        album.add(batch, {"random": toy_features(1.0, batch)}, {})
    halves = [np.mean(picture.land_cover["label"] == 1) for picture in album.pictures]
    assert halves == [0.5, 0.25]


def test_album_of_no_pictures_stays_empty(plan):
    album = Album(plan, 0)
    album.add(toy_batch(), {"random": toy_features(1.0, toy_batch())}, {})
    assert album.pictures == []
