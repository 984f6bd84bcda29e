"""The objective of pretraining: what student and teacher see, and the two losses (paper: section 3)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.batch import Batch, Observation
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, is_context, present_mask
from anysat_jax.model.predictor import Student
from anysat_jax.model.projectors import split_patches
from anysat_jax.pretrain.contrastive import NEGATIVES, Negatives, contrastive_loss
from anysat_jax.pretrain.masking import PatchMasks, drop_dates, keep_tokens
from anysat_jax.train.config import COUNT, FLAG, POSITIVE, Section, checked, one_of

NORM_EPSILON = 1e-5


def normalise(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """LayerNorm without parameters, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)


def gather_targets(patches: Float[Array, "B N D"], target_index: Int[Array, "k B m"]) -> Float[Array, "k B m D"]:
    """Returns the teacher's patch vectors at the target places, normalised over their channels."""
    return jnp.take_along_axis(normalise(patches)[None], target_index[..., None], axis=2)


def predictive_loss(
    predicted: Float[Array, "k B m D"], target: Float[Array, "k B m D"], target_mask: Bool[Array, "m"] | None = None
) -> Float[Array, ""]:
    """Computes smooth L1 (beta 1), averaged over the real target places; float32.

    Args:
      target_mask: True for real places. None for all.
    """
    errors = optax.losses.huber_loss(predicted.astype(jnp.float32), target.astype(jnp.float32)).mean(axis=-1)
    if target_mask is None:
        return errors.mean()
    weights = jnp.broadcast_to(target_mask[None, None, :].astype(jnp.float32), errors.shape)
    return (errors * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def valid_patches(batch: Batch) -> Bool[Array, "B M N"] | None:
    """Returns True for (tile, sensor, patch) with the sensor present and at least one valid pixel; sensors in sorted
    order, context sensors left out. None where no sensor of the batch has a mask.
    """
    names = tuple(name for name in batch.sensors if not is_context(name))
    masks = [_valid(batch.observations[name], batch.grid) for name in names]
    if all(mask is None for mask in masks):
        return None
    full = jnp.ones((batch.batch_size, batch.grid[0] * batch.grid[1]), bool)
    return jnp.stack([full if mask is None else jnp.broadcast_to(mask, full.shape) for mask in masks], axis=1)


def _valid(observation: Observation, grid: tuple[int, int]) -> Bool[Array, "B N"] | None:
    """Returns the valid patches of one sensor, (B, N) or (B, 1); None for all."""
    present, pixels = observation.present, observation.pixel_mask
    if pixels is None:
        return None if present is None else jnp.asarray(present)[:, None]
    pixels = jnp.asarray(pixels)
    if observation.date_mask is not None:
        pixels = pixels & observation.date_mask[:, :, None, None, None]
    maps = pixels.any(axis=tuple(range(1, pixels.ndim - 2)))
    patches = split_patches(maps[:, None], grid, 1).any(axis=(2, 3))
    return patches if present is None else patches & present[:, None]


MEASURES = ("rank", "rank_tiles", "variance", "cosine")
MAX_VECTORS, MAX_TILES = 256, 64  # measured, of a batch


def feature_health(patches: Float[Array, "B N D"]) -> dict[str, Float[Array, ""]]:
    """Measures rank, variance and similarity of a batch's patch vectors: float32 scalars, traceable, equal on any mesh.

    A few vectors are measured (see `chosen_vectors`), so that this costs next to nothing. Ranks depend on how many
    there are, and all measures on the data: compare steps of one data set, patch size and batch size.

    Args:
      patches: the vectors of N patches of B tiles.

    Returns:
      "rank": effective rank of the vectors around their mean; at most D and B * N - 1.
      "rank_tiles": the same, around the mean of each position over the tiles; at most D and (B - 1) * N.
      "variance": mean over channels of the variance, which normalisation bounds: 0 where all vectors are the same, 1
        where they cancel out.
      "cosine": mean cosine between vectors of different tiles at the same position: 1 where the content does not
        matter.
      With a single tile, "rank_tiles" and "cosine" are nan. Where nothing varies, a rank is 0.
    """
    tiles, places = chosen_vectors(*patches.shape[:2])
    # On a mesh the tiles are sharded, and indexing them moves data: only where there are too many.
    vectors = normalise(patches[:, places] if len(tiles) == len(patches) else patches[:, places][tiles])
    count = len(tiles)
    mean = vectors.mean(axis=0, keepdims=True)
    around_all = vectors - mean.mean(axis=1, keepdims=True)
    around_place = vectors - mean
    # The sum over all pairs of tiles is |sum|^2, of which the pairs of a tile with itself are |vector|^2.
    same = jnp.square(vectors).sum(axis=-1).mean()
    pairs = jnp.square(mean).sum(axis=-1).mean() * count**2 - same * count
    alone = jnp.float32(jnp.nan)
    return {
        "rank": effective_rank(around_all),
        "rank_tiles": effective_rank(around_place) if count > 1 else alone,
        "variance": jnp.square(around_all).mean(),
        "cosine": pairs / (count * (count - 1)) / jnp.maximum(same, 1e-12) if count > 1 else alone,
    }


def effective_rank(centred: Float[Array, "B N D"]) -> Float[Array, ""]:
    """Computes (tr G)^2 / tr(G^2) of the Gram matrix G of B * N vectors; its eigenvalues are the covariance's."""
    gram = jnp.einsum("bnd,cmd->bncm", centred, centred)
    trace = jnp.square(centred).sum()
    return jnp.square(trace) / jnp.maximum(jnp.square(gram).sum(), 1e-12)


def chosen_vectors(num_tiles: int, num_places: int) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "n"]]:
    """Returns the tiles and positions whose vectors are measured, spread evenly; fixed when the step is compiled."""
    tiles = min(num_tiles, MAX_TILES)
    places = min(num_places, MAX_VECTORS // tiles)
    return _spread(num_tiles, tiles), _spread(num_places, places)


def _spread(total: int, chosen: int) -> Int[np.ndarray, "chosen"]:
    return np.floor((np.arange(chosen) + 0.5) * total / chosen).astype(np.int32)


Params = dict[str, Any]
Metrics = dict[str, jax.Array]

LOSSES = ("loss", "loss_predictive", "loss_contrastive")


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """Weights and options of the loss: a part of the section `pretrain`, see configs/pretrain.py."""

    NAME = "pretrain"
    temperature: float = checked(POSITIVE, 0.1)
    predictive_weight: float = checked(COUNT, 1.0)
    contrastive_weight: float = checked(COUNT, 1.0)
    mask_dates: bool = checked(FLAG, True)
    mask_sensors: bool = checked(FLAG, True)
    contrastive_block: int = checked(POSITIVE, 1024)
    negatives: Negatives = checked(one_of(*NEGATIVES), "global")


def available_tokens(batch: Batch, masks: PatchMasks) -> Bool[Array, "B M n"]:
    """Returns True for (sensor, context patch) tokens with the sensor present and a real place; sorted sensors."""
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


def ema_decay(step: Int[Array, ""], start: float, total_steps: int) -> Float[Array, ""]:
    """Returns the teacher's EMA decay at update `step` (from 0): from `start` linearly to 1."""
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / max(1, total_steps), 1.0)
    return start + (1.0 - start) * progress


def update_teacher(teacher: Params, encoder: Params, decay: Float[Array, ""]) -> Params:
    """Returns the moving average after one more step of the student; to be called after the optimizer's update."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new.astype(jnp.float32) - old), teacher, encoder)
