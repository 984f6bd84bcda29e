"""One step of adaptation: (state, frozen parameters, batch, seed) -> (state, metrics), pure."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from anysat_jax.downstream.task import LossConfig, Task, task_loss
from anysat_jax.downstream.trainable import merge
from anysat_jax.model.init import flat_names
from anysat_jax.train.sharding import abstract_on, put_params, put_whole

Params = dict[str, Any]
Metrics = dict[str, Array]
Forward = Callable[[Params, Any, jax.Array | None], Float[Array, "B *n K"]]
"""Logits, float32, of (whole parameters, batch, rng for what drops in training; None for evaluation)."""


@flax.struct.dataclass
class AdaptState:
    """Everything that a step of adaptation changes.

    Attributes:
      step: how many updates were made, int32; the clock of the schedule and of all randomness.
      params: the parameters that train, float32; the frozen ones are no part of the state.
      opt_state: the optimizer's state over `params` alone.
      rate_scale: what the plateau schedule multiplies the rate by, float32; changed between epochs, never by a step.
      average: a moving average of `params`, float32; None where none is kept.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    rate_scale: Float[Array, ""]
    average: Params | None = None

    @property
    def judged(self) -> Params:
        """The parameters to evaluate and to keep: the average, where there is one."""
        return self.params if self.average is None else self.average


def initial_state(trainable: Params, optimizer: optax.GradientTransformation, averaged: bool = False) -> AdaptState:
    """The state before the first update; `averaged` keeps a moving average beside the parameters."""
    # A copy: the step donates the state, and no buffer can be donated twice.
    average = jax.tree.map(jnp.copy, trainable) if averaged else None
    clock, rate_scale = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
    return AdaptState(clock, trainable, optimizer.init(trainable), rate_scale, average)


def average_decay(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """The share of itself that the average keeps at update `step` (from 0): at first as of a plain mean, so that the
    random start is soon forgotten, and never more than `decay`.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def learning_rate(state: AdaptState) -> Float[Array, ""]:
    """The rate of the last update (before the first: of the first), the plateau's share included."""
    # Beside the rate, the optimizer keeps its schedule's clock under the same name.
    rate = optax.tree.get(state.opt_state, "learning_rate", filtering=lambda _, value: isinstance(value, jax.Array))
    return rate * state.rate_scale


def checked_leaves(loss: Array, grads: Params) -> dict[str, Array]:
    """What must be finite, by name; in an order that does not depend on that of the dicts, which jax sorts."""
    return {"loss": loss} | {f"gradient of {name}": leaf for name, leaf in sorted(flat_names(grads).items())}


def leaf_names(trainable: Params) -> list[str]:
    """Names of the entries of metrics["nonfinite_leaves"]."""
    return list(checked_leaves(jnp.zeros(()), trainable))


def make_train_step(
    task: Task, loss: LossConfig, forward: Forward, optimizer: optax.GradientTransformation, average: float = 0.0
) -> Callable[[AdaptState, Params, Any, Int[Array, ""]], tuple[AdaptState, Metrics]]:
    """The step of a task, to be jitted by the caller with the state donated.

    It takes the state, the frozen parameters, a batch whose labels are those of the task's level, "index" (B,) and
    maybe "valid" (B,), and the seed. The seed is an argument, and no constant of the program, so that runs that differ
    in nothing else share one compiled program.

    Metrics: loss, learning_rate (the plateau's share included), grad_norm (float32 scalars), finite (bool),
    nonfinite_leaves (a bool for each of `checked_leaves`), and (B,) index and nonfinite_samples: the samples, and which
    of them have a loss that is not finite. Where anything is not finite, parameters and optimizer stay as they were,
    and only the clock goes on.

    Where the state keeps an average, it follows the parameters after each update: `average` is the decay.

    All randomness derives from (seed, state.step), so that a resumed run repeats the one that never stopped.
    """

    def objective(
        trainable: Params, frozen: Params, batch: Any, rng: jax.Array
    ) -> tuple[Float[Array, ""], Float[Array, "B"]]:
        logits = forward(merge(trainable, frozen), batch, rng)
        return task_loss(task, loss, logits, batch.labels[task.level], batch.labels.get("valid"))

    def update(state: AdaptState, grads: Params) -> AdaptState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda update: update * state.rate_scale, updates)
        params, mean = optax.apply_updates(state.params, updates), state.average
        if mean is not None:
            mean = optax.incremental_update(params, mean, 1.0 - average_decay(state.step, average))
        return state.replace(params=params, opt_state=opt_state, average=mean)

    def step(state: AdaptState, frozen: Params, batch: Any, seed: Int[Array, ""]) -> tuple[AdaptState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, per_sample), grads = gradient(state.params, frozen, batch, rng)
        nonfinite = jnp.stack([~jnp.isfinite(leaf).all() for leaf in checked_leaves(value, grads).values()])
        finite = ~nonfinite.any()
        # A branch, not a select on every leaf: selects fuse into the gradients and take long to compile.
        state = jax.lax.cond(finite, update, lambda state, _: state, state, grads)
        metrics = {
            "loss": value,
            "learning_rate": learning_rate(state),
            "grad_norm": optax.tree.norm(grads),
            "finite": finite,
            "nonfinite_leaves": nonfinite,
            "nonfinite_samples": ~jnp.isfinite(per_sample),
            "index": batch.labels["index"],
        }
        return state.replace(step=state.step + 1), metrics

    return step


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
