"""Properties of the schedule and of the endless batches, on sources that are lists in memory."""

import dataclasses
import fractions
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.batch import Batch, Observation
from data_pipelines.batches import HostShard
from data_pipelines.options import DatasetOptions, Sampling
from data_pipelines.sampler import Schedule, StepIterator, Stream, mixture, schedule_of
from tests.data_pipelines.fake_reader import CARD

quick = settings(max_examples=12, deadline=None)
SEEDS = st.integers(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class FakeMaker:
    """Batches that show which tiles they hold, which random numbers those got, and which tiles all processes have."""

    name: str

    def __call__(self, picks, together, patch_size):
        drawn = np.asarray([rng.random() for _, rng in picks])[:, None, None, None]
        labels = {"tile": np.asarray([tile for tile, _ in picks]), "together": np.asarray(together)}
        return Batch({"spot": Observation(drawn)}, labels, dataset=self.name, patch_size=patch_size)


def options(name="fake_tiles", batch_size=4, weight=1, patch_sizes=(10.0, 20.0)):
    card = dataclasses.replace(CARD, name=name)
    return DatasetOptions(card, batch_size, fractions.Fraction(weight), patch_sizes, Sampling())


def stream(size, one=None, seed=0, index=0, count=1):
    one = one or options()
    return Stream(size, one, FakeMaker(one.card.name), seed=seed, shard=HostShard((index,), count))


PARTS = [options("one", 4, 1), options("two", 8, 2), options("three", 4, 3, (10.0,))]


def three(seed=0, index=0, count=1):
    """Three datasets of a few tiles by turns."""
    return mixture([stream(n, part, seed, index, count) for n, part in zip((5, 9, 4), PARTS)], seed)


def tiles(batch):
    return batch.labels["tile"].tolist()


def signature(batch):
    return batch.dataset, batch.patch_size, tiles(batch), batch.observations["spot"].values.ravel().tolist()


def take(iterator, count):
    return [signature(batch) for batch in itertools.islice(iterator, count)]


@quick
@given(size=st.integers(1, 23), batch_size=st.integers(1, 6), seed=SEEDS)
def test_every_example_comes_once_an_epoch(size, batch_size, seed):
    batches = stream(size, options(batch_size=batch_size), seed)
    epochs = 3
    drawn = [tile for k in range(-(-epochs * size // batch_size)) for tile in tiles(batches(k))]
    for epoch in range(epochs):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_are_shuffled_differently():
    batches = stream(20, options(batch_size=20))
    assert len({tuple(tiles(batches(k))) for k in range(4)}) == 4
    assert tuple(tiles(batches(0))) != tuple(range(20))


@quick
@given(size=st.integers(1, 17), count=st.sampled_from([2, 3, 4]), share=st.integers(1, 3), seed=SEEDS)
def test_shards_are_disjoint_and_make_up_the_whole_batch(size, count, share, seed):
    one = options(batch_size=count * share)
    whole = stream(size, one, seed)
    parts = [stream(size, one, seed, index, count) for index in range(count)]
    for k in (0, 1, 7):
        shards = [part(k) for part in parts]
        assert {shard.patch_size for shard in shards} == {whole(k).patch_size}
        together = sorted((t, v) for s in shards for t, v in zip(*signature(s)[2:]))
        assert together == sorted(zip(*signature(whole(k))[2:]))


@settings(max_examples=4, deadline=None)
@given(seed=SEEDS, stop=st.integers(0, 16))
def test_resume_is_exact(seed, stop):
    with_pause, straight = StepIterator(three(seed)), StepIterator(three(seed))
    expected = take(straight, 18)
    got = take(with_pause, stop)
    state = json.loads(json.dumps(with_pause.get_state()))
    resumed = StepIterator(three(seed))
    resumed.set_state(state)
    assert got + take(resumed, 18 - stop) == expected
    for iterator in (with_pause, straight, resumed):
        iterator.close()


@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, step=st.integers(0, 40), counts=st.permutations([1, 2, 4]))
def test_a_run_goes_on_with_another_number_of_processes(seed, step, counts):
    """Wherever it stopped, mid-epoch too, the processes together get the batches of the one that never stopped."""
    for k, count in enumerate(counts, start=step):  # a restart with other processes after each step
        whole = three(seed)[k]
        shards = []
        for index in range(count):
            iterator = StepIterator(three(seed, index, count))
            iterator.set_state({"next_step": k})
            shards.append(next(iterator))
            assert iterator.get_state() == {"next_step": k + 1}
            iterator.close()
        assert {(s.dataset, s.patch_size) for s in shards} == {(whole.dataset, whole.patch_size)}
        assert all(s.labels["together"].tolist() == whole.labels["together"].tolist() for s in shards)
        together = sorted((t, v) for s in shards for t, v in zip(*signature(s)[2:]))
        assert together == sorted(zip(*signature(whole)[2:]))


def test_worker_processes_give_the_same_batches():
    threads, workers = StepIterator(three()), StepIterator(three(), num_workers=1)
    assert take(threads, 8) == take(workers, 8)
    threads.close()
    workers.close()


def test_seeds_give_other_batches():
    assert len({json.dumps([signature(three(seed)[k]) for k in range(4)]) for seed in range(4)}) == 4


def test_another_dataset_leaves_the_order_of_the_first():
    alone = stream(9, options("one"))
    assert [tiles(alone(k)) for k in range(4)] == [tiles(stream(9, options("one"))(k)) for k in range(4)]
    assert [tiles(alone(k)) for k in range(4)] != [tiles(stream(9, options("two"))(k)) for k in range(4)]


def test_all_patch_sizes_are_drawn():
    batches = stream(3)
    assert {batches(k).patch_size for k in range(30)} == {10.0, 20.0}


@quick
@given(shares=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=SEEDS)
def test_each_block_has_every_dataset_its_share_and_no_batch_is_left_out(shares, seed):
    schedule = Schedule(shares, seed)
    block = sum(shares)
    steps = [schedule[k] for k in range(3 * block)]
    for start in range(0, 3 * block, block):
        assert np.bincount([d for d, _ in steps[start : start + block]], minlength=len(shares)).tolist() == shares
    for dataset, share in enumerate(shares):
        assert [rank for d, rank in steps if d == dataset] == list(range(3 * share))
    assert [schedule[k] for k in reversed(range(3 * block))] == steps[::-1]


def test_blocks_are_shuffled_and_seeking_is_quick():
    schedule = Schedule([3, 3, 3], 0)
    blocks = {tuple(schedule[k][0] for k in range(9 * b, 9 * b + 9)) for b in range(10)}
    assert len(blocks) > 5
    assert schedule[10**12][1] > 0


def test_weights_become_whole_steps():
    parts = [options("a", weight="0.5"), options("b", weight="1.25"), options("c", weight="1")]
    schedule = schedule_of(parts, 0)
    assert np.bincount([schedule[k][0] for k in range(11)]).tolist() == [2, 5, 4]


@pytest.mark.parametrize("state", [{}, {"next_step": -1}, {"next_step": "3"}, None, {"next_step": 1.5}])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(ValueError, match="data position"):
        StepIterator(three()).set_state(state)


def test_close_stops_and_next_goes_on():
    iterator = StepIterator(three())
    got = take(iterator, 3)
    iterator.close()
    iterator.close()
    assert got + take(iterator, 3) == take(StepIterator(three()), 6)
    iterator.close()
