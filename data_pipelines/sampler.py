"""Tiles of the k-th training batch: a function of (seed, k) alone, whatever the number of processes and threads.

So the whole state of the iterator is the number of batches that it gave. Order and augmentation follow a tile's place
in the endless sequence of all tiles; a process takes its rows afterwards.
"""

import dataclasses
import fractions
import functools
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Int32

from anysat_jax.batch import Batch
from data_pipelines.batches import WHOLE, HostShard, Pick
from data_pipelines.options import SMALLEST_WEIGHT, DatasetOptions
from data_pipelines.prepare.shards import WorkerDiedError, how_it_ended, without_interrupts


@dataclasses.dataclass(frozen=True)
class Schedule(grain.transforms.DatasetSelectionMap):
    """The dataset of each step.

    Steps come in blocks. Within a block every dataset has its exact number of `steps`; their order is shuffled in
    each block by (seed, block).
    """

    steps: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> tuple[int, int]:
        """Returns the number of the step's dataset, and the number of the batch among that dataset's own."""
        block, position = divmod(int(step), sum(self.steps))
        datasets, ranks = block_order(self.steps, self.seed, block)
        dataset = int(datasets[position])
        return dataset, block * self.steps[dataset] + int(ranks[position])


@functools.lru_cache(maxsize=8)
def block_order(steps: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the dataset of each step of a block, and the number of the step among that dataset's own in the block."""
    datasets = np.random.default_rng((seed, block)).permutation(np.repeat(np.arange(len(steps)), steps))
    ranks = np.empty_like(datasets)
    for dataset, count in enumerate(steps):
        ranks[datasets == dataset] = np.arange(count)
    return datasets, ranks


@dataclasses.dataclass(frozen=True)
class Stream:
    """One dataset's endless training batches by number; every tile comes once an epoch."""

    size: int  # tiles that training uses
    options: DatasetOptions  # the dataset's name, batch size and patch sizes
    # Makes a batch from (tile, generator) of this process, the tiles of all processes, and a patch size.
    make: Callable[[Sequence[Pick], Sequence[int], float], Batch]
    seed: int
    shard: HostShard = WHOLE
    positions: Int32[np.ndarray, "n"] | None = None  # of those tiles in the split; None: 0 to `size`

    def __call__(self, number: int) -> Batch:
        """Returns this process' rows of a batch; all processes agree on its patch size and shapes."""
        # The name is part of the seed, so that adding a dataset does not change the order of the others. crc32, as
        # Python's hash of a text differs between processes.
        salt = zlib.crc32(self.options.card.name.encode())
        order_seed, tile_seed, patch_seed = np.random.SeedSequence((self.seed, salt)).generate_state(3).tolist()
        places = range(number * self.options.batch_size, (number + 1) * self.options.batch_size)
        tiles = [int(epoch_order(self.size, order_seed, place // self.size)[place % self.size]) for place in places]
        if self.positions is not None:
            tiles = self.positions[tiles].tolist()
        own = self.shard.rows(self.options.batch_size)
        picks = [(tiles[row], np.random.default_rng((tile_seed, places[row]))) for row in own]
        sizes = self.options.patch_sizes
        patch_size = sizes[int(np.random.default_rng((patch_seed, number)).integers(len(sizes)))]
        return self.make(picks, tiles, patch_size)


@functools.lru_cache(maxsize=32)
def epoch_order(size: int, seed: int, epoch: int) -> Int32[np.ndarray, "N"]:
    """Returns the order of an epoch's tiles; the latest epochs are cached, four bytes a tile."""
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def mixture(streams: Sequence[Stream], seed: int) -> grain.MapDataset:
    """Returns the batches of all steps: the streams alternate by their weights."""
    endless = [grain.MapDataset.range(sys.maxsize).map(stream) for stream in streams]
    return grain.MapDataset.select_from_datasets(endless, schedule_of([stream.options for stream in streams], seed))


def schedule_of(options: Sequence[DatasetOptions], seed: int) -> Schedule:
    """Returns the schedule of datasets with these weights, as whole numbers of steps in a block."""
    # As a fraction 0.1 has a denominator of 2**55, and so many steps would be in a block.
    weights = [fractions.Fraction(one.weight).limit_denominator(round(1 / SMALLEST_WEIGHT)) for one in options]
    scale = math.lcm(*(weight.denominator for weight in weights))
    steps = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*steps)
    return Schedule(tuple(count // divisor for count in steps), seed)


class StepIterator:
    """Batches of the training steps, prepared ahead in threads or worker processes.

    Its state is one integer, whatever the number of threads, workers and processes; after the death of a worker process
    new ones continue at the same batch.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int = 0) -> None:
        """Takes the batches by step and the worker processes; 0: threads, which are enough unless decoding is heavy."""
        self._batches = batches
        self._num_workers = num_workers
        self._next_step = 0
        self._running: Any = None

    def __iter__(self) -> "StepIterator":
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          UnreadableTileError: a tile of it cannot be read.
          WorkerDiedError: a worker process died before it was made, and again after a restart.
        """
        try:
            batch = self._advance()
        except WorkerDiedError as error:
            # Once: a second death at the same batch is not an accident, but too little memory, say.
            logging.warning("%s; new ones are started", error)
            batch = self._advance()
        self._next_step += 1
        return batch

    def _advance(self) -> Batch:
        try:
            if self._running is None:
                self._running = iter(self._start())
                with without_interrupts():  # of the worker processes, which the first batch starts
                    return next(self._running)
            return next(self._running)
        except RuntimeError as error:
            # grain has no class for this error.
            if not (died := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))):
                raise
            self.close()
            raise WorkerDiedError(
                f"before the batch of step {self._next_step + 1} a worker process that reads the data "
                f"{how_it_ended(int(died[1]))} (data.num_workers is {self._num_workers}, and each takes its own)"
            ) from error

    def _start(self) -> grain.IterDataset:
        threads = min(8, os.cpu_count() or 1)
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
        dataset = self._batches[self._next_step :].to_iter_dataset(read)
        if self._num_workers:
            # Worker processes read absl's flags, which only `absl.app.run` parses.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2))
        return dataset

    def get_state(self) -> dict[str, int]:
        """Returns the position for a checkpoint: the number of batches given."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at the position of another iterator of the same config and seed.

        Raises:
          ValueError: it is not what `get_state` gives.
        """
        step = state.get("next_step") if isinstance(state, dict) else None
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"a data position is {{'next_step': n}} with n >= 0, not {state!r}")
        self.close()
        self._next_step = step

    def close(self) -> None:
        """Stops the threads or workers; the position is kept, and `next` starts them again."""
        if self._running is not None and hasattr(self._running, "close"):
            self._running.close()
        self._running = None
