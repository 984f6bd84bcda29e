"""One pass over a split, batch by batch: shared by evaluations and by the extraction of features."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from tqdm import tqdm

from anysat_jax.batch import Batch
from anysat_jax.downstream.data import Data
from anysat_jax.downstream.network import Params
from anysat_jax.train.compile import Compiled
from anysat_jax.train.input import until_end
from anysat_jax.train.metrics_log import QUIET_SECONDS
from anysat_jax.train.sharding import host_shard, put_batch
from anysat_jax.train.status import JobStatus


def pass_over_split(
    data: Data,
    split: str,
    patch_sizes: Sequence[float],
    program: Compiled,
    params: Params,
    prepare: Callable[[Batch], Batch],
    count_samples: Callable[[Any], int],
    status: JobStatus,
    state: str,
    title: str,
    *,
    tiles: Sequence[int] | None = None,
    leave: bool = True,
) -> Iterator[tuple[Batch, Any]]:
    """Yields each batch of a split with its outputs, under a progress bar, the job's status and a watchdog.

    Args:
      data, split, patch_sizes, tiles: see `split_batches`, which also has the errors.
      program: (params on the mesh, batch) -> outputs.
      prepare: returns what is copied to the devices of a batch.
      count_samples: number of samples in the outputs, over all processes, without padding.
      state: of the job meanwhile, "evaluating" or "extracting".
      leave: whether the finished bar stays.
    """
    batches, total = split_batches(data, split, patch_sizes, tiles), data.dataset.num_samples(split, tiles)
    # In a log file each update of the bar is a line.
    every = 0.5 if sys.stderr.isatty() else QUIET_SECONDS
    look = dict(mininterval=every, dynamic_ncols=True, leave=leave, disable=jax.process_index() != 0)
    with (
        tqdm(total=total, desc=f"{data.dataset.card.title}: {title}", unit="tile", **look) as bar,
        status.over_split(state, title, total, program) as progress,
    ):
        computed = ((batch, program(params, put_batch(prepare(batch), data.mesh))) for batch in progress.timed(batches))
        # In pairs, so that the devices compute the next batch while the caller uses this one.
        for (batch, outputs), _ in itertools.pairwise(itertools.chain(computed, (None,))):
            samples = count_samples(outputs)
            bar.update(samples)
            progress.done(samples)
            yield batch, outputs


def split_batches(
    data: Data, split: str, patch_sizes: Sequence[float], tiles: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Returns this process' part of a split's batches, cut by the first of the patch sizes.

    Args:
      data: with the split; `evaluate.batch_size` is rounded up to a multiple of the mesh's devices.
      patch_sizes: in metres; every one is checked.
      tiles: positions of the tiles to take; None: all.

    Raises:
      ValueError: at once: the split is unknown, or a patch size does not fit.
      DataError: by the iterator: a tile cannot be read.
    """
    # Before the first batch, which is cut by one of the sizes only.
    for size in patch_sizes:
        data.dataset.options.check_patch_size(size)
    batches = data.dataset.evaluation_batches(
        split,
        patch_size=patch_sizes[0],
        batch_size=whole_batch(data.config.evaluate.batch_size, data.mesh),
        shard=host_shard(data.mesh),
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
