"""Batches of frozen features, in the order in which the tiles themselves would have come."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence

import flax.struct
import grain
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from anysat_jax.train.mesh import put_batch
from anysat_jax.train.share import batch_share
from anysat_jax.tuning.feature_cache import Features
from data_pipelines.batches import Pick
from data_pipelines.options import DatasetOptions
from data_pipelines.sampler import StepIterator, Stream
from data_pipelines.share import Share


@flax.struct.dataclass
class FeatureBatch:
    """A batch of frozen features, as `Batch` is one of observations.

    Attributes:
      features: (B, F), or (B, h, w, F) for a dense task; float32 or bfloat16.
      labels: the task's level, and "index" (B,); in an evaluation "valid" (B,) too.
      dataset: the dataset's name. Static.
      patch_size: side of a patch in metres. Static.
    """

    features: Float[Array, "B *hw F"]
    labels: dict[str, Shaped[Array, "B ..."]]
    dataset: str = flax.struct.field(pytree_node=False, default="")
    patch_size: float = flax.struct.field(pytree_node=False, default=10.0)

    @property
    def batch_size(self) -> int:
        return len(self.features)


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Frozen features of a split at one or several patch sizes.

    Attributes:
      dataset: its name.
      level: the name of the labels.
      sizes: features by patch size in metres: the same samples in the same order.
    """

    dataset: str
    level: str
    sizes: Mapping[float, Features]

    def __len__(self) -> int:
        return len(next(iter(self.sizes.values())))

    def rows(self, rows: Int[np.ndarray, "B"], patch_size: float) -> FeatureBatch:
        """A batch of some samples."""
        one = self.sizes[patch_size]
        labels = {self.level: np.asarray(one.labels[rows]), "index": np.asarray(one.index[rows])}
        return FeatureBatch(np.asarray(one.features[rows]), labels, self.dataset, patch_size)

    def training(self, options: DatasetOptions, seed: int, share: Share) -> StepIterator:
        """This process' share of the endless training batches; their position is a number of batches.

        Args:
          options: batch size and patch sizes.
          seed: of order and patch sizes.
          share: the rows of this process.
        """

        def make(picks: Sequence[Pick], together: Sequence[int], patch_size: float) -> FeatureBatch:
            return self.rows(np.asarray([row for row, _ in picks]), patch_size)

        stream = Stream(len(self), options, make, seed, share)
        return StepIterator(grain.MapDataset.range(sys.maxsize).map(stream))

    def in_order(self, batch_size: int, mesh: Mesh) -> Iterator[list[FeatureBatch]]:
        """Every sample once, at each patch size, on the devices.

        The last batch is filled up with its last sample, where the label "valid" is False.

        Args:
          batch_size: of all processes; rounded up to a multiple of the mesh's devices.
          mesh: the devices.
        """
        size = -(-batch_size // mesh.size) * mesh.size
        for first in range(0, len(self), size):
            wanted = first + batch_share(mesh).rows(size)
            rows, valid = np.minimum(wanted, len(self) - 1), wanted < len(self)
            batches = [self.rows(rows, patch_size) for patch_size in self.sizes]
            yield [put_batch(one.replace(labels=one.labels | {"valid": valid}), mesh) for one in batches]
