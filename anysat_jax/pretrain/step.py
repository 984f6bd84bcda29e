"""One step of pretraining: (state, batch, masks) -> (state, metrics), pure; its state, inputs and metrics."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from anysat_jax.batch import Batch
from anysat_jax.flops import step_flops
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder, student_shapes
from anysat_jax.model.partitioning import BATCH_AXES, constrain, on_mesh
from anysat_jax.pretrain.collapse import MEASURES
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import PatchMasks, put_masks, sample_patch_masks
from anysat_jax.pretrain.objective import LOSSES, Metrics, ema_decay, jepa_loss, update_teacher
from anysat_jax.train.input import StepInput
from anysat_jax.train.metrics_log import StepColumns
from anysat_jax.train.optimizer import TrainStep, learning_rate, make_optimizer, update_if_finite
from anysat_jax.train.sharding import abstract_on, batch_parts, initialised, put_batch, state_shardings

Params = dict[str, Any]
HEALTH = tuple(f"feature_{name}" for name in MEASURES)


COLUMNS = StepColumns(
    metrics=(*LOSSES, "learning_rate", "ema", "grad_norm", "tiles_per_second", *HEALTH),
    bar=(
        "predictive {loss_predictive:.4f}, contrastive {loss_contrastive:.3f}, lr {learning_rate:.1e}, EMA {ema:.4f}, "
        "{tiles_per_second:.1f} tiles/s"
    ).format_map,
    losses={"predictive": "loss_predictive", "contrastive": "loss_contrastive"},
    checked=LOSSES,
    per_dataset=(*LOSSES, *HEALTH),
)


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint must hold besides the position in the data."""

    step: Int[Array, ""]  # updates so far; the schedules and the teacher's decay depend on it
    params: Params  # the student: {"encoder", "predictor", "mask_token"}, float32
    teacher: Params  # moving average of `params["encoder"]`, float32 whatever the compute dtype
    opt_state: optax.OptState  # the optimizer's state over `params`


def initial_state(params: Params, optimizer: optax.GradientTransformation, teacher: Params | None = None) -> TrainState:
    """Returns the state before the first update; without a `teacher`, it starts as a copy of the student's encoder."""
    teacher = params["encoder"] if teacher is None else teacher
    # A buffer of its own: the step donates the state, and no buffer can be donated twice. float32 whatever the
    # parameters are, see `update_teacher`.
    teacher = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), teacher)
    return TrainState(jnp.zeros((), jnp.int32), params, teacher, optimizer.init(params))


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, as restoring needs them, without allocating it."""
    shapes = jax.eval_shape(lambda params: initial_state(params, optimizer), student_shapes(model))
    return abstract_on(mesh, shapes)


def state_from_params(
    params: Params, teacher: Params | None, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state before the first update of given weights; None: the teacher copies the encoder."""
    return initialised(lambda params, teacher: initial_state(params, optimizer, teacher), mesh, params, teacher)


def random_teacher(config: PretrainConfig) -> Params:
    """Returns the encoder's parameters at the random start of a config's seed."""
    return init_encoder(config.model, config.seed)


Gradient = Callable[[Params, Batch, PatchMasks, jax.Array], tuple[Metrics, Params]]
"""(params, batch, masks, rng) -> (metrics, gradients)."""


def accumulated(
    gradient: Gradient, params: Params, batch: Batch, masks: PatchMasks, rng: jax.Array, count: int
) -> tuple[Metrics, Params]:
    """Returns means over `count` micro-batches of all metrics and gradients, in the memory of one micro-batch.

    Contrastive negatives, and the vectors whose rank is measured, are those of the micro-batch. Micro-batch k holds
    the tiles k, k + count, ... and has a key of its own; `count` divides the batch, and each device's part of it.
    """
    if count == 1:
        return gradient(params, batch, masks, rng)

    # A scan holds the activations of one micro-batch; an unrolled loop may hold those of all.
    def add(total: Params, micro: tuple[jax.Array, Batch, PatchMasks]) -> tuple[Params, Metrics]:
        index, own, own_masks = micro
        metrics, grads = gradient(params, own, own_masks, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, total, grads), metrics

    micro = (jnp.arange(count), *micro_batches(batch, masks, count))
    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), micro)
    return jax.tree.map(lambda one: one.mean(axis=0), metrics), jax.tree.map(lambda one: one / count, total)


def micro_batches(batch: Batch, masks: PatchMasks, count: int) -> tuple[Batch, PatchMasks]:
    """Returns all micro-batches along a new first axis; no tile leaves its device."""
    return jax.tree.map(lambda array: _strided(array, 0, count), batch), masks.replace(
        context_index=_strided(masks.context_index, 0, count),
        context_mask=_strided(masks.context_mask, 0, count),
        target_index=_strided(masks.target_index, 1, count),
        target_mask=jnp.broadcast_to(masks.target_mask[None], (count, *masks.target_mask.shape)),
    )


