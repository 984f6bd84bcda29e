"""The spatial transformer: one for all sensors, applied to the sub-patches of each patch of each sensor."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.positions import subpatch_buckets, subpatch_positions
from anysat_jax.model.transformer import block_stack

NORM_EPSILON = 1e-5


class SpatialTransformer(nn.Module):
    """[class token; sub-patch tokens + positions], blocks with relative positions, a final norm (paper: phi^trans)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "S n D"],
        subpatch_metres: float,
        drop_path: Float[np.ndarray, "depth"] | None = None,
    ) -> tuple[Float[Array, "S D"], Float[Array, "S n D"]]:
        """Embeds S patches of n sub-patches each.

        Args:
          drop_path: how often each block is left out, patch by patch; needs an rng "dropout". None for never.

        Returns:
          The patch embeddings (the class token's output), and the sub-patches' features in raster order.
        """
        config, dtype = self.config, self.config.compute_dtype
        side = math.isqrt(tokens.shape[1])
        position = subpatch_positions(side, subpatch_metres, config.dim, config.positions)
        class_token = self.param("class_token", nn.initializers.truncated_normal(0.02), (config.dim,))
        first = jnp.broadcast_to(class_token.astype(dtype), (tokens.shape[0], 1, config.dim))
        x = jnp.concatenate([first, tokens.astype(dtype) + jnp.asarray(position, dtype)[None]], axis=1)
        blocks = block_stack(
            config,
            depth=config.depth,
            num_heads=config.num_heads,
            epsilon=NORM_EPSILON,
            relative=True,
            name="blocks",
            drops=drop_path is not None,
        )
        buckets = jnp.asarray(subpatch_buckets(side, subpatch_metres, config.positions))[None]
        x, _ = blocks(x, buckets, None, drop_path)
        x = nn.LayerNorm(NORM_EPSILON, dtype=dtype, name="norm")(x)
        return x[:, 0], x[:, 1:]
