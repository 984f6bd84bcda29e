"""Batches and masks on their way to the devices."""

import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.configs import pretrain
from anysat_jax.errors import DataError
from anysat_jax.train import input as feed_module
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import Feed, until_end
from anysat_jax.train.sharding import make_mesh
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.prepare.shards import WorkerDiedError
from tests.train.toys import assert_same

MESH = make_mesh(MeshConfig(data=2, fsdp=1))


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


def feed_of(monkeypatch, advance):
    monkeypatch.setattr(Batches, "__next__", advance)
    return feed_at(0)


@pytest.mark.parametrize("error", [CorruptTileError("tile 3 cannot be read"), WorkerDiedError("a worker process died")])
def test_data_that_cannot_be_read_are_told_of_in_their_own_words(monkeypatch, error):
    def broken(self):
        raise error

    with pytest.raises(DataError, match=f"^{error}") as caught:
        feed_of(monkeypatch, broken).next()
    assert ("data.skip_corrupt = True" in str(caught.value)) == isinstance(error, CorruptTileError)


def test_an_evaluation_ends_as_its_data_do_or_in_their_words():
    def batches(broken):
        yield from (1, 2)
        if broken:
            raise CorruptTileError("tile 3 cannot be read")

    assert list(until_end(batches(broken=False))) == [1, 2]
    with pytest.raises(DataError, match="^tile 3 cannot be read; data.skip_corrupt = True would leave such tiles out$"):
        list(until_end(batches(broken=True)))


def test_a_mistake_in_the_code_keeps_its_traceback(monkeypatch):
    def broken(self):
        raise ValueError("shapes do not fit")

    with pytest.raises(ValueError, match="shapes do not fit") as caught:
        feed_of(monkeypatch, broken).next()
    assert not isinstance(caught.value, DataError)


def test_tiles_stay_on_the_host_and_those_left_out_are_counted_and_told(monkeypatch):
    told = []
    monkeypatch.setattr(feed_module.logging, "warning", lambda form, *values: told.append(form % values))

    def advance(self):
        batch = fake_batch(("spot",), batch_size=4, extent=40.0, dataset="fake")
        return batch.replace(labels={"index": np.arange(4), "skipped": np.array([-1, 7, -1, 9])})

    fed = feed_of(monkeypatch, advance).next()
    assert fed.tiles.tolist() == [0, 1, 2, 3] and fed.skipped == 2 and fed.waited > 0 and fed.batch.labels == {}
    assert told == ["step 1: tiles of fake cannot be read and are left out: 7, 9"]
