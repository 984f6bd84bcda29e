"""The objectives of pretraining: predictive and contrastive loss of student and teacher (paper: section 3), or the
reconstruction of raw values in place of the teacher's vectors.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, grid_sensors, valid_patches
from anysat_jax.model.predictor import Student, normalise
from anysat_jax.pretrain.collapse import feature_health, sampled_vectors
from anysat_jax.pretrain.contrastive import NEGATIVES, Negatives, contrastive_loss
from anysat_jax.pretrain.masking import PatchMasks, drop_dates, keep_tokens
from anysat_jax.pretrain.reconstruction import reconstruction_loss
from anysat_jax.train.config import COUNT, FINITE_POSITIVE, FLAG, POSITIVE, Section, checked, one_of

Params = dict[str, Any]
Metrics = dict[str, jax.Array]
Objective = Literal["paper", "reconstruction"]
OBJECTIVES: tuple[Objective, ...] = ("paper", "reconstruction")
"""What the predictive loss predicts: the teacher's patch vectors, or raw values."""
LOSSES = ("loss", "loss_predictive", "loss_contrastive")


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """Weights and options of the loss: a part of the section `pretrain`, see configs/pretrain.py."""

    NAME = "pretrain"
    objective: Objective = checked(one_of(*OBJECTIVES), "paper")
    temperature: float = checked(FINITE_POSITIVE, 0.1)
    predictive_weight: float = checked(COUNT, 1.0)
    contrastive_weight: float = checked(COUNT, 1.0)
    mask_dates: bool = checked(FLAG, True)
    mask_sensors: bool = checked(FLAG, True)
    contrastive_block: int = checked(POSITIVE, 1024)
    negatives: Negatives = checked(one_of(*NEGATIVES), "global")


def gather_targets(patches: Float[Array, "B N D"], target_index: Int[Array, "k B m"]) -> Float[Array, "k B m D"]:
    """Returns the teacher's patch vectors at the target places, normalised over their channels."""
    # Without the normalisation the teacher's scale would set that of the loss, and both drift during training.
    return jnp.take_along_axis(normalise(patches)[None], target_index[..., None], axis=2)


def predictive_loss(
    predicted: Float[Array, "k B m D"], target: Float[Array, "k B m D"], target_mask: Bool[Array, "m"] | None = None
) -> Float[Array, ""]:
    """Computes smooth L1 (beta 1), averaged over the real target places; float32.

    Args:
      target_mask: True for real places. None for all.
    """
    # float32: differences of bfloat16 vectors that nearly agree would be mostly rounding.
    errors = optax.losses.huber_loss(predicted.astype(jnp.float32), target.astype(jnp.float32)).mean(axis=-1)
    if target_mask is None:
        return errors.mean()
    weights = jnp.broadcast_to(target_mask[None, None, :].astype(jnp.float32), errors.shape)
    # Sums over sums, not a mean of masked errors: padding to another static size must not change the loss.
    return (errors * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def available_tokens(batch: Batch, masks: PatchMasks) -> Bool[Array, "B M n"]:
    """Returns True for (sensor, context patch) tokens of a real place that `valid_patches` has; sorted sensors."""
    sensors, index = len(grid_sensors(batch)), masks.context_index
    available = jnp.broadcast_to(masks.context_mask[:, None], (batch.batch_size, sensors, index.shape[1]))
    valid = valid_patches(batch)
    return available if valid is None else available & jnp.take_along_axis(valid, index[:, None], axis=2)


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
    """Returns the weighted sum of the two losses (paper: equations 3 to 5), and metrics.

    The metrics are `LOSSES`, and "feature_<measure>" for each measure of `feature_health`. `mesh` is that over which
    the batch is cut; the contrastive loss finds its negatives there, see `contrastive`.
    """
    date_rng, sensor_rng, dropout_rng = jax.random.split(rng, 3)
    # The student sees half of the dates, the context patches, and few of their sensors.
    seen = drop_dates(batch, date_rng) if config.mask_dates else batch
    out = Student(model).apply(
        {"params": params},
        seen,
        masks.context_index,
        masks.target_index,
        keep=keep_tokens(available_tokens(seen, masks), sensor_rng) if config.mask_sensors else None,
        context_mask=masks.context_mask,
        target_mask=masks.target_mask,
        deterministic=False,
        rngs={"dropout": dropout_rng},
    )
    if config.objective == "reconstruction":
        patches, predictive = out.decoded.whole, reconstruction_loss(out.decoded, batch, masks)
    else:
        # The teacher sees all, without dropout. No gradient reaches it, or both networks could agree on a constant.
        patches = jax.lax.stop_gradient(Encoder(model).apply({"params": teacher}, batch, "all")[:, 1:])
        predictive = predictive_loss(out.predicted, gather_targets(patches, masks.target_index), masks.target_mask)
    # Tokens of all patches, before patches and sensors are masked: contrast needs the same patch in several sensors.
    tokens = jnp.stack([out.embedded.patches[name] for name in grid_sensors(batch)], axis=1)
    # Without a weight the loss is logged alone.
    tokens = tokens if config.contrastive_weight else jax.lax.stop_gradient(tokens)
    options = {"mesh": mesh, "negatives": config.negatives}
    contrastive = contrastive_loss(tokens, valid_patches(seen), config.temperature, config.contrastive_block, **options)
    loss = config.predictive_weight * predictive + config.contrastive_weight * contrastive
    health = {f"feature_{name}": value for name, value in feature_health(normalise(sampled_vectors(patches))).items()}
    return loss, dict(zip(LOSSES, (loss, predictive, contrastive), strict=True)) | health


def ema_decay(step: Int[Array, ""], start: float, total_steps: int) -> Float[Array, ""]:
    """Returns the teacher's EMA decay at update `step` (from 0): from `start` linearly to 1."""
    # A young student changes fast, and its teacher must follow; towards the end targets that stay improve the features.
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / max(1, total_steps), 1.0)
    return start + (1.0 - start) * progress


def update_teacher(teacher: Params, encoder: Params, decay: Float[Array, ""]) -> Params:
    """Returns the moving average after one more step of the student; to be called after the optimizer's update."""
    # decay * old + (1 - decay) * new, with one rounding of a small step. In float32: near decay 1 a step is below the
    # resolution of bfloat16, and the teacher would stand still.
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new.astype(jnp.float32) - old), teacher, encoder)
