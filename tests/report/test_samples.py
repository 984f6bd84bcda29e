"""Rows for the probes: the right labels at the right features, no padding, nothing unknown."""

import dataclasses

import numpy as np
import pytest

from anysat_jax.downstream.features import FrozenFeatures
from anysat_jax.pretrain.probe import collect_samples, make_plan, take_tiles
from tests.report.toy import CARD, toy_batch


def telling_features(params, batch):
    """Features that are the label itself, so that a wrong row shows."""
    dense = batch.labels["dense"][..., None].astype(np.float32) * np.ones(2, np.float32)
    return FrozenFeatures(batch.labels["tile"][:, :2], {"s2": dense, "aerial": dense})


def test_rows_keep_features_labels_and_tiles_together(plan):
    batches = [toy_batch(seed=0), toy_batch(seed=1, valid=2)]
    samples = collect_samples(plan, batches, telling_features, {"random": 0}, pixels_per_tile=7, seed=0)
    tile, dense = samples["tile"], samples["dense"]
    np.testing.assert_array_equal(tile.groups, [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(tile.features["random"], tile.labels[:, :2])
    np.testing.assert_array_equal(np.bincount(dense.groups), [7] * 6)
    np.testing.assert_array_equal(dense.features["random"][:, 0], dense.labels)
    assert dense.labels.min() == 0  # the unknown pixel is never drawn


def test_fewer_labelled_pixels_than_the_limit_are_all_taken(plan):
    samples = collect_samples(plan, [toy_batch()], telling_features, {"random": 0}, pixels_per_tile=1000, seed=0)
    np.testing.assert_array_equal(np.bincount(samples["dense"].groups), [15] * 4)


def test_the_choice_of_pixels_follows_the_seed(plan):
    def labels(seed):
        return collect_samples(plan, [toy_batch()], telling_features, {"r": 0}, 5, seed)["dense"].labels

    np.testing.assert_array_equal(labels(0), labels(0))
    assert (labels(0) != labels(1)).any()


def test_take_tiles_stops_at_the_limit_and_skips_padding():
    batches = [toy_batch(seed=0, valid=3), toy_batch(seed=1), toy_batch(seed=2)]
    taken = list(take_tiles(batches, 5))
    assert [batch.labels["valid"].tolist() for batch in taken] == [[True] * 3 + [False], [True] * 2 + [False] * 2]


def test_no_tiles_is_refused(plan):
    with pytest.raises(ValueError, match="toy: the split 'train' has no tiles"):
        collect_samples(plan, [], telling_features, {"random": 0}, 5, 0)


def test_labels_that_are_all_unknown_are_refused():
    batch = toy_batch()
    batch = batch.replace(labels=batch.labels | {"dense": np.full((4, 4, 4), -1)})
    plan = make_plan(dataclasses.replace(CARD, tile_label="none"))
    with pytest.raises(ValueError, match="toy: no label 'dense' in the split 'train'"):
        collect_samples(plan, [batch], telling_features, {"random": 0}, 5, 0)


def test_a_label_map_of_another_size_is_refused(plan):
    def coarse(params, batch):
        features = telling_features(params, batch)
        return features.replace(dense={"s2": features.dense["s2"][:, ::2, ::2]})

    with pytest.raises(ValueError, match="toy: the dense label is 4 x 4 pixels, but 's2' has 2 x 2 sub-patches"):
        collect_samples(plan, [toy_batch()], coarse, {"random": 0}, 5, 0)
