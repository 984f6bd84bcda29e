"""Features of a frozen encoder: the tile's vector and any number of dense maps from one forward pass."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Float

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, dense_features, stack_patches

Params = dict[str, Any]


@flax.struct.dataclass
class FrozenFeatures:
    """What the probes read.

    Attributes:
      tile: the tile's vector.
      dense: by sensor, [patch vector, sub-patch feature] of each of its sub-patches, as a map in raster order.
    """

    tile: Float[Array, "B D"]
    dense: dict[str, Float[Array, "B h w 2*D"]]


Extractor = Callable[[Params, Batch], FrozenFeatures]


def make_extractor(config: ModelConfig, dense_sensors: tuple[str, ...]) -> Extractor:
    """A compiled function of (encoder parameters, batch); one program for each dataset and patch size.

    Args:
      config: the model.
      dense_sensors: whose maps to give; sensors that a batch does not have are passed over.
    """

    def forward(encoder: Encoder, batch: Batch) -> FrozenFeatures:
        embedded = encoder.embed(batch)
        combined = encoder.combine(stack_patches(batch, embedded.patches))
        maps = {
            name: dense_features(combined[:, 1:], embedded.subpatches[name], batch.grid)
            for name in dense_sensors
            if name in batch.observations
        }
        return FrozenFeatures(tile=combined[:, 0], dense=maps)

    @jax.jit
    def extract(params: Params, batch: Batch) -> FrozenFeatures:
        return Encoder(config).apply({"params": params}, batch, method=forward)

    return lambda params, batch: extract(params, batch.replace(labels={}))
