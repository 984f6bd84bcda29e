"""The student of pretraining: encoder, predictor and the token for masked sensors, in one parameter tree."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Embedded, Encoder, stack_patches
from anysat_jax.model.predictor import Predictor


@flax.struct.dataclass
class StudentOutput:
    """What the losses need, and what parity looks at.

    Attributes:
      embedded: each sensor's patches and sub-patches, before any masking of patches.
      context: (B, 1 + n, D), the combiner's output on the context patches, the tile's vector first.
      predicted: (k, B, m, D), the predictor's guess of the teacher's target patches.
    """

    embedded: Embedded
    context: Float[Array, "B 1+n D"]
    predicted: Float[Array, "k B m D"]


class Student(nn.Module):
    """Encoder, predictor, mask token. The teacher is one more parameter tree of the same encoder."""

    config: ModelConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.predictor = Predictor(self.config)
        self.mask_token = self.param("mask_token", nn.initializers.truncated_normal(0.02), (self.config.dim,))

    def __call__(
        self,
        batch: Batch,
        context_index: Int[Array, "B n"],
        target_index: Int[Array, "k B m"],
        keep: Bool[Array, "B M n"] | None = None,
        context_mask: Bool[Array, "B n"] | None = None,
        target_mask: Bool[Array, "m"] | None = None,
        deterministic: bool = False,
    ) -> StudentOutput:
        """Encodes the context patches of (date-masked) tiles and predicts the target patches.

        Args:
          context_index, target_index: places on the patch grid, raster order; k target blocks.
          keep: True for the (sensor, context patch) tokens that stay; the others become the mask token. Sensors in
            sorted order, context sensors not counted. None keeps all.
          context_mask, target_mask: True for real places, False for padding.
        """
        embedded = self.encoder.embed(batch, deterministic)
        tokens = stack_patches(batch, embedded.patches)
        values = jnp.take_along_axis(tokens.values, context_index[:, None, :, None], axis=2)
        if keep is not None:
            values = jnp.where(keep[..., None], values, self.mask_token.astype(values.dtype)[None, None, None])
        mask = None if tokens.mask is None else tokens.mask[:, :, : context_index.shape[1]]
        if context_mask is not None:
            real = jnp.broadcast_to(context_mask[:, None], values.shape[:3])
            mask = real if mask is None else mask & real
        unplaced = None if keep is None else ~keep  # the mask token replaces a patch's embedding and its position
        tokens = tokens.replace(values=values, index=context_index, mask=mask, unplaced=unplaced)
        context = self.encoder.combine(tokens)
        predicted = self.predictor(
            context[:, 1:], context_index, target_index, batch.grid, batch.patch_size, context_mask, target_mask
        )
        return StudentOutput(embedded, context, predicted)
