"""Batches of fitting on their way to the devices."""

import numpy as np

from anysat_jax.downstream.fit import FitFeed
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from tests.downstream.fit_toys import BATCH, ToyBatches

MESH = make_mesh(MeshConfig(data=4, fsdp=1))


def test_batches_are_cut_over_the_devices_with_the_labels_that_are_asked_for():
    fed = FitFeed(ToyBatches(), "tile", 5, MESH, None).next()
    expected = next(ToyBatches())
    assert sorted(fed.batch.labels) == ["index", "tile"]
    for name in ("index", "tile"):
        np.testing.assert_array_equal(fed.batch.labels[name], expected.labels[name])
        assert fed.batch.labels[name].dtype == np.int32  # stored as int64
    np.testing.assert_array_equal(fed.batch.values, expected.values)
    assert fed.batch.values.addressable_shards[0].data.shape[0] == BATCH // 4
    assert fed.batch.dataset == "toy" and int(fed.seed) == 5 and fed.inputs == (fed.batch, fed.seed)


def test_which_samples_are_real_is_passed_on():
    class Padded(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            return batch.replace(labels={**batch.labels, "valid": np.arange(BATCH) < 3})

    labels = FitFeed(Padded(), "tile", 0, MESH, None).next().batch.labels
    assert labels["valid"].dtype == bool and int(labels["valid"].sum()) == 3


def test_tiles_that_are_left_out_are_counted_and_named(caplog):
    class Damaged(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            skipped = np.where(np.arange(BATCH) < 2, 70 + np.arange(BATCH), -1)
            return batch.replace(labels={**batch.labels, "skipped": skipped})

    feed = FitFeed(Damaged(), "tile", 0, MESH, None, step=4)
    fed = feed.next()
    assert fed.skipped == 2 and fed.waited > 0 and "skipped" not in fed.batch.labels
    assert "step 5: tiles of toy cannot be read and are left out: 70, 71" in caplog.text


def test_it_goes_on_from_a_position_and_closes_the_data():
    batches = ToyBatches()
    feed = FitFeed(batches, "tile", 0, MESH, None)
    positions = [feed.next().position for _ in range(3)]
    assert positions == [{"next_step": 1}, {"next_step": 2}, {"next_step": 3}]
    later = FitFeed(ToyBatches(), "tile", 0, MESH, positions[1]).next()
    expected = next_after(2)
    np.testing.assert_array_equal(later.batch.labels["index"], expected.labels["index"])
    feed.close()
    assert batches.closed


def next_after(count):
    batches = ToyBatches()
    for _ in range(count):
        next(batches)
    return next(batches)
