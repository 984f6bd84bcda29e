"""The objective of pretraining: what student and teacher see, and the two losses (paper: section 3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, is_context, present_mask
from anysat_jax.model.student import Student
from anysat_jax.pretrain.contrastive import Negatives, contrastive_loss
from anysat_jax.pretrain.dropping import drop_dates, keep_tokens
from anysat_jax.pretrain.health import feature_health
from anysat_jax.pretrain.losses import gather_targets, predictive_loss
from anysat_jax.pretrain.masks import PatchMasks
from anysat_jax.pretrain.validity import valid_patches

Params = dict[str, Any]
Metrics = dict[str, jax.Array]

LOSSES = ("loss", "loss_predictive", "loss_contrastive")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the loss depends on besides the model: see the section `pretrain` of configs/pretrain.py."""

    temperature: float = 0.1
    predictive_weight: float = 1.0
    contrastive_weight: float = 1.0
    mask_dates: bool = True
    mask_sensors: bool = True
    contrastive_block: int = 1024
    negatives: Negatives = "global"

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
    """The sum of the two losses; beside it `LOSSES`, and "feature_<measure>" of `health` (paper: equations 3 to 5).

    The teacher sees every patch, date and sensor, without dropout; the student half of the dates, the context
    patches, and few of their sensors.

    Args:
      mesh: the mesh over which the batch is cut: where the contrastive loss finds its negatives depends on it, see
        `contrastive`.
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
    contrastive = contrastive_loss(
        tokens,
        valid_patches(seen),
        config.temperature,
        config.contrastive_block,
        mesh=mesh,
        negatives=config.negatives,
    )
    loss = config.predictive_weight * predictive + config.contrastive_weight * contrastive
    health = {f"feature_{name}": value for name, value in feature_health(patches).items()}
    return loss, dict(zip(LOSSES, (loss, predictive, contrastive), strict=True)) | health
