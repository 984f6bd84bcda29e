"""One step of training: (state, batch, masks) -> (state, metrics), pure."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import flat_names
from anysat_jax.model.partitioning import on_mesh
from anysat_jax.pretrain.masks import PatchMasks
from anysat_jax.pretrain.objective import LOSSES, LossConfig, Metrics, Params, jepa_loss
from anysat_jax.pretrain.teacher import ema_decay, update_teacher
from anysat_jax.train.accumulate import accumulated
from anysat_jax.train.optimizer import learning_rate
from anysat_jax.train.sharding import state_shardings
from anysat_jax.train.state import TrainState


def checked_leaves(metrics: Metrics, grads: Params) -> dict[str, Array]:
    """What must be finite, by name: each loss, each parameter's gradient."""
    losses = {name: metrics[name] for name in LOSSES}
    return losses | {f"gradient of {name}": leaf for name, leaf in flat_names(grads).items()}


def leaf_names(params: Params) -> list[str]:
    """Names of the entries of metrics["nonfinite_leaves"]."""
    return list(checked_leaves(dict.fromkeys(LOSSES), params))


def make_train_step(
    config: Mapping[str, Any], optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> Callable[[TrainState, Batch, PatchMasks], tuple[TrainState, Metrics]]:
    """The step of a config, to be jitted by the caller with the state donated.

    Metrics: those of `jepa_loss`, learning_rate, ema, grad_norm (float32 scalars), finite (bool) and nonfinite_leaves,
    a bool for each of `leaf_names`. Where any of these is not finite, parameters, teacher and optimizer stay as they
    were, and only the clock goes on.

    With `config.accumulate` above 1 the batch is cut into micro-batches; gradients and the metrics of `jepa_loss` are
    means over them, see `accumulated`.

    All randomness derives from (config.seed, state.step), so that a resumed run repeats the one that never stopped.

    Args:
      mesh: the mesh over which batch and state are cut; None for a single device.
    """
    model = ModelConfig.from_section(config["model"], dtype=config["dtype"])
    section = config["pretrain"]
    loss_config = LossConfig.from_section(section)
    total_steps, ema_start, seed = config["total_steps"], section["ema_start"], config["seed"]
    accumulate = config["accumulate"]
    mesh = mesh if mesh is not None and mesh.size > 1 else None

    def update(state: TrainState, grads: Params, loss: jax.Array, decay: jax.Array) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step, params, update_teacher(state.teacher, params["encoder"], decay), opt_state)

    def gradient(
        teacher: Params, params: Params, batch: Batch, masks: PatchMasks, rng: jax.Array
    ) -> tuple[Metrics, Params]:
        differentiate = jax.grad(jepa_loss, has_aux=True)
        grads, measured = differentiate(params, teacher, batch, masks, rng, model=model, config=loss_config, mesh=mesh)
        if mesh is not None:  # each device needs its part of the sum alone
            grads = jax.lax.with_sharding_constraint(grads, state_shardings(mesh, grads))
        return measured, grads

    def step(state: TrainState, batch: Batch, masks: PatchMasks) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        with on_mesh(mesh):
            of_teacher = functools.partial(gradient, state.teacher)
            measured, grads = accumulated(of_teacher, state.params, batch, masks, rng, accumulate)
        nonfinite = jnp.stack([~jnp.isfinite(leaf).all() for leaf in checked_leaves(measured, grads).values()])
        finite = ~nonfinite.any()
        decay = ema_decay(state.step, ema_start, total_steps)
        # A branch, not a select on every leaf: selects fuse into the gradients and triple the time to compile.
        state = jax.lax.cond(finite, update, lambda state, *_: state, state, grads, measured["loss"], decay)
        metrics = measured | {
            "learning_rate": learning_rate(state.opt_state),
            "ema": decay,
            "grad_norm": optax.tree.norm(grads),
            "finite": finite,
            "nonfinite_leaves": nonfinite,
        }
        return state.replace(step=state.step + 1), metrics

    return step
