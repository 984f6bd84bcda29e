"""What the student loses beside patches: half of each series' dates, and most sensors of most patches (section 3.3)."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from anysat_jax.batch import Batch, Observation


def drop_dates(batch: Batch, rng: jax.Array) -> Batch:
    """Keeps half of each series' real dates at random, at least one, in their order.

    Series of T (padded) dates come back with max(1, T // 2), so that the student's work halves too.
    """
    observations = {}
    for name, observation in batch.observations.items():
        series = observation.dates is not None and observation.dates.shape[1] > 1
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        observations[name] = _halve(observation, key) if series else observation
    return batch.replace(observations=observations)


def _halve(observation: Observation, rng: jax.Array) -> Observation:
    batch, length = observation.dates.shape
    real = jnp.ones((batch, length), bool) if observation.date_mask is None else observation.date_mask
    half = max(1, length // 2)
    order = jnp.argsort(jnp.where(real, jax.random.uniform(rng, (batch, length)), 2.0), axis=1)[:, :half]
    kept = jnp.maximum(1, real.sum(axis=1, keepdims=True) // 2)
    # The chosen first; sorting the padding behind them keeps dates in order without unmasking any.
    chosen = jnp.arange(half)[None, :] < kept
    order = jnp.sort(jnp.where(chosen, order, order + length), axis=1)
    chosen = order < length
    order = order % length

    def take(array: Array) -> Array:
        return jnp.take_along_axis(array, order.reshape(batch, half, *(1,) * (array.ndim - 2)), axis=1)

    return observation.replace(
        values=take(observation.values),
        dates=take(observation.dates),
        date_mask=chosen & take(real),
        pixel_mask=None if observation.pixel_mask is None else take(observation.pixel_mask),
    )


def keep_tokens(available: Bool[Array, "B M n"], rng: jax.Array) -> Bool[Array, "B M n"]:
    """Which (sensor, patch) tokens stay: at each patch one available sensor at random; of the remaining tokens of a
    tile half are replaced by the mask token.

    Args:
      available: True where the sensor is present and the place is real.

    Returns:
      False for the tokens to replace; what is not available is not replaced.
    """
    first, second = jax.random.split(rng)
    batch, sensors, patches = available.shape
    draw = jnp.where(available, jax.random.uniform(first, available.shape), -1.0)
    stays = jax.nn.one_hot(jnp.argmax(draw, axis=1), sensors, axis=1, dtype=bool)
    rest = (available & ~stays).reshape(batch, sensors * patches)
    draw = jnp.where(rest, jax.random.uniform(second, rest.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(draw, axis=1), axis=1)
    replaced = rest & (rank < rest.sum(axis=1, keepdims=True) // 2)
    return ~replaced.reshape(available.shape)
