"""The teacher: an exponential moving average of the student's encoder, in float32, without dropout."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Params = dict[str, Any]


def ema_decay(step: Int[Array, ""], start: float, total_steps: int) -> Float[Array, ""]:
    """The share of itself that the teacher keeps at update `step` (from 0): from `start` linearly to 1."""
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / max(1, total_steps), 1.0)
    return start + (1.0 - start) * progress


def update_teacher(teacher: Params, encoder: Params, decay: Float[Array, ""]) -> Params:
    """The average after one more step of the student; call it after the optimizer's update."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new.astype(jnp.float32) - old), teacher, encoder)
