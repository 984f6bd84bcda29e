"""The targets and the predictive loss of the JEPA (paper: equation 4)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

NORM_EPSILON = 1e-5


def normalise(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """LayerNorm without parameters, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)


def gather_targets(patches: Float[Array, "B N D"], target_index: Int[Array, "k B m"]) -> Float[Array, "k B m D"]:
    """The teacher's patch vectors at the target places, normalised over their channels."""
    return jnp.take_along_axis(normalise(patches)[None], target_index[..., None], axis=2)


def predictive_loss(
    predicted: Float[Array, "k B m D"], target: Float[Array, "k B m D"], target_mask: Bool[Array, "m"] | None = None
) -> Float[Array, ""]:
    """Smooth L1 (beta 1), averaged over the real target places; float32.

    Args:
      target_mask: True for real places. None for all.
    """
    errors = optax.losses.huber_loss(predicted.astype(jnp.float32), target.astype(jnp.float32)).mean(axis=-1)
    if target_mask is None:
        return errors.mean()
    weights = jnp.broadcast_to(target_mask[None, None, :].astype(jnp.float32), errors.shape)
    return (errors * weights).sum() / jnp.maximum(weights.sum(), 1.0)
