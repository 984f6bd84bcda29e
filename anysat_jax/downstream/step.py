"""One training step of a downstream task: (state, frozen parameters, batch, seed) -> (state, metrics), pure."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from anysat_jax.downstream.task import LossConfig, Task, task_loss
from anysat_jax.downstream.trainable import Params, merge
from anysat_jax.train.optimizer import Metrics, TrainStep, learning_rate, update_if_finite
from anysat_jax.train.sharding import put_whole

Forward = Callable[[Params, Any, jax.Array | None], Float[Array, "B *n K"]]
"""Logits, float32, of (whole parameters, batch, rng for what drops in training; None for evaluation)."""
LOSSES = ("loss",)


@flax.struct.dataclass
class DownstreamState:
    """Everything that a step changes."""

    step: Int[Array, ""]  # updates so far, int32; schedule and randomness depend on it
    params: Params  # the parameters that train, float32; the frozen ones are not part of the state
    opt_state: optax.OptState  # the optimizer's state over `params` alone
    # Factor of the learning rate from the plateau schedule, float32; changed between epochs, not by a step.
    rate_scale: Float[Array, ""]
    average: Params | None = None  # a moving average of `params`, float32; None where none is kept

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and to keep: the average, where there is one."""
        return self.params if self.average is None else self.average


def initial_state(
    trainable: Params, optimizer: optax.GradientTransformation, averaged: bool = False
) -> DownstreamState:
    """Returns the state before the first update; `averaged` keeps a moving average beside the parameters."""
    # Copies: the step donates the state, the caller still needs its parameters, and no buffer can be donated twice.
    params = jax.tree.map(jnp.copy, trainable)
    average = jax.tree.map(jnp.copy, params) if averaged else None
    step, rate_scale = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
    return DownstreamState(step, params, optimizer.init(params), rate_scale, average)


def with_rate_scale(state: DownstreamState, scale: float) -> DownstreamState:
    """Returns the state with another factor of the learning rate."""
    # With the sharding of before: another one would be another program.
    return state.replace(rate_scale=put_whole(np.float32(scale), state.rate_scale.sharding))


def average_decay(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """Returns the weight of the old average at update `step` (from 0): at most `decay`."""
    # At first nearly that of a plain mean, so that the random start is soon forgotten.
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    task: Task, loss: LossConfig, forward: Forward, optimizer: optax.GradientTransformation, average: float = 0.0
) -> TrainStep:
    """Returns the step of a task.

    It takes the state, the frozen parameters, a batch with the labels of the task's level, "index" (B,) and perhaps
    "valid" (B,), and the seed. Metrics: loss, learning_rate (the plateau's factor included), grad_norm (float32
    scalars), finite (bool) and nonfinite_leaves, see `update_if_finite`, and (B,) index and nonfinite_samples: the
    samples, and whether the loss of each is not finite. Where a value is not finite, only the step counter advances.
    `average` is the decay of the moving average, where the state keeps one.
    """

    def objective(trainable: Params, frozen: Params, batch: Any, rng: jax.Array) -> tuple[Array, Array]:
        logits = forward(merge(trainable, frozen), batch, rng)
        return task_loss(task, loss, logits, batch.labels[task.level], batch.labels.get("valid"))

    def gradients(state: DownstreamState, frozen: Params, batch: Any, seed: Array) -> tuple[Metrics, Params]:
        # The seed is an argument, not a constant, so that runs that differ in it alone share one compiled program; with
        # the step it gives all randomness, so that a resumed run repeats an uninterrupted one.
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, each), grads = jax.value_and_grad(objective, has_aux=True)(state.params, frozen, batch, rng)
        metrics = {"loss": value, "nonfinite_samples": ~jnp.isfinite(each), "index": batch.labels["index"]}
        return metrics, grads

    def change(state: DownstreamState, grads: Params, norm: Array) -> DownstreamState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, norm=norm)
        # Here, not in the optimizer: the plateau changes the factor between epochs, and the schedule stays as it is.
        updates = jax.tree.map(lambda update: update * state.rate_scale, updates)
        params, mean = optax.apply_updates(state.params, updates), state.average
        if mean is not None:
            mean = optax.incremental_update(params, mean, 1.0 - average_decay(state.step, average))
        return state.replace(params=params, opt_state=opt_state, average=mean)

    def update(state: DownstreamState, losses: Metrics, grads: Params) -> tuple[DownstreamState, Metrics]:
        state, checks = update_if_finite(change, state, losses, grads)
        rate = learning_rate(state.opt_state) * state.rate_scale
        return state.replace(step=state.step + 1), {"learning_rate": rate} | checks

    return TrainStep(gradients, update, LOSSES)
