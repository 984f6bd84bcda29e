"""What a step of pretraining changes: the student, its teacher, the optimizer's memory and the clock."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student, student_shapes
from anysat_jax.train.sharding import abstract_on, state_shardings
from anysat_jax.train.share import put_params

Params = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint must hold besides the position in the data.

    Attributes:
      step: how many updates were made, int32; the clock of the schedules and of the teacher.
      params: the student: {"encoder", "predictor", "mask_token"}, float32.
      teacher: the teacher's encoder, a moving average of `params["encoder"]`, float32 whatever the compute dtype.
      opt_state: the optimizer's state over `params`.
    """

    step: Int[Array, ""]
    params: Params
    teacher: Params
    opt_state: optax.OptState


def initial_state(params: Params, optimizer: optax.GradientTransformation, teacher: Params | None = None) -> TrainState:
    """The state before the first update; without a `teacher`, it starts as a copy of the student's encoder."""
    teacher = params["encoder"] if teacher is None else teacher
    # An own buffer: the step donates the state, and no buffer can be donated twice.
    teacher = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), teacher)
    return TrainState(jnp.zeros((), jnp.int32), params, teacher, optimizer.init(params))


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state: what restoring needs, without any memory."""
    shapes = jax.eval_shape(lambda params: initial_state(params, optimizer), student_shapes(model))
    return abstract_on(mesh, shapes)


def create_state(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
    """A random start: the same on every mesh, each device holding its part only."""
    return state_from_params(init_student(model, seed), None, optimizer, mesh)


def state_from_params(
    params: Params, teacher: Params | None, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A start from given weights, with a fresh optimizer and clock; None: the teacher copies the encoder."""
    params, teacher = put_params(params, mesh), put_params(teacher, mesh)
    shardings = state_shardings(mesh, jax.eval_shape(lambda p, t: initial_state(p, optimizer, t), params, teacher))
    return jax.jit(lambda p, t: initial_state(p, optimizer, t), out_shardings=shardings)(params, teacher)
