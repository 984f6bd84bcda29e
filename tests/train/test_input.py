"""Inputs of steps on their way to the devices, and the names of bad samples."""

import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.configs import pretrain
from anysat_jax.errors import DataError
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.step import make_inputs
from anysat_jax.train import input as feed_module
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import DeviceFeed, StepInput, bad_rows, describe_bad_samples, until_end
from anysat_jax.train.sharding import make_mesh, put_batch
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.prepare.shards import WorkerDiedError
from tests.train.toys import assert_same

MESH = make_mesh(MeshConfig(data=2, fsdp=1))


class Batches:
    """Stands for the data's iterator: the k-th batch depends on k alone."""

    def __init__(self):
        self.step = 0

    def __next__(self):
        self.step += 1
        batch = fake_batch(("spot",), batch_size=4, extent=40.0, seed=self.step)
        return batch.replace(labels={"tile": np.zeros(4)})

    def get_state(self):
        return {"next_step": self.step}

    def set_state(self, state):
        self.step = state["next_step"]


def feed_at(step, position=None, seed=0):
    given = pretrain.get_config()
    given.seed = seed
    return DeviceFeed(Batches(), make_inputs(PretrainConfig.read(given), MESH), step=step, position=position)


def test_labels_stay_behind_and_the_position_is_that_after_the_batch():
    feed = feed_at(0)
    fed = [feed.next() for _ in range(3)]
    assert [one.position for one in fed] == [{"next_step": 1}, {"next_step": 2}, {"next_step": 3}]
    assert all(one.batch.labels == {} and one.inputs[1].context_index.shape[0] == 4 for one in fed)
    assert len(fed[0].batch.observations["spot"].values.sharding.device_set) == 2


def test_a_resumed_feed_gives_what_the_other_would_have_given():
    straight = feed_at(0)
    fed = [straight.next() for _ in range(3)]
    resumed = feed_at(2, fed[1].position).next()
    assert_same(resumed.inputs, fed[2].inputs)


def test_masks_follow_the_seed_and_the_step():
    masks = [feed_at(step, seed=seed).next().inputs[1] for step, seed in ((0, 0), (1, 0), (0, 1))]
    for other in masks[1:]:
        with pytest.raises(AssertionError):
            assert_same(masks[0], other)


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


CUT = make_mesh(MeshConfig(data=2, fsdp=2))


def batch_with(bad=()):
    batch = fake_batch(("spot", "s2"), batch_size=8, extent=20.0)
    s2 = batch.observations["s2"]
    values = np.array(s2.values)
    for row in bad:
        values[row, 0, 0, 0, 0] = np.inf
    return put_batch(batch.replace(observations={**batch.observations, "s2": s2.replace(values=values)}), CUT)


def named(tiles):
    return [f"fake_{tile}" for tile in tiles]


def unreadable(tiles):
    raise ValueError


def describe(batch, tiles, tile_ids=named):
    return describe_bad_samples(StepInput((batch,), {}, tiles=tiles), tile_ids)


def test_rows_with_bad_values_are_found_whatever_device_holds_them():
    assert np.flatnonzero(bad_rows(batch_with((1, 6)))).tolist() == [1, 6]
    assert not bad_rows(batch_with()).any() and len(bad_rows(batch_with())) == 8


def test_they_are_named():
    assert describe(batch_with((2,)), np.arange(10, 18)) == "samples with such values in them: fake_12"


def test_where_the_input_is_good_the_whole_batch_is_named():
    text = describe(batch_with(), np.arange(8))
    assert text.startswith("its samples: fake_0, fake_1, ") and text.endswith("fake_7")


def test_few_of_many_and_by_position_where_they_cannot_be_read(monkeypatch):
    assert describe(batch_with((3,)), np.arange(8), unreadable) == "samples with such values in them: tile 3"
    monkeypatch.setattr("anysat_jax.train.input.MOST_NAMES", 2)
    assert describe(batch_with(), np.arange(8), unreadable) == "its samples: tile 0, tile 1 and 6 more"
