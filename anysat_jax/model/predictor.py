"""The predictor: from the student's context patches to the teacher's vectors of the target patches."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Embedded, Encoder, stack_patches
from anysat_jax.model.layers import BlockStack, Linear, Norm, declare
from anysat_jax.model.positions import patch_positions

NORM_EPSILON = 1e-5


class Predictor(nn.Module):
    """[mask token + position for each target; class token; context + positions], blocks, norm, Linear."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "B n D"],
        context_index: Int[Array, "B n"],
        target_index: Int[Array, "k B m"],
        grid: tuple[int, int],
        patch_size: float,
        context_mask: Bool[Array, "B n"] | None = None,
        target_mask: Bool[Array, "m"] | None = None,
    ) -> Float[Array, "k B m D"]:
        """Predicts k blocks of m patches for each tile, each block by itself.

        Args:
          context_mask: True for real context patches, False for padding.
          target_mask: True for real target places, the same for all blocks.
        """
        config, dtype = self.config, self.config.compute_dtype
        blocks, batch, targets = target_index.shape
        dim = config.dim
        position = jnp.asarray(patch_positions(grid, patch_size, dim, config.positions), dtype)
        class_token, mask_token = (declare(self, name, dim) for name in ("class_token", "mask_token"))
        known = Linear(dim, dtype, name="embed")(context) + position[context_index]
        first = jnp.broadcast_to(class_token.astype(dtype), (batch, 1, dim))
        known = jnp.concatenate([first, known], axis=1)
        # A tile's blocks stay adjacent: a mesh shards the tiles, so none of them moves to another device.
        queries = mask_token.astype(dtype)[None, None, None] + position[jnp.swapaxes(target_index, 0, 1)]
        known = jnp.broadcast_to(known[:, None], (batch, blocks, *known.shape[1:]))
        x = jnp.concatenate([queries, known], axis=2).reshape(batch * blocks, -1, dim)
        key_mask = _key_mask(blocks, batch, x.shape[1] - targets, targets, context_mask, target_mask)
        stack = BlockStack(config, config.predictor_depth, config.predictor_heads, NORM_EPSILON, name="blocks")
        # Only the targets' tokens, the first, are predictions.
        x = Norm(NORM_EPSILON, dtype, name="norm")(stack(x, None, key_mask, outputs=targets))
        x = Linear(dim, dtype, name="out")(x).reshape(batch, blocks, targets, dim)
        return jnp.swapaxes(x, 0, 1)


def _key_mask(
    blocks: int,
    batch: int,
    known: int,
    targets: int,
    context_mask: Bool[Array, "B n"] | None,
    target_mask: Bool[Array, "m"] | None,
) -> Bool[Array, "B*k 1+n+m"] | None:
    """Returns True for [targets; class; context] that may be attended to; None for all."""
    if context_mask is None and target_mask is None:
        return None
    # The class token is always visible, so that no row of the softmax is empty.
    context = jnp.ones((batch, known - 1), bool) if context_mask is None else context_mask
    target = jnp.ones(targets, bool) if target_mask is None else target_mask
    rows = jnp.concatenate(
        [jnp.broadcast_to(target[None], (batch, targets)), jnp.ones((batch, 1), bool), context], axis=1
    )
    return jnp.repeat(rows, blocks, axis=0)


@flax.struct.dataclass
class StudentOutput:
    """Output of the student, from which the losses are computed."""

    embedded: Embedded  # each sensor's patches and sub-patches, before any masking of patches
    # (B, 1 + n, D), the combiner's output on the context patches, the tile's vector first.
    context: Float[Array, "B 1+n D"]
    predicted: Float[Array, "k B m D"]  # (k, B, m, D), the prediction of the teacher's target patches


class Student(nn.Module):
    """Encoder, predictor, mask token. The teacher is one more parameter tree of the same encoder."""

    config: ModelConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.predictor = Predictor(self.config)
        self.mask_token = declare(self, "mask_token", self.config.dim)

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
          context_index, target_index: indices on the patch grid, raster order; k target blocks.
          keep: True for the (sensor, context patch) tokens that stay; the others become the mask token. Sensors in
            sorted order, context sensors not counted. None keeps all.
          context_mask, target_mask: True for real places, False for padding.
        """
        # All patches are embedded, also those outside of the context: the contrastive loss needs them.
        embedded = self.encoder.embed(batch, deterministic)
        tokens = stack_patches(batch, embedded.patches)
        values = jnp.take_along_axis(tokens.values, context_index[:, None, :, None], axis=2)
        if keep is not None:
            values = jnp.where(keep[..., None], values, self.mask_token.astype(values.dtype)[None, None, None])
        mask = None if tokens.mask is None else jnp.take_along_axis(tokens.mask, context_index[:, None], axis=2)
        if context_mask is not None:
            real = jnp.broadcast_to(context_mask[:, None], values.shape[:3])
            mask = real if mask is None else mask & real
        unplaced = None if keep is None else ~keep
        tokens = tokens.replace(values=values, index=context_index, mask=mask, unplaced=unplaced)
        context = self.encoder.combine(tokens)
        predicted = self.predictor(
            context[:, 1:], context_index, target_index, batch.grid, batch.patch_size, context_mask, target_mask
        )
        return StudentOutput(embedded, context, predicted)
