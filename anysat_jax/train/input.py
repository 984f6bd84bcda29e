"""Batches on their way to the devices, and the datasets that all processes of a run must share."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from anysat_jax.batch import Batch
from anysat_jax.errors import ConfigError, DataError, reason
from anysat_jax.train.distributed import agree, check_same
from anysat_jax.train.profiling import INPUT
from data_pipelines.card import DatasetCard
from data_pipelines.load import OpenDataset, open_datasets, read_options
from data_pipelines.prepare.records import CorruptTileError, UnreadableTileError

REMEDY = "; data.skip_corrupt = True would leave such tiles out"
MOST_NAMES = 10  # of samples in a message


@dataclasses.dataclass(frozen=True)
class StepInput:
    """Inputs of one step."""

    # Arguments of the step behind the state and the constants, on the devices; the batch is the first.
    inputs: tuple[Any, ...]
    position: dict[str, Any]  # of the data's iterator behind this batch, for the checkpoint after the step
    # Positions in the training split of the tiles of this process' rows; None where the batch has no such label.
    tiles: Int[np.ndarray, "b"] | None = None
    skipped: int = 0  # number of these rows that replace tiles that could not be read
    waited: float = 0.0  # seconds that the host waited for the batch

    @property
    def batch(self) -> Any:
        return self.inputs[0]


@dataclasses.dataclass(repr=False, eq=False)
class DeviceFeed:
    """Puts the inputs of each step on the devices; the copy continues while the caller computes."""

    batches: Any  # iterator of this process' batches, see `data_pipelines.load.train_iterator`
    # (batch, update) -> `StepInput.inputs`. What it draws must depend on these two and a seed alone, so that a resumed
    # run gets what an uninterrupted one gets.
    to_inputs: Callable[[Any, int], tuple[Any, ...]]
    _: dataclasses.KW_ONLY
    step: int = 0  # update of the next batch, from 0
    # The iterator's state in the checkpoint; None: its beginning.
    position: dataclasses.InitVar[dict[str, Any] | None] = None

    def __post_init__(self, position: dict[str, Any] | None) -> None:
        if position is not None:
            self.batches.set_state(position)

    def next(self) -> StepInput:
        """Returns the next step's inputs; raises as `next_batch`."""
        began = time.monotonic()
        local = next_batch(self.batches)
        waited = time.monotonic() - began
        inputs = self.to_inputs(local, self.step)
        self.step += 1
        places = local.labels.get("skipped", np.empty(0, np.int32))
        skipped = places[places >= 0].tolist()
        if skipped:
            text = "step %d: tiles of %s cannot be read and are left out: %s"
            logging.warning(text, self.step, local.dataset, ", ".join(map(str, skipped)))
        # The position is read here, not at the checkpoint: by then the iterator is ahead by the prefetched steps.
        return StepInput(inputs, self.batches.get_state(), local.labels.get("index"), len(skipped), waited)


def next_batch(batches: Any) -> Batch:
    """Returns the next batch of an iterator; a profile shows the time waiting for it as `INPUT`.

    Raises:
      DataError: a tile cannot be read, or a worker process died; with the message of the data.
    """
    try:
        with jax.profiler.TraceAnnotation(INPUT):
            return next(batches)
    except CorruptTileError as error:
        raise DataError(f"{error}{REMEDY}") from error
    except (UnreadableTileError, OSError) as error:  # its message is one sentence, for the user
        raise DataError(str(error)) from error


def until_end(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields the batches of an iterator that ends, such as an evaluation's; raises as `next_batch`."""
    while True:
        try:
            batch = next_batch(batches)
        except StopIteration:
            return
        yield batch


def describe_bad_samples(inputs: StepInput, tile_ids: Callable[[Sequence[int]], list[str]]) -> str:
    """Names the samples of this process with values that are not finite, or all of them if none has any.

    `tile_ids` returns names of training tiles by position; it raises ValueError or OSError where they cannot be read.
    """
    if inputs.tiles is None:
        return "its samples are unknown: the batch has no label 'index'"
    bad = bad_rows(inputs.batch)
    if bad.any():
        return f"samples with such values in them: {name_samples(inputs.tiles[bad].tolist(), tile_ids)}"
    return f"its samples: {name_samples(inputs.tiles.tolist(), tile_ids)}"


def bad_rows(batch: Batch) -> Bool[np.ndarray, "b"]:
    """Returns True for each row of this process' part of a batch in which a sensor has a value that is not finite."""
    found: dict[int, bool] = collections.defaultdict(bool)
    for observation in batch.observations.values():
        # Only what is on this process' devices can be read; several of them may hold the same rows.
        for shard in observation.values.addressable_shards:
            values = np.asarray(shard.data)
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            for row, is_bad in enumerate(bad.tolist(), shard.index[0].start or 0):
                found[row] |= is_bad
    return np.array([found[row] for row in sorted(found)])


def name_samples(tiles: Sequence[int], tile_ids: Callable[[Sequence[int]], list[str]]) -> str:
    """Returns the names of the first few tiles, or their positions where the names cannot be read."""
    shown = tiles[:MOST_NAMES]
    try:
        names = tile_ids(shown)
    except (ValueError, OSError):  # the message of a run that ends must not be lost to a second error
        names = [f"tile {tile}" for tile in shown]
    return ", ".join(names) + (f" and {len(tiles) - MOST_NAMES} more" if len(tiles) > MOST_NAMES else "")


def open_same_datasets(section: Any, check: Callable[[list[DatasetCard]], Any]) -> dict[str, OpenDataset]:
    """Opens the datasets of a config's section `data` in every process; those of all processes must be the same.

    `check` is called with their cards before anything is prepared.

    Raises:
      ConfigError: a dataset is unknown, missing or unreadable in a process, is another one than that of the first
        process, or does not pass `check`.
    """

    def open_here() -> dict[str, OpenDataset]:
        try:
            check([options.card for options in read_options(section).values()])
            return open_datasets(section)
        except (ValueError, OSError) as error:  # its message is one sentence, for the user
            raise ConfigError(reason(error)) from error

    datasets = agree(open_here)
    check_same_datasets(datasets)
    return datasets


def check_same_datasets(datasets: Mapping[str, OpenDataset]) -> None:
    """Checks that the datasets of all processes hold the same data; raises ConfigError if one does not."""
    check_same(
        lambda: {f"dataset {name!r}": one.prepared.facts for name, one in datasets.items()},
        "give all hosts the same prepared data, best below one data.root that they share",
    )
