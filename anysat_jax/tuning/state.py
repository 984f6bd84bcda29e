"""The state of adaptation on the mesh: the parameters that train with their optimizer, and the frozen ones beside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from anysat_jax.adapt.step import AdaptState, initial_state
from anysat_jax.train.sharding import abstract_on
from anysat_jax.train.share import put_params, put_whole

Params = dict[str, Any]


def abstract_adapt_state(
    trainable: Params, optimizer: optax.GradientTransformation, mesh: Mesh, averaged: bool = False
) -> AdaptState:
    """Shapes, dtypes and shardings of the state: what restoring needs, without any memory."""
    return abstract_on(mesh, jax.eval_shape(lambda params: initial_state(params, optimizer, averaged), trainable))


def create_adapt_state(
    trainable: Params, optimizer: optax.GradientTransformation, mesh: Mesh, averaged: bool = False
) -> AdaptState:
    """The state before the first update, in memory of its own: the step donates it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_adapt_state(trainable, optimizer, mesh, averaged))

    def start(params: Params) -> AdaptState:
        return initial_state(jax.tree.map(jnp.copy, params), optimizer, averaged)

    return jax.jit(start, out_shardings=shardings)(put_params(trainable, mesh))


def with_rate_scale(state: AdaptState, scale: float) -> AdaptState:
    """The state with another share of the learning rate."""
    return state.replace(rate_scale=put_whole(np.float32(scale), state.rate_scale.sharding))
