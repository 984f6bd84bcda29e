"""Batches with the labels of a task on their way to the devices, one step ahead of the computation."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from anysat_jax.train.feed import next_batch
from anysat_jax.train.mesh import put_batch, replicated
from anysat_jax.train.share import put_whole


@dataclasses.dataclass(frozen=True)
class FitFed:
    """What one step needs.

    Attributes:
      batch: on the devices, for all processes together.
      seed: on the devices.
      position: where the data stand once this batch was used, for the checkpoint after the step.
    """

    batch: Any
    seed: jax.Array
    position: dict[str, Any]

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the step takes after the state and the frozen parameters."""
        return self.batch, self.seed


class FitFeed:
    """Gives what each step needs, in the order of the data's iterator."""

    def __init__(self, batches: Any, level: str, seed: int, mesh: Mesh, position: dict[str, Any] | None):
        """Starts at a position of the data.

        Args:
          batches: the data's iterator, see `anysat_jax.tuning.fit.Batches`.
          level: of the labels that the task asks for; of the others only "index" and "valid" travel.
          seed: of everything that drops in training.
          mesh: where the batches go.
          position: the iterator's state in the checkpoint; None starts at its beginning.
        """
        self._batches, self._mesh, self._labels = batches, mesh, (level, "index", "valid")
        self._seed = put_whole(np.uint32(seed), replicated(mesh))
        if position is not None:
            batches.set_state(position)

    def next(self) -> FitFed:
        """The next step's batch; the copy to the devices goes on while the caller computes.

        Raises:
          DataError: a tile cannot be read, or a worker process died.
        """
        batch = next_batch(self._batches)
        labels = {name: _narrow(batch.labels[name]) for name in self._labels if name in batch.labels}
        return FitFed(put_batch(batch.replace(labels=labels), self._mesh), self._seed, self._batches.get_state())

    def close(self) -> None:
        self._batches.close()


def _narrow(labels: np.ndarray) -> np.ndarray:
    """Labels in the dtype that they have on the devices, so that no program depends on how a dataset stores them."""
    return np.asarray(labels, jax.dtypes.canonicalize_dtype(labels.dtype))
