"""One step of training: (state, batch, masks) -> (state, metrics), pure."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student, student_shapes
from anysat_jax.model.partitioning import BATCH_AXES, constrain, on_mesh
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import PatchMasks
from anysat_jax.pretrain.objective import LOSSES, Metrics, ema_decay, jepa_loss, update_teacher
from anysat_jax.train.optimizer import learning_rate, make_optimizer, update_if_finite
from anysat_jax.train.sharding import abstract_on, put_params, state_shardings

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


Gradient = Callable[[Params, Batch, PatchMasks, jax.Array], tuple[Metrics, Params]]
"""(params, batch, masks, rng) -> (metrics, gradients)."""


def accumulated(
    gradient: Gradient, params: Params, batch: Batch, masks: PatchMasks, rng: jax.Array, count: int
) -> tuple[Metrics, Params]:
    """Means over `count` micro-batches of all metrics and gradients, in the memory of one micro-batch.

    What a loss takes from its batch it takes from the micro-batch: the contrastive negatives, and the vectors whose
    rank is measured. Micro-batch k holds the tiles k, k + count, ... and draws from a key of its own.

    Args:
      count: divides the batch, and each device's part of it.
    """
    if count == 1:
        return gradient(params, batch, masks, rng)

    def add(total: Params, micro: tuple[jax.Array, Batch, PatchMasks]) -> tuple[Params, Metrics]:
        index, own, own_masks = micro
        metrics, grads = gradient(params, own, own_masks, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, total, grads), metrics

    micro = (jnp.arange(count), *micro_batches(batch, masks, count))
    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), micro)
    return jax.tree.map(lambda one: one.mean(axis=0), metrics), jax.tree.map(lambda one: one / count, total)


def micro_batches(batch: Batch, masks: PatchMasks, count: int) -> tuple[Batch, PatchMasks]:
    """All micro-batches along a new first axis; no tile leaves its device."""
    return jax.tree.map(lambda array: _strided(array, 0, count), batch), PatchMasks(
        context_index=_strided(masks.context_index, 0, count),
        context_mask=_strided(masks.context_mask, 0, count),
        target_index=_strided(masks.target_index, 1, count),
        target_mask=jnp.broadcast_to(masks.target_mask[None], (count, *masks.target_mask.shape)),
    )


def _strided(array: Shaped[Array, "..."], axis: int, count: int) -> Shaped[Array, "count ..."]:
    """Every `count`-th place of the tiles' axis: neighbours are on one device, and so every device has some of each."""
    array = jnp.asarray(array)
    size = array.shape[axis]
    split = array.reshape(*array.shape[:axis], size // count, count, *array.shape[axis + 1 :])
    out = jnp.moveaxis(split, axis + 1, 0)
    return constrain(out, *(BATCH_AXES if place == axis + 1 else None for place in range(out.ndim)))


def pretraining_optimizer(config: PretrainConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a config; `update` must be called with `value=loss`."""
    section = config.optimizer
    return make_optimizer(
        section,
        warmup_steps=section.warmup_steps,
        total_steps=config.total_steps,
        loss_plateau=section.plateau if section.schedule == "plateau" else None,
        window=section.plateau.window,
    )


def make_train_step(
    config: PretrainConfig, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> Callable[[TrainState, Batch, PatchMasks], tuple[TrainState, Metrics]]:
    """Returns the step of a config, to be jitted by the caller with the state donated.

    Metrics: those of `jepa_loss`, learning_rate, ema, grad_norm (float32 scalars), finite (bool) and nonfinite_leaves,
    see `update_if_finite`. Where a value is not finite, parameters, teacher and optimizer stay as they were, and only
    the step counter advances.

    With `config.accumulate` above 1 the batch is cut into micro-batches; gradients and the metrics of `jepa_loss` are
    means over them, see `accumulated`.

    All randomness derives from (config.seed, state.step), so that a resumed run repeats an uninterrupted one.

    Args:
      mesh: the mesh over which batch and state are cut; None for a single device.
    """
    model, seed = config.model, config.seed
    mesh = mesh if mesh is not None and mesh.size > 1 else None

    def update(state: TrainState, grads: Params, loss: jax.Array, decay: jax.Array) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step, params, update_teacher(state.teacher, params["encoder"], decay), opt_state)

    def gradient(
        teacher: Params, params: Params, batch: Batch, masks: PatchMasks, rng: jax.Array
    ) -> tuple[Metrics, Params]:
        differentiate = jax.grad(jepa_loss, has_aux=True)
        grads, measured = differentiate(
            params, teacher, batch, masks, rng, model=model, config=config.pretrain, mesh=mesh
        )
        if mesh is not None:  # each device needs its part of the sum alone
            grads = jax.lax.with_sharding_constraint(grads, state_shardings(mesh, grads))
        return measured, grads

    def step(state: TrainState, batch: Batch, masks: PatchMasks) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        with on_mesh(mesh):
            of_teacher = functools.partial(gradient, state.teacher)
            measured, grads = accumulated(of_teacher, state.params, batch, masks, rng, config.accumulate)
        decay = ema_decay(state.step, config.pretrain.ema_start, config.total_steps)
        losses = {name: measured[name] for name in LOSSES}
        state, checks = update_if_finite(update, state, losses, grads, measured["loss"], decay)
        metrics = measured | {"learning_rate": learning_rate(state.opt_state), "ema": decay} | checks
        return state.replace(step=state.step + 1), metrics

    return step
