"""The predictor, from the student's context patches to vectors of the target patches, and the student around it."""

from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.batch import Batch
from anysat_jax.model.combiner import PatchTokens
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Embedded, Encoder, grid_sensors, is_context, stack_patches
from anysat_jax.model.layers import BlockStack, Linear, Norm, declare
from anysat_jax.model.positions import patch_positions
from anysat_jax.model.projectors import KeyProjection
from anysat_jax.sensors import Sensor, get_sensor

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


SEASONS = 4  # of a year, by which a series is summarised


def summary_size(sensor: Sensor) -> int:
    """Returns how many numbers summarise a sub-patch: two for each band of an image, of a series 1 + SEASONS."""
    return sensor.num_bands * (1 + SEASONS if sensor.has_dates else 2)


class Decoder(nn.Module):
    """Linear maps from normalised features to summaries of raw values, for each sensor with a patch grid."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, predicted: Float[Array, "k B m D"], context: Float[Array, "B 1+n D"], seen: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
        """Returns summaries by sensor, float32: of hidden patches (k, B, m, F), of sub-patches (B, n, s, F), and of the
        tile (B, 2 F).

        Args:
          predicted: of the target patches.
          context: the tile's vector, and those of the context patches.
          seen: (B, n, s, D) sub-patch features of the context patches of each sensor of the batch.
        """
        dim = self.config.dim
        # All sensors of the model declare their maps, whatever the batch has.
        maps = {
            (kind, name): KeyProjection(times * summary_size(get_sensor(name)), name=f"{kind}_{name}")(width)
            for kind, width, times in (("patch", dim, 1), ("subpatch", 2 * dim, 1), ("tile", dim, 2))
            for name in self.config.sensors
            if not is_context(name)
        }

        def decode(kind: str, name: str, features: Float[Array, "*n W"]) -> Float[Array, "*n F"]:
            # Of the length of a feature nothing can be read, as by the probes.
            kernel, bias = maps[kind, name]
            return normalise(features) @ kernel + bias.reshape((1,) * (features.ndim - 1) + (-1,))

        hidden = {name: decode("patch", name, predicted) for name in seen}
        tile = {name: decode("tile", name, context[:, 0]) for name in seen}
        dense = {}
        for name, features in seen.items():
            patch = jnp.broadcast_to(context[:, 1:, None], features.shape)
            dense[name] = decode("subpatch", name, jnp.concatenate([patch, features], axis=-1))
        return hidden, dense, tile


def normalise(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Returns LayerNorm without parameters, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)


@flax.struct.dataclass
class Decoded:
    """Outputs of a student with a decoder: all patches' vectors, and summaries of raw values by sensor."""

    whole: Float[Array, "B N D"]  # without gradient
    hidden: dict[str, Float[Array, "k B m F"]]
    seen: dict[str, Float[Array, "B n s F"]]
    tile: dict[str, Float[Array, "B 2*F"]]


@flax.struct.dataclass
class StudentOutput:
    """Output of the student, from which the losses are computed."""

    embedded: Embedded  # each sensor's patches and sub-patches, before any masking of patches
    # (B, 1 + n, D), the combiner's output on the context patches, the tile's vector first.
    context: Float[Array, "B 1+n D"]
    predicted: Float[Array, "k B m D"]  # (k, B, m, D), the prediction of the teacher's target patches
    decoded: Decoded | None = None  # of a student with a decoder


class Student(nn.Module):
    """Encoder, predictor, mask token, and a decoder where the config has one.

    The teacher is one more parameter tree of the same encoder.
    """

    config: ModelConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.predictor = Predictor(self.config)
        self.mask_token = declare(self, "mask_token", self.config.dim)
        if self.config.decoder:
            self.decoder = Decoder(self.config)

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
        dense = grid_sensors(batch) if self.config.decoder else ()
        embedded = self.encoder.embed(batch, deterministic, dense=dense)
        tokens = whole = stack_patches(batch, embedded.patches)
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
        decoded = self._decode(embedded, whole, context, context_index, predicted) if self.config.decoder else None
        return StudentOutput(embedded, context, predicted, decoded)

    def _decode(
        self,
        embedded: Embedded,
        whole: PatchTokens,
        context: Float[Array, "B 1+n D"],
        context_index: Int[Array, "B n"],
        predicted: Float[Array, "k B m D"],
    ) -> Decoded:
        seen = {
            name: jnp.take_along_axis(features, context_index[:, :, None, None], axis=1)
            for name, features in embedded.subpatches.items()
            if not is_context(name)
        }
        # Of whole tiles, for the measures of health: masked contexts have other patches in each tile.
        patches = jax.lax.stop_gradient(self.encoder.combine(whole)[:, 1:])
        return Decoded(patches, *self.decoder(predicted, context, seen))
