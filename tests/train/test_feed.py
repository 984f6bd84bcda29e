"""Batches and masks on their way to the devices."""

import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.train.feed import Feed
from anysat_jax.train.mesh import make_mesh
from configs import pretrain
from tests.train.toys import assert_same

MESH = make_mesh({"data": 2, "fsdp": 1})


class Batches:
    """Stands for the data's iterator: the k-th batch depends on k alone."""

    def __init__(self):
        self.step, self.closed = 0, False

    def __next__(self):
        self.step += 1
        batch = fake_batch(("spot",), batch_size=4, extent=40.0, seed=self.step)
        return batch.replace(labels={"tile": np.zeros(4)})

    def get_state(self):
        return {"next_step": self.step}

    def set_state(self, state):
        self.step = state["next_step"]

    def close(self):
        self.closed = True


def feed_at(step, position=None, seed=0):
    config = pretrain.get_config()
    config.seed = seed
    return Feed(Batches(), config, MESH, step, position)


def test_labels_stay_behind_and_the_position_is_that_after_the_batch():
    feed = feed_at(0)
    fed = [feed.next() for _ in range(3)]
    assert [one.position for one in fed] == [{"next_step": 1}, {"next_step": 2}, {"next_step": 3}]
    assert all(one.batch.labels == {} and one.masks.context_index.shape[0] == 4 for one in fed)
    assert len(fed[0].batch.observations["spot"].values.sharding.device_set) == 2


def test_a_resumed_feed_gives_what_the_other_would_have_given():
    straight = feed_at(0)
    fed = [straight.next() for _ in range(3)]
    resumed = feed_at(2, fed[1].position).next()
    assert_same(resumed.batch, fed[2].batch)
    assert_same(resumed.masks, fed[2].masks)


def test_masks_follow_the_seed_and_the_step():
    masks = [feed_at(step, seed=seed).next().masks for step, seed in ((0, 0), (1, 0), (0, 1))]
    for other in masks[1:]:
        with pytest.raises(AssertionError):
            assert_same(masks[0], other)


def test_closing_closes_the_data():
    feed = feed_at(0)
    feed.close()
    assert feed._batches.closed
