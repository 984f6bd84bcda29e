"""Batches and patch masks on their way to the devices, one step ahead of the computation."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from anysat_jax.batch import Batch
from anysat_jax.errors import DataError
from anysat_jax.pretrain.masking import MaskConfig, PatchMasks, put_masks, sample_patch_masks
from anysat_jax.train.distributed import check_same
from anysat_jax.train.sharding import (
    put_batch,
)
from data_pipelines.load import OpenDataset
from data_pipelines.prepare.records import CorruptTileError, UnreadableTileError

INPUT = "input"
REMEDY = "; data.skip_corrupt = True would leave such tiles out"


@dataclasses.dataclass(frozen=True)
class Fed:
    """What one step needs.

    Attributes:
      batch, masks: on the devices, for all processes together.
      position: where the data stand once this batch was used, for the checkpoint after the step.
      tiles: positions in the training split of the tiles that this process read, a row of its part of the batch each.
      skipped: how many of them stand for tiles that could not be read.
      waited: seconds that the host waited for the batch.
    """

    batch: Batch
    masks: PatchMasks
    position: dict[str, Any]
    tiles: Int[np.ndarray, "b"] | None = None
    skipped: int = 0
    waited: float = 0.0

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the step takes after the state."""
        return self.batch, self.masks


class Feed:
    """Gives what each step needs, derived from (seed, step): a resumed run sees what the other would have seen."""

    def __init__(self, batches: Any, config: ConfigDict, mesh: Mesh, step: int, position: dict[str, Any] | None):
        """Starts before the batch of step `step`.

        Args:
          batches: the data's iterator, see `data_pipelines.load.train_iterator`.
          position: its state in the checkpoint; None starts at its beginning.
        """
        self._batches, self._mesh, self._seed, self._step = batches, mesh, config.seed, step
        self._masks = MaskConfig(
            **{field.name: config.pretrain[field.name] for field in dataclasses.fields(MaskConfig)}
        )
        if position is not None:
            batches.set_state(position)

    def next(self) -> Fed:
        """The next step's batch and masks; the copy to the devices goes on while the caller computes.

        Raises:
          DataError: a tile cannot be read, or a worker process died.
        """
        began = time.monotonic()
        local = next_batch(self._batches)
        waited = time.monotonic() - began
        batch = put_batch(local.replace(labels={}), self._mesh)  # labels are for the probe; pretraining sees none
        rng = np.random.default_rng((self._seed, self._step))
        masks = sample_patch_masks(rng, batch.grid, batch.batch_size, self._masks)
        self._step += 1
        skipped = tell_skipped(local, self._step)
        position = self._batches.get_state()
        return Fed(batch, put_masks(masks, self._mesh), position, local.labels.get("index"), skipped, waited)

    def close(self) -> None:
        self._batches.close()


def until_end(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of an iterator that ends, such as an evaluation's; raises as `next_batch`."""
    while True:
        try:
            batch = next_batch(batches)
        except StopIteration:
            return
        yield batch


def next_batch(batches: Any) -> Batch:
    """The next batch of the data's iterator; a profile shows the wait for it as `INPUT`.

    Raises:
      DataError: a tile cannot be read, or a worker process died; the message is that of the data.
    """
    try:
        with jax.profiler.TraceAnnotation(INPUT):
            return next(batches)
    except CorruptTileError as error:
        raise DataError(f"{error}{REMEDY}") from error
    except (UnreadableTileError, OSError) as error:  # each says what is wrong, in one sentence
        raise DataError(str(error)) from error


def tell_skipped(batch: Batch, step: int) -> int:
    """How many tiles of a batch could not be read and were replaced; warns of them by name."""
    skipped = batch.labels.get("skipped", np.empty(0, np.int32))
    tiles = skipped[skipped >= 0].tolist()
    if tiles:
        logging.warning(
            "step %d: tiles of %s cannot be read and are left out: %s", step, batch.dataset, ", ".join(map(str, tiles))
        )
    return len(tiles)


MOST = 10  # names in a message


def make_blame(datasets: Mapping[str, OpenDataset]) -> Callable[[Fed], str]:
    """What is said of the samples of a step: those with such values in what they show, else all of the batch.

    With several processes each one tells of its own part of the batch.
    """

    def blame(fed: Fed) -> str:
        if fed.tiles is None:
            return "the batch does not say which samples it holds"
        bad = bad_rows(fed.batch)
        chosen, what = (fed.tiles[bad], "samples with such values in them") if bad.any() else (fed.tiles, "its samples")
        return f"{what}: {names_of(datasets[fed.batch.dataset], chosen.tolist())}"

    return blame


def bad_rows(batch: Batch) -> Bool[np.ndarray, "b"]:
    """Rows of this process' part of a batch, on the devices, in which a sensor has a value that is not finite."""
    found: dict[int, bool] = {}
    for observation in batch.observations.values():
        for shard in observation.values.addressable_shards:
            values = np.asarray(shard.data)
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            first = shard.index[0].start or 0
            for row, is_bad in enumerate(bad.tolist(), first):
                found[row] = found.get(row, False) or is_bad
    return np.array([found[row] for row in sorted(found)])


def names_of(dataset: OpenDataset, tiles: Sequence[int]) -> str:
    """The first few tiles by name, where they can be read, else by their position in the training split."""
    shown = tiles[:MOST]
    try:
        names = dataset.tile_ids("train", shown)
    except (ValueError, OSError):
        names = [f"tile {tile}" for tile in shown]
    return ", ".join(names) + (f" and {len(tiles) - MOST} more" if len(tiles) > MOST else "")


def check_same_datasets(datasets: Mapping[str, OpenDataset]) -> None:
    """Checks that the datasets of all processes hold the same data.

    Raises:
      ConfigError: a dataset of a process is another one than that of the first process.
    """
    check_same(
        lambda: {f"dataset {name!r}": one.prepared.facts for name, one in datasets.items()},
        "give all hosts the same prepared data, best below one data.root that they share",
    )
