"""One step of pretraining: (state, batch, masks) -> (state, metrics), pure."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, is_context, present_mask
from anysat_jax.model.init import flat_names
from anysat_jax.model.student import Student
from anysat_jax.pretrain.contrastive import contrastive_loss
from anysat_jax.pretrain.dropping import drop_dates, keep_tokens
from anysat_jax.pretrain.losses import gather_targets, predictive_loss
from anysat_jax.pretrain.masks import PatchMasks
from anysat_jax.pretrain.teacher import ema_decay, update_teacher
from anysat_jax.pretrain.validity import valid_patches
from anysat_jax.train.optimizer import learning_rate
from anysat_jax.train.state import TrainState

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the loss depends on besides the model: see the section `pretrain` of configs/pretrain.py."""

    temperature: float = 0.1
    predictive_weight: float = 1.0
    contrastive_weight: float = 1.0
    mask_dates: bool = True
    mask_sensors: bool = True
    contrastive_block: int = 1024

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "LossConfig":
        return cls(**{field.name: section[field.name] for field in dataclasses.fields(cls)})


def available_tokens(batch: Batch, masks: PatchMasks) -> Bool[Array, "B M n"]:
    """(sensor, context patch) tokens whose sensor is there and whose place is real, sensors in sorted order."""
    names = tuple(name for name in batch.sensors if not is_context(name))
    shape = (batch.batch_size, len(names), masks.context_index.shape[1])
    available = jnp.broadcast_to(masks.context_mask[:, None], shape)
    present = present_mask(batch.observations, names)
    return available if present is None else available & present[:, :, None]


def jepa_loss(
    params: Params,
    teacher: Params,
    batch: Batch,
    masks: PatchMasks,
    rng: jax.Array,
    *,
    model: ModelConfig,
    config: LossConfig,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The sum of the two losses, and each by itself (paper: equations 3 to 5).

    The teacher sees every patch, date and sensor, without dropout; the student half of the dates, the context
    patches, and few of their sensors.

    Args:
      mesh: the mesh over which the batch is cut; the contrastive loss then takes its negatives from all devices.
    """
    date_rng, sensor_rng, dropout_rng = jax.random.split(rng, 3)
    patches = Encoder(model).apply({"params": jax.lax.stop_gradient(teacher)}, batch, "all")[:, 1:]
    target = jax.lax.stop_gradient(gather_targets(patches, masks.target_index))
    seen = drop_dates(batch, date_rng) if config.mask_dates else batch
    out = Student(model).apply(
        {"params": params},
        seen,
        masks.context_index,
        masks.target_index,
        keep=keep_tokens(available_tokens(batch, masks), sensor_rng) if config.mask_sensors else None,
        context_mask=masks.context_mask,
        target_mask=masks.target_mask,
        deterministic=False,
        rngs={"dropout": dropout_rng},
    )
    names = [name for name in batch.sensors if not is_context(name)]
    tokens = jnp.stack([out.embedded.patches[name] for name in names], axis=1)
    predictive = predictive_loss(out.predicted, target, masks.target_mask)
    contrastive = contrastive_loss(tokens, valid_patches(seen), config.temperature, config.contrastive_block, mesh=mesh)
    loss = config.predictive_weight * predictive + config.contrastive_weight * contrastive
    return loss, {"loss": loss, "loss_predictive": predictive, "loss_contrastive": contrastive}


def checked_leaves(losses: Metrics, grads: Params) -> dict[str, Array]:
    """What must be finite, by name: each loss, each parameter's gradient."""
    return losses | {f"gradient of {name}": leaf for name, leaf in flat_names(grads).items()}


def leaf_names(params: Params) -> list[str]:
    """Names of the entries of metrics["nonfinite_leaves"]."""
    return list(checked_leaves(dict.fromkeys(("loss", "loss_predictive", "loss_contrastive")), params))


def make_train_step(
    config: Mapping[str, Any], optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> Callable[[TrainState, Batch, PatchMasks], tuple[TrainState, Metrics]]:
    """The step of a config, to be jitted by the caller with the state donated.

    Metrics: loss, loss_predictive, loss_contrastive, learning_rate, ema, grad_norm (float32 scalars), finite (bool) and
    nonfinite_leaves, a bool for each of `leaf_names`. Where anything is not finite, parameters, teacher and
    optimizer stay as they were, and only the clock goes on.

    All randomness derives from (config.seed, state.step), so that a resumed run repeats the one that never stopped.
    """
    model = ModelConfig.from_section(config["model"], dtype=config["dtype"])
    section = config["pretrain"]
    loss_config = LossConfig.from_section(section)
    total_steps, ema_start, seed = config["total_steps"], section["ema_start"], config["seed"]
    mesh = mesh if mesh is not None and mesh.size > 1 else None

    def update(state: TrainState, grads: Params, loss: jax.Array, decay: jax.Array) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step, params, update_teacher(state.teacher, params["encoder"], decay), opt_state)

    def step(state: TrainState, batch: Batch, masks: PatchMasks) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(jepa_loss, has_aux=True)
        (loss, losses), grads = gradient(
            state.params, state.teacher, batch, masks, rng, model=model, config=loss_config, mesh=mesh
        )
        nonfinite = jnp.stack([~jnp.isfinite(leaf).all() for leaf in checked_leaves(losses, grads).values()])
        finite = ~nonfinite.any()
        decay = ema_decay(state.step, ema_start, total_steps)
        # A branch, not a select on every leaf: selects fuse into the gradients and triple the time to compile.
        state = jax.lax.cond(finite, update, lambda state, *_: state, state, grads, loss, decay)
        metrics = losses | {
            "learning_rate": learning_rate(state.opt_state),
            "ema": decay,
            "grad_norm": optax.tree.norm(grads),
            "finite": finite,
            "nonfinite_leaves": nonfinite,
        }
        return state.replace(step=state.step + 1), metrics

    return step
