"""The modality combiner: merges the sensors' patch embeddings into one vector for each patch, and one for the tile."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.layers import COLUMNS, ROWS, BlockStack, Linear, Mlp, Norm, attend, declare, relative_term
from anysat_jax.model.positions import CLASS_BUCKET, NUM_BUCKETS, patch_buckets, patch_positions

NORM_EPSILON = 1e-6


@flax.struct.dataclass
class PatchTokens:
    """Input of the combiner: M sensors' tokens of the same K patches."""

    values: Float[Array, "B M K D"]
    # (B, K) int, each patch's index on the grid, raster order; None where K is the whole grid, in order.
    index: Int[Array, "B K"] | None = None
    mask: Bool[Array, "B M K"] | None = None  # (B, M, K) bool, True for tokens that take part; None for all
    # (B, M, K) bool, True for tokens that get no position: those that the mask token replaces; None for none.
    unplaced: Bool[Array, "B M K"] | None = None
    # (B, 1, D), a token of the whole tile without a position (MODIS; paper: supplement C); None for none.
    context: Float[Array, "B 1 D"] | None = None
    context_mask: Bool[Array, "B"] | None = None  # (B,) bool, True where the tile has its context token; None for all
    # Patches along rows and columns of the tile.
    grid: tuple[int, int] = flax.struct.field(pytree_node=False, default=(1, 1))
    patch_size: float = flax.struct.field(pytree_node=False, default=10.0)  # side of a patch in metres

    @property
    def num_leading(self) -> int:
        """Tokens before the patches': the class token, and the context token if any."""
        return 1 if self.context is None else 2

    def positions(self, config: ModelConfig) -> Float[Array, "b K D"]:
        """Returns position codes of the K patches; b is 1 where all samples have the same patches."""
        table = jnp.asarray(patch_positions(self.grid, self.patch_size, config.dim, config.positions))
        return table[None] if self.index is None else table[self.index]

    def buckets(self) -> Int[Array, "b 1+K L+M*K"]:
        """Returns distance buckets of [class; patches] against [class; context; sensors' patches]."""
        table = jnp.asarray(patch_buckets(self.grid))
        inner = table[None] if self.index is None else table[self.index[:, :, None], self.index[:, None, :]]
        # Patches of all sensors at one place have the same distances.
        inner = jnp.tile(inner, (1, 1, self.values.shape[1]))
        return jnp.pad(inner, ((0, 0), (1, 0), (self.num_leading, 0)), constant_values=CLASS_BUCKET)

    def key_mask(self) -> Bool[Array, "B L+M*K"] | None:
        """Returns True for [class; context; sensors' patches] that may be attended to; None for all."""
        if self.mask is None and self.context_mask is None:
            return None
        batch, sensors, count, _ = self.values.shape
        leading = jnp.ones((batch, self.num_leading), bool)
        if self.context_mask is not None:
            leading = leading.at[:, 1].set(self.context_mask)
        mask = jnp.ones((batch, sensors, count), bool) if self.mask is None else self.mask
        return jnp.concatenate([leading, mask.reshape(batch, sensors * count)], axis=1)


class CrossAttention(nn.Module):
    """Cross-attention of learned queries, one a patch and one for the tile, to all tokens; no residual around it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L+M*K D"], tokens: PatchTokens) -> Float[Array, "B 1+K D"]:
        config, dtype = self.config, self.config.compute_dtype
        normed = Norm(NORM_EPSILON, dtype, name="norm_attention")(x)
        key = self._heads(Linear(config.dim, dtype, COLUMNS, name="key")(normed))
        value = self._heads(Linear(config.dim, dtype, COLUMNS, name="value")(normed))
        # The tile's query, the first, has no position.
        position = jnp.pad(tokens.positions(config), ((0, 0), (1, 0), (0, 0)))
        query = self._heads((declare(self, "query", config.dim)[None, None] + position).astype(dtype))
        table = declare(self, "relative", config.head_dim, NUM_BUCKETS)
        # The query is not scaled here, unlike in the blocks, as in the training of the published weights.
        bias = relative_term(query[:, :, 0], table, tokens.buckets())
        # Whole grids share queries and buckets; the attention wants them for each sample.
        batch = x.shape[0]
        query = jnp.broadcast_to(query, (batch, *query.shape[1:]))
        bias = jnp.broadcast_to(bias, (batch, *bias.shape[1:]))
        out = attend(query, key, value, bias, tokens.key_mask())
        # The queries are the same for every tile, so a residual around the attention would add nothing of the tile.
        out = Linear(config.dim, dtype, ROWS, name="out")(out)
        normed = Norm(NORM_EPSILON, dtype, name="norm_mlp")(out)
        return out + Mlp(config.mlp_ratio * config.dim, dtype, name="mlp")(normed)

    def _heads(self, x: Float[Array, "B N D"]) -> Float[Array, "B N H d"]:
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)


class Combiner(nn.Module):
    """Self-attention blocks over [class; context; all sensors' patches + positions], then one cross-attention block
    (paper: phi^comb). No final norm.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: PatchTokens, drop_path: Float[np.ndarray, "depth"] | None = None
    ) -> Float[Array, "B 1+K D"]:
        """Returns the tile's vector, then one for each patch.

        Args:
          drop_path: rate at which each self-attention block is dropped, tile by tile; needs an rng "dropout". None for
            never. The cross-attention block has no residual around its attention, so it always stays.
        """
        config, dtype = self.config, self.config.compute_dtype
        batch, sensors, count, dim = tokens.values.shape
        class_token = declare(self, "class_token", dim)
        parts = [jnp.broadcast_to(class_token.astype(dtype), (batch, 1, dim))]
        if tokens.context is not None:
            parts.append(tokens.context.astype(dtype))
        position = tokens.positions(config)[:, None].astype(dtype)
        # The mask token replaces a patch's embedding together with its position.
        if tokens.unplaced is not None:
            position = jnp.where(tokens.unplaced[..., None], 0, position)
        placed = tokens.values.astype(dtype) + position
        x = jnp.concatenate([*parts, placed.reshape(batch, sensors * count, dim)], axis=1)
        blocks = BlockStack(config, config.depth, config.num_heads, NORM_EPSILON, name="blocks")
        return CrossAttention(config, name="cross")(blocks(x, None, tokens.key_mask(), drop_path), tokens)
