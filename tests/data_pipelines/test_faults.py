"""What goes wrong while data are read: records that are damaged, shards that are gone, workers that die."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from data_pipelines import load, registry
from data_pipelines.batches import HostShard
from data_pipelines.prepare.records import CorruptTileError, UnreadableTileError
from data_pipelines.prepare.shards import WorkerDiedError
from tests.data_pipelines.fake_reader import CARD, data_config, fake_entry

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


def take(config, count, shard=None):
    iterator = load.train_iterator(load.open_datasets(config), seed=0, **({"shard": shard} if shard else {}))
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def test_a_corrupt_record_is_named(damaged):
    with pytest.raises(CorruptTileError, match=rf"'fake_tiles': tile {DAMAGED} of split 'train' cannot be read"):
        take(damaged, 7)


def test_a_corrupt_record_is_skipped_if_asked_and_told_of(config, damaged):
    damaged.skip_corrupt = True
    found = take(damaged, 7)  # four epochs of seven tiles
    skipped = np.concatenate([batch.labels["skipped"] for batch in found])
    tiles = np.concatenate([batch.labels["index"] for batch in found])
    assert (skipped == DAMAGED).sum() == 4 and set(skipped) == {-1, DAMAGED}
    assert DAMAGED not in tiles
    for batch in found:
        for tile in batch.labels["index"][batch.labels["skipped"] >= 0]:
            assert (batch.labels["index"] == tile).sum() > 1  # another of the batch stands in


def test_processes_agree_on_what_stands_in(damaged):
    damaged.skip_corrupt = True
    whole = take(damaged, 7)
    parts = [take(damaged, 7, HostShard((part,), 2)) for part in range(2)]
    for number, batch in enumerate(whole):
        together = np.concatenate([part[number].labels["index"] for part in parts])
        assert together.tolist() == batch.labels["index"].tolist()


def test_where_nothing_is_corrupt_skipping_changes_nothing(config):
    plain = take(config, 3)
    config.skip_corrupt = True
    for before, after in zip(plain, take(config, 3), strict=True):
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
        take(damaged, 7)


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
    straight = [batch.labels["index"].tolist() for batch in take(config, 12)]
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
