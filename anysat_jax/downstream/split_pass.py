"""One pass over a split, batch by batch: shared by evaluations and by the extraction of features."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from tqdm import tqdm

from anysat_jax.batch import Batch
from anysat_jax.train.compile import Compiled
from anysat_jax.train.input import until_end
from anysat_jax.train.metrics_log import QUIET_SECONDS
from anysat_jax.train.sharding import host_shard
from anysat_jax.train.status import JobStatus
from data_pipelines.load import OpenDataset


def pass_over_split(
    batches: Iterator[Batch],
    program: Compiled,
    compute: Callable[[Batch], Any],
    count_samples: Callable[[Any], int],
    status: JobStatus,
    *,
    state: str,
    dataset: OpenDataset,
    title: str,
    total: int,
    leave: bool = True,
) -> Iterator[tuple[Batch, Any]]:
    """Yields each batch with its outputs, under a progress bar, the job's status and a watchdog.

    The devices compute the next batch while the caller uses the last one.

    Args:
      batches: of this process, see `split_batches`.
      program: is called by `compute`; while it compiles, the watchdog waits.
      compute: outputs of a batch.
      count_samples: number of samples in the outputs, over all processes, without padding.
      status: of the job.
      state: "evaluating" or "extracting".
      dataset: whose title the bar shows.
      title: of the pass, such as "val".
      total: samples of the split.
      leave: whether the finished bar stays.
    """
    look = dict(mininterval=0.5 if sys.stderr.isatty() else QUIET_SECONDS, dynamic_ncols=True, leave=leave)
    hidden = jax.process_index() != 0
    with (
        tqdm(total=total, desc=f"{dataset.card.title}: {title}", unit="tile", disable=hidden, **look) as bar,
        status.over_split(state, title, total, program) as progress,
    ):
        for batch, outputs in one_ahead(progress.timed(batches), compute):
            samples = count_samples(outputs)
            bar.update(samples)
            progress.done(samples)
            yield batch, outputs


def split_batches(
    dataset: OpenDataset,
    split: str,
    patch_sizes: Sequence[float],
    batch_size: int,
    mesh: Mesh,
    tiles: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Returns this process' part of a split's batches, cut by the first of the patch sizes.

    Args:
      dataset: with the split.
      split: name of the split.
      patch_sizes: in metres; every one is checked.
      batch_size: samples over all processes; rounded up to a multiple of the mesh's devices.
      mesh: the devices.
      tiles: positions of the tiles to take; None: all.

    Raises:
      ValueError: at once: the split is unknown, or a patch size does not fit.
      DataError: by the iterator: a tile cannot be read.
    """
    for size in patch_sizes:
        dataset.options.check_patch_size(size)
    batches = dataset.evaluation_batches(
        split,
        patch_size=patch_sizes[0],
        batch_size=whole_batch(batch_size, mesh),
        shard=host_shard(mesh),
        tiles=tiles,
    )
    return until_end(batches)


def whole_batch(batch_size: int, mesh: Mesh) -> int:
    """Returns a batch size rounded up to a multiple of the mesh's devices."""
    return -(-batch_size // mesh.size) * mesh.size


def skipped_tiles(skipped: Int[Array, "B"] | None) -> list[int]:
    """Returns the tiles of the samples that were left out, from a batch's label "skipped"; None: none ever are."""
    if skipped is None:
        return []
    tiles = np.asarray(skipped)
    return tiles[tiles >= 0].tolist()


def one_ahead(items: Iterator[Any], compute: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Yields each item with its outputs, one item behind, so that the next is computing meanwhile."""
    pending: list[tuple[Any, Any]] = []
    for item in items:
        pending.append((item, compute(item)))
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending
