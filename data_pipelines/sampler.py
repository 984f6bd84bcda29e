"""Which tiles make up the k-th batch: a function of (seed, k) alone, whatever the number of processes and threads.

Everything is a grain MapDataset, that is, a function of an index, so that the whole state of the iterator is how many
batches it gave. Shuffling and augmentation follow the global index and come before the slice of a process.
"""

import dataclasses
import functools
import math
import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from anysat_jax.batch import Batch
from data_pipelines.options import DatasetOptions
from data_pipelines.transforms import ExampleTransform, Sample, collate


class Schedule(grain.transforms.DatasetSelectionMap):
    """Which dataset serves a step.

    Steps come in blocks. Within a block every dataset has its exact share of the steps; their order is shuffled anew in
    each block by (seed, block).
    """

    def __init__(self, shares: Sequence[int], seed: int) -> None:
        """Args:
        shares: steps of each dataset in a block.
        seed: of the order.
        """
        self._shares = tuple(shares)
        self._seed = seed
        self._latest: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> tuple[int, int]:
        """The dataset's number and which of its own batches it is."""
        block, position = divmod(int(step), sum(self._shares))
        datasets, ranks = self._block(block)
        dataset = int(datasets[position])
        return dataset, block * self._shares[dataset] + int(ranks[position])

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        latest = self._latest  # read once: other threads replace it
        if latest is None or latest[0] != block:
            ordered = np.repeat(np.arange(len(self._shares)), self._shares)
            datasets = np.random.default_rng((self._seed, block)).permutation(ordered)
            ranks = np.empty_like(datasets)
            for dataset in range(len(self._shares)):
                chosen = datasets == dataset
                ranks[chosen] = np.arange(chosen.sum())
            latest = self._latest = (block, datasets, ranks)
        return latest[1], latest[2]


@dataclasses.dataclass(frozen=True)
class Indexed:
    """A source whose examples also say their position in the split, to find a tile again."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.source[index]


@dataclasses.dataclass(frozen=True)
class Augment(grain.transforms.RandomMap):
    """A stored example to a sample, drawn by a generator that belongs to the global index."""

    transform: ExampleTransform

    def random_map(self, element: tuple[int, Any], rng: np.random.Generator) -> Sample:
        return indexed_sample(self.transform, element, rng)


@dataclasses.dataclass(frozen=True)
class DrawPatchSize(grain.transforms.RandomMap):
    """Cuts a batch by one of the patch sizes. The generator belongs to the batch, so all processes draw the same."""

    sizes: tuple[float, ...]

    def random_map(self, element: Batch, rng: np.random.Generator) -> Batch:
        return element.replace(patch_size=self.sizes[int(rng.integers(len(self.sizes)))])


def indexed_sample(
    transform: ExampleTransform, element: tuple[int, Any], rng: np.random.Generator | None = None
) -> Sample:
    """Transforms what `Indexed` gives; the position goes to the label "index"."""
    index, example = element
    sample = transform(example, rng)
    return Sample(sample.observations, sample.labels | {"index": np.asarray(index, np.int32)})


def batches_of(
    source: Any,
    options: DatasetOptions,
    transform: ExampleTransform,
    *,
    seed: int,
    process_index: int,
    process_count: int,
) -> grain.MapDataset:
    """This process' share of one dataset's endless batches; every example comes once an epoch."""
    name = options.card.name
    salt = zlib.crc32(name.encode())  # of its own, so that adding a dataset leaves the order of the others
    shuffle_seed, patch_seed = np.random.SeedSequence((seed, salt)).generate_state(2).tolist()
    dataset = grain.MapDataset.source(Indexed(source)).seed(shuffle_seed).shuffle().repeat()
    dataset = dataset.random_map(Augment(transform))[process_index::process_count]
    collated = functools.partial(collate, dataset=name, patch_size=options.patch_sizes[0])
    dataset = dataset.batch(options.batch_size // process_count, drop_remainder=True, batch_fn=collated)
    return dataset.seed(patch_seed).random_map(DrawPatchSize(options.patch_sizes))


def schedule_of(options: Sequence[DatasetOptions], seed: int) -> Schedule:
    """The weights as whole numbers of steps in a block."""
    scale = math.lcm(*(one.weight.denominator for one in options))
    shares = [int(one.weight * scale) for one in options]
    divisor = math.gcd(*shares)
    return Schedule([share // divisor for share in shares], seed)


class StepIterator:
    """Batches of the training steps, prepared ahead in threads or worker processes.

    Its state is one integer, which fits any number of threads, workers and processes.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int = 0) -> None:
        """Args:
        batches: the k-th element is the k-th step's batch.
        num_workers: worker processes; 0 for threads, which are enough unless decoding is heavy.
        """
        self._batches = batches
        self._num_workers = num_workers
        self._next_step = 0
        self._running: Any = None

    def __iter__(self) -> "StepIterator":
        return self

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = iter(self._start())
        batch = next(self._running)
        self._next_step += 1
        return batch

    def _start(self) -> grain.IterDataset:
        threads = min(8, os.cpu_count() or 1)
        remaining = self._batches[self._next_step :]
        dataset = remaining.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
        )
        if self._num_workers:
            _mark_flags_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2))
        return dataset

    def get_state(self) -> dict[str, int]:
        """Where it stands, for a checkpoint: how many batches it gave."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where another iterator of the same config and seed stood.

        Raises:
          ValueError: it is not what `get_state` gives.
        """
        step = state.get("next_step") if isinstance(state, dict) else None
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"a data position is {{'next_step': n}} with n >= 0, not {state!r}")
        self.close()
        self._next_step = step

    def close(self) -> None:
        """Stops the threads or workers; the position stays, and `next` starts them again."""
        if self._running is not None and hasattr(self._running, "close"):
            self._running.close()
        self._running = None


def _mark_flags_as_parsed() -> None:
    """Worker processes read absl's flags, which only `absl.app.run` parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