def _strided(array: Shaped[Array, "..."], axis: int, count: int) -> Shaped[Array, "count ..."]:
    array = jnp.asarray(array)
    size = array.shape[axis]
    # Strided: neighbours are on one device, so that every device has some tiles of each micro-batch.
    split = array.reshape(*array.shape[:axis], size // count, count, *array.shape[axis + 1 :])
    out = jnp.moveaxis(split, axis + 1, 0)
    return constrain(out, *(BATCH_AXES if place == axis + 1 else None for place in range(out.ndim)))


def pretraining_optimizer(config: PretrainConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a config; `update` must be called with `value=loss`."""
    section = config.optimizer
    plateau = section.plateau if section.schedule == "plateau" else None
    steps = {"warmup_steps": section.warmup_steps, "total_steps": config.total_steps, "window": section.plateau.window}
    return make_optimizer(section, loss_plateau=plateau, **steps)


def make_inputs(config: PretrainConfig, mesh: Mesh) -> Callable[[Batch, int], tuple[Batch, PatchMasks]]:
    """Returns (batch on the host, update from 0) -> what the step takes, on the devices.

    The masks derive from (config.seed, update). Labels are for probes; the step gets none.
    """

    def to_inputs(batch: Batch, update: int) -> tuple[Batch, PatchMasks]:
        batch = put_batch(batch.replace(labels={}), mesh)
        rng = np.random.default_rng((config.seed, update))
        return batch, put_masks(sample_patch_masks(rng, batch.grid, batch.batch_size, config.pretrain), mesh)

    return to_inputs


def make_flops_counter(config: PretrainConfig, mesh: Mesh) -> Callable[[StepInput], float]:
    """Returns the analytic FLOPs of a step by its inputs."""
    # Each part of a batch has its own negatives, so that the matrix of similarities is smaller.
    parts = config.accumulate * (batch_parts(mesh) if config.pretrain.negatives == "device" else 1)

    def count(inputs: StepInput) -> float:
        batch, masks = inputs.inputs
        loss = config.pretrain
        options = {"mask_dates": loss.mask_dates, "contrast": loss.contrastive_weight > 0}
        return step_flops(config.model, batch, masks, negative_parts=parts, **options)

    return count


def make_train_step(
    config: PretrainConfig, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> TrainStep:
    """Returns the step of a config: of a `TrainState`, a batch and masks.

    Metrics: those of `jepa_loss`, learning_rate, ema, grad_norm (float32 scalars), finite (bool) and nonfinite_leaves,
    see `update_if_finite`. Where a value is not finite, parameters, teacher and optimizer stay as they were, and only
    the step counter advances. With `config.accumulate` above 1, gradients and the metrics of `jepa_loss` are means over
    micro-batches, see `accumulated`.

    Args:
      mesh: the mesh over which batch and state are cut; None for a single device.
    """
    mesh = mesh if mesh is not None and mesh.size > 1 else None
    loss = functools.partial(jepa_loss, model=config.model, config=config.pretrain, mesh=mesh)

    def gradients(state: TrainState, batch: Batch, masks: PatchMasks) -> tuple[Metrics, Params]:
        def gradient(params: Params, *inputs: Any) -> tuple[Metrics, Params]:
            grads, metrics = jax.grad(loss, has_aux=True)(params, state.teacher, *inputs)
            if mesh is not None:  # each device needs its part of the sum alone: a reduce-scatter, not an all-reduce
                grads = jax.lax.with_sharding_constraint(grads, state_shardings(mesh, grads))
            return metrics, grads

        # From seed and step alone, so that a resumed run repeats an uninterrupted one.
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        with on_mesh(mesh):
            return accumulated(gradient, state.params, batch, masks, rng, config.accumulate)

    def change(state: TrainState, grads: Params, norm: Array, loss: Array, decay: Array) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, norm=norm, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step, params, update_teacher(state.teacher, params["encoder"], decay), opt_state)

    def update(state: TrainState, losses: Metrics, grads: Params) -> tuple[TrainState, Metrics]:
        decay = ema_decay(state.step, config.pretrain.ema_start, config.total_steps)
        state, checks = update_if_finite(change, state, losses, grads, losses["loss"], decay)
        metrics = {"learning_rate": learning_rate(state.opt_state), "ema": decay} | checks
        return state.replace(step=state.step + 1), metrics

    return TrainStep(gradients, update, LOSSES)
