"""Batches and patch masks on their way to the devices, one step ahead of the computation."""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.batch import Batch
from anysat_jax.pretrain.masks import MaskConfig, PatchMasks, sample_patch_masks
from anysat_jax.train.mesh import put_batch, put_masks


@dataclasses.dataclass(frozen=True)
class Fed:
    """What one step needs.

    Attributes:
      batch, masks: on the devices, for all processes together.
      position: where the data stand once this batch was used, for the checkpoint after the step.
    """

    batch: Batch
    masks: PatchMasks
    position: dict[str, Any]

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
        self._masks = MaskConfig.from_section(config.pretrain)
        if position is not None:
            batches.set_state(position)

    def next(self) -> Fed:
        """The next step's batch and masks; the copy to the devices goes on while the caller computes."""
        local = next(self._batches).replace(labels={})  # labels are for the probe; pretraining sees none
        batch = put_batch(local, self._mesh)
        rng = np.random.default_rng((self._seed, self._step))
        masks = sample_patch_masks(rng, batch.grid, batch.batch_size, self._masks)
        self._step += 1
        return Fed(batch, put_masks(masks, self._mesh), self._batches.get_state())

    def close(self) -> None:
        self._batches.close()
