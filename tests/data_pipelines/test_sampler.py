"""Order of training batches, and damaged records, shards and workers."""

import dataclasses
import fractions
import itertools
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.batch import Batch, Observation
from data_pipelines import load, registry
from data_pipelines.batches import HostShard
from data_pipelines.options import DatasetOptions, Sampling
from data_pipelines.prepare.records import CorruptTileError, UnreadableTileError
from data_pipelines.prepare.shards import WorkerDiedError
from data_pipelines.sampler import Schedule, StepIterator, Stream, mixture, schedule_of
from tests.data_pipelines.fake_reader import CARD, data_config, fake_entry

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
    schedule = Schedule(tuple(shares), seed)
    block = sum(shares)
    steps = [schedule[k] for k in range(3 * block)]
    for start in range(0, 3 * block, block):
        assert np.bincount([d for d, _ in steps[start : start + block]], minlength=len(shares)).tolist() == shares
    for dataset, share in enumerate(shares):
        assert [rank for d, rank in steps if d == dataset] == list(range(3 * share))
    assert [schedule[k] for k in reversed(range(3 * block))] == steps[::-1]


def test_blocks_are_shuffled_and_seeking_is_quick():
    schedule = Schedule((3, 3, 3), 0)
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


DAMAGED = 3  # of the seven training tiles


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, CARD.name, fake_entry)


@pytest.fixture
def config(tmp_path):
    config = data_config(tmp_path, batch_size=4)
    load.open_datasets(config)
    return config


def shard(config, split="train"):
    (path,) = (load.locate(CARD.name, config.root).folder).glob(f"*-{split}*")
    return path


@pytest.fixture
def damaged(config):
    """The records of one training tile were changed on disk."""
    path = shard(config)
    content = bytearray(path.read_bytes())
    content[32_000] ^= 1
    path.write_bytes(content)
    return config


def take_of_faults(config, count, shard=None):
    iterator = load.train_iterator(load.open_datasets(config), seed=0, **({"shard": shard} if shard else {}))
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def test_a_corrupt_record_is_named(damaged):
    with pytest.raises(CorruptTileError, match=rf"'fake_tiles': tile {DAMAGED} of split 'train' cannot be read"):
        take_of_faults(damaged, 7)


def test_a_corrupt_record_is_skipped_if_asked_and_told_of(config, damaged):
    damaged.skip_corrupt = True
    found = take_of_faults(damaged, 7)  # four epochs of seven tiles
    skipped = np.concatenate([batch.labels["skipped"] for batch in found])
    tiles = np.concatenate([batch.labels["index"] for batch in found])
    assert (skipped == DAMAGED).sum() == 4 and set(skipped) == {-1, DAMAGED}
    assert DAMAGED not in tiles
    for batch in found:
        for tile in batch.labels["index"][batch.labels["skipped"] >= 0]:
            assert (batch.labels["index"] == tile).sum() > 1  # another of the batch stands in


def test_processes_agree_on_what_stands_in(damaged):
    damaged.skip_corrupt = True
    whole = take_of_faults(damaged, 7)
    parts = [take_of_faults(damaged, 7, HostShard((part,), 2)) for part in range(2)]
    for number, batch in enumerate(whole):
        together = np.concatenate([part[number].labels["index"] for part in parts])
        assert together.tolist() == batch.labels["index"].tolist()


def test_where_nothing_is_corrupt_skipping_changes_nothing(config):
    plain = take_of_faults(config, 3)
    config.skip_corrupt = True
    for before, after in zip(plain, take_of_faults(config, 3), strict=True):
        np.testing.assert_array_equal(before.observations["spot"].values, after.observations["spot"].values)
        assert (after.labels["skipped"] == -1).all()


def test_an_evaluation_leaves_it_out(damaged):
    damaged.skip_corrupt = True
    batches = list(load.open_datasets(damaged)[CARD.name].evaluation_batches("train", patch_size=10, batch_size=4))
    valid = np.concatenate([batch.labels["valid"] for batch in batches])
    assert np.flatnonzero(~valid).tolist() == [DAMAGED, 7]


def test_a_batch_of_corrupt_tiles_alone_is_an_error_in_training(damaged):
    damaged.skip_corrupt = True
    damaged.datasets[CARD.name].batch_size = 1
    with pytest.raises(CorruptTileError, match=f"tile {DAMAGED} of split 'train'"):
        take_of_faults(damaged, 7)


def test_a_batch_of_corrupt_tiles_alone_is_left_out_of_an_evaluation(damaged):
    damaged.skip_corrupt = True
    batches = list(load.open_datasets(damaged)[CARD.name].evaluation_batches("train", patch_size=10, batch_size=1))
    tiles = [set(batch.labels["index"][batch.labels["valid"]].tolist()) for batch in batches]
    assert tiles == [set() if tile == DAMAGED else {tile} for tile in range(7)]
    empty = batches[DAMAGED]
    assert empty.labels["skipped"].tolist() == [DAMAGED]
    assert all(not observation.values.any() for observation in empty.observations.values())


def test_a_repetition_at_the_end_is_not_counted_as_left_out(config):
    config.skip_corrupt = True
    path = shard(config)
    content = bytearray(path.read_bytes())
    content[content.find(b"train6") + 100] ^= 1
    path.write_bytes(content)
    batches = list(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=10, batch_size=4))
    skipped = np.concatenate([batch.labels["skipped"] for batch in batches])
    assert skipped.tolist() == [-1] * 6 + [6, -1]


def test_a_missing_shard_is_refused_at_the_start(config):
    path = shard(config)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {path}: 1 of the dataset's \d+ files are missing"):
        load.train_iterator(load.open_datasets(config), seed=0)


def test_a_shard_that_vanishes_is_no_corrupt_record(config):
    config.skip_corrupt = True
    iterator = load.train_iterator(load.open_datasets(config), seed=0)
    shard(config).unlink()
    with pytest.raises(UnreadableTileError, match=rf"cannot be read .*No such file.*{CARD.name}-train"):
        next(iterator)


def test_a_worker_process_that_dies_is_replaced_and_no_batch_is_lost(config):
    straight = [batch.labels["index"].tolist() for batch in take_of_faults(config, 12)]
    iterator = load.train_iterator(load.open_datasets(config), seed=0, num_workers=1)
    found = [next(iterator).labels["index"].tolist()]
    kill_workers()
    found += [next(iterator).labels["index"].tolist() for _ in range(11)]
    iterator.close()
    assert found == straight


def test_workers_that_keep_dying_end_it_in_one_sentence(config, monkeypatch):
    iterator = load.train_iterator(load.open_datasets(config), seed=0)
    died = RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs")

    def broken():
        raise died
        yield

    monkeypatch.setattr(iterator, "_start", broken)
    with pytest.raises(WorkerDiedError, match="before the batch of step 1 .* killed by SIGKILL; perhaps .* memory"):
        next(iterator)
    assert iterator.get_state() == {"next_step": 0}


def kill_workers():
    workers = [one for one in multiprocessing.active_children() if "grain" in one.name]
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
