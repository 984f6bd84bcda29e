"""Reconstruction of raw values: an objective without a teacher, whose targets cannot collapse.

From its half of the dates and its context patches, the student predicts summaries of all raw values by linear maps of
its normalised features f (see `model.predictor.Decoder`): of hidden patches from the predictor, of the sub-patches of
context patches from [patch vector, sub-patch feature], and of the whole tile, mean and deviation, from its vector:

  L = h(W_1 f_hidden, y_patch) + h(W_2 f_subpatch, y) + h(W_3 f_tile, [mean y, std y]),   h: smooth L1 of what is known.

A summary y of a sub-patch holds the mean and the standard deviation of an image's bands; of a series the medians over
the year, and those of each season relative to the year's: a median passes over clouds. Neighbouring bands are almost
the same, so that a regression of them learns brightness and little else; a cosine transform over the bands nearly
decorrelates them (it is the principal axes of a Markov process), and each coefficient is standardised over the batch.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from anysat_jax.batch import Batch, Observation
from anysat_jax.model.encoder import grid_sensors
from anysat_jax.model.predictor import SEASONS, Decoded
from anysat_jax.model.projectors import split_patches
from anysat_jax.pretrain.masking import PatchMasks
from anysat_jax.sensors import Sensor, get_sensor

DAYS = 365  # of a year: dates may go on into the next one
MIN_VARIANCE = 1e-4  # of a coefficient over the batch, for standardised values


@flax.struct.dataclass
class Summary:
    """Summaries of the sub-patches of one sensor; float32."""

    values: Float[Array, "B N n F"]
    weights: Float[Array, "B N n F"]  # 1 where a value is known, else 0


def reconstruction_loss(out: Decoded, batch: Batch, masks: PatchMasks) -> Float[Array, ""]:
    """Returns the loss, the mean over the sensors with a patch grid; float32. Zero where nothing is known.

    Args:
      out: of a student that may have seen fewer dates than `batch` has.
    """
    total = jnp.zeros((), jnp.float32)
    sensors = grid_sensors(batch)
    for name in sensors:
        found = standardise(summarise(batch.observations[name], get_sensor(name), batch.grid))
        tile, spread = moments(found, (1, 2))
        hidden = _take(_patch_means(found), masks.target_index)
        hidden = hidden.replace(weights=hidden.weights * masks.target_mask[None, None, :, None])
        seen = jax.tree.map(lambda x: jnp.take_along_axis(x, masks.context_index[..., None, None], axis=1), found)
        seen = seen.replace(weights=seen.weights * masks.context_mask[..., None, None])
        whole = Summary(jnp.concatenate([tile.values, spread], axis=-1), jnp.tile(tile.weights, (1, 2)))
        parts = ((out.hidden[name], hidden), (out.seen[name], seen), (out.tile[name], whole))
        total += sum(masked_error(predicted, target) for predicted, target in parts)
    return total / len(sensors)


def masked_error(predicted: Float[Array, "*n F"], target: Summary) -> Float[Array, ""]:
    """Returns the mean of smooth L1 (beta 1) over the known values; zero where there are none."""
    # A difference that does not count is zero before the loss: 0 times NaN would be NaN, in the gradient, too.
    known = target.weights > 0
    errors = optax.losses.huber_loss(jnp.where(known, predicted.astype(jnp.float32) - target.values, 0))
    return errors.sum() / jnp.maximum(target.weights.sum(), 1)


def summarise(observation: Observation, sensor: Sensor, grid: tuple[int, int]) -> Summary:
    """Returns the summaries of an image's or a series' sub-patches, their bands decorrelated."""
    values = jnp.asarray(observation.values, jnp.float32)
    valid = jnp.ones(values.shape, bool)
    if observation.pixel_mask is not None:
        valid = jnp.broadcast_to(jnp.asarray(observation.pixel_mask), values.shape)
    found = _of_series(observation, values, valid, grid) if sensor.has_dates else _of_image(values, valid, sensor, grid)
    known = found.weights > 0
    basis = jnp.asarray(cosine_basis(sensor.num_bands))

    def by_band(x: Float[Array, "B N n F"]) -> Float[Array, "B N n G C"]:
        return x.reshape(*x.shape[:3], -1, sensor.num_bands)

    mixed = jnp.matmul(by_band(jnp.where(known, found.values, 0)), basis, precision="highest")
    # A coefficient mixes all bands, so that it is known where all of them are.
    known = jnp.broadcast_to(by_band(known).all(axis=-1, keepdims=True), mixed.shape)
    if observation.present is not None:
        known = known & jnp.asarray(observation.present)[:, None, None, None, None]
    shape = found.values.shape
    return Summary(mixed.reshape(shape), known.reshape(shape).astype(jnp.float32))


def cosine_basis(count: int) -> Float[np.ndarray, "C C"]:
    """Returns the cosines of DCT-II: column k has k half waves over the bands; not normalised."""
    return np.cos(np.pi * np.outer(np.arange(count) + 0.5, np.arange(count)) / count).astype(np.float32)


def _of_image(
    values: Float[Array, "B C H W"], valid: Bool[Array, "B C H W"], sensor: Sensor, grid: tuple[int, int]
) -> Summary:
    pixels = sensor.subpatch_pixels

    def cut(x: jax.Array) -> Float[Array, "B N n P C"]:
        x = split_patches(x, grid, pixels)
        return x.reshape(*x.shape[:3], pixels**2, sensor.num_bands)

    mean, std = moments(Summary(cut(values), cut(valid.astype(jnp.float32))), (3,))
    return Summary(jnp.concatenate([mean.values, std], axis=-1), jnp.tile(mean.weights, (1, 1, 1, 2)))


def _of_series(
    observation: Observation, values: Float[Array, "B T C H W"], valid: Bool[Array, "B T C H W"], grid: tuple[int, int]
) -> Summary:
    season = jnp.asarray(observation.dates) % DAYS * SEASONS // DAYS
    if observation.date_mask is not None:
        valid = valid & jnp.asarray(observation.date_mask)[:, :, None, None, None]
    # The year, then each season: one sort of all takes less time to compile than one for each.
    groups = [jnp.ones_like(season, bool), *(season == number for number in range(SEASONS))]
    medians, known = _medians(values, valid[:, None] & jnp.stack(groups, axis=1)[..., None, None, None])
    medians = jnp.concatenate([medians[:, :1], medians[:, 1:] - medians[:, :1]], axis=1)

    def cut(maps: Float[Array, "B G C H W"]) -> Float[Array, "B N n F"]:
        return split_patches(maps.reshape(maps.shape[0], -1, *maps.shape[3:]), grid, 1)

    return Summary(cut(medians), cut(known).astype(jnp.float32))


def _medians(
    values: Float[Array, "B T C H W"], valid: Bool[Array, "B G T C H W"]
) -> tuple[Float[Array, "B G C H W"], Bool[Array, "B G C H W"]]:
    """Returns the medians of each group's valid dates, of an even number the lower one, and where there are any."""
    count = valid.sum(axis=2)
    ordered = jnp.sort(jnp.where(valid, values[:, None], jnp.inf), axis=2)
    median = jnp.take_along_axis(ordered, (jnp.maximum(count, 1) - 1)[:, :, None] // 2, axis=2)[:, :, 0]
    return jnp.where(count > 0, median, 0), count > 0


def standardise(summary: Summary) -> Summary:
    """Returns a summary with mean 0 and standard deviation 1 of each coefficient over the batch's sub-patches."""
    mean, std = moments(summary, (0, 1, 2))
    return summary.replace(values=(summary.values - mean.values[None, None, None]) / std[None, None, None])


def moments(summary: Summary, axes: tuple[int, ...]) -> tuple[Summary, Array]:
    """Returns mean, with weight 1 where any value is known, and standard deviation over some axes."""
    count = summary.weights.sum(axis=axes, keepdims=True)
    known = summary.weights > 0
    mean = jnp.where(known, summary.values, 0).sum(axis=axes, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.where(known, jnp.square(summary.values - mean), 0).sum(axis=axes, keepdims=True)
    std = jnp.sqrt(squares / jnp.maximum(count, 1) + MIN_VARIANCE)
    squeeze = lambda x: jnp.squeeze(x, axes)  # noqa: E731
    return Summary(squeeze(mean), squeeze((count > 0).astype(jnp.float32))), squeeze(std)


def _patch_means(summary: Summary) -> Summary:
    return moments(summary, (2,))[0]


def _take(patches: Summary, index: jax.Array) -> Summary:
    """Returns the summaries of the target places, (k, B, m, F)."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x[None], index[..., None], axis=2), patches)
