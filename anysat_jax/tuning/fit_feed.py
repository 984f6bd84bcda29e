"""Batches with the labels of a task on their way to the devices, one step ahead of the computation."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from anysat_jax.train.feed import next_batch, tell_skipped
from anysat_jax.train.mesh import put_batch, replicated
from anysat_jax.train.share import put_whole


@dataclasses.dataclass(frozen=True)
class FitFed:
    """What one step needs.

    Attributes:
      batch: on the devices, for all processes together.
      seed: on the devices.
      position: where the data stand once this batch was used, for the checkpoint after the step.
      skipped: how many of this process' samples stand for tiles that could not be read.
      waited: seconds that the host waited for the batch.
    """

    batch: Any
    seed: jax.Array
    position: dict[str, Any]
    skipped: int = 0
    waited: float = 0.0

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the step takes after the state and the frozen parameters."""
        return self.batch, self.seed


class FitFeed:
    """Gives what each step needs, in the order of the data's iterator."""

    def __init__(self, batches: Any, level: str, seed: int, mesh: Mesh, position: dict[str, Any] | None, step: int = 0):
        """Starts at a position of the data.

        Args:
          batches: the data's iterator, see `anysat_jax.tuning.fit.Batches`.
          level: of the labels that the task asks for; of the others only "index" and "valid" travel.
          seed: of everything that drops in training.
          mesh: where the batches go.
          position: the iterator's state in the checkpoint; None starts at its beginning.
          step: how many updates were made there, for what is said of tiles that cannot be read.
        """
        self._batches, self._mesh, self._labels = batches, mesh, (level, "index", "valid")
        self._step = step
        self._seed = put_whole(np.uint32(seed), replicated(mesh))
        if position is not None:
            batches.set_state(position)

    def next(self) -> FitFed:
        """The next step's batch; the copy to the devices goes on while the caller computes.

        Raises:
          DataError: a tile cannot be read, or a worker process died.
        """
        began = time.monotonic()
        batch = next_batch(self._batches)
        waited = time.monotonic() - began
        self._step += 1
        skipped = tell_skipped(batch, self._step)
        labels = {name: _narrow(batch.labels[name]) for name in self._labels if name in batch.labels}
        position = self._batches.get_state()
        return FitFed(put_batch(batch.replace(labels=labels), self._mesh), self._seed, position, skipped, waited)

    def close(self) -> None:
        self._batches.close()


def _narrow(labels: np.ndarray) -> np.ndarray:
    """Labels in the dtype that they have on the devices, so that no program depends on how a dataset stores them."""
    return np.asarray(labels, jax.dtypes.canonicalize_dtype(labels.dtype))
