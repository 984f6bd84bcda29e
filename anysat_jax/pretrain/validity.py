"""Which patches hold anything to learn from."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from anysat_jax.batch import Batch, Observation
from anysat_jax.model.encoder import is_context
from anysat_jax.model.projectors import split_patches


def valid_patches(batch: Batch) -> Bool[Array, "B M N"] | None:
    """True for the (tile, sensor, patch) with the sensor present and at least one valid pixel; sensors in sorted
    order, context sensors left out. None where no sensor of the batch has a mask that could say otherwise.
    """
    names = tuple(name for name in batch.sensors if not is_context(name))
    masks = [_valid(batch.observations[name], batch.grid) for name in names]
    if all(mask is None for mask in masks):
        return None
    full = jnp.ones((batch.batch_size, batch.grid[0] * batch.grid[1]), bool)
    return jnp.stack([full if mask is None else jnp.broadcast_to(mask, full.shape) for mask in masks], axis=1)


def _valid(observation: Observation, grid: tuple[int, int]) -> Bool[Array, "B N"] | None:
    """One sensor's patches, (B, N) or (B, 1)."""
    present, pixels = observation.present, observation.pixel_mask
    if pixels is None:
        return None if present is None else jnp.asarray(present)[:, None]
    pixels = jnp.asarray(pixels)
    if observation.date_mask is not None:
        pixels = pixels & observation.date_mask[:, :, None, None, None]
    maps = pixels.any(axis=tuple(range(1, pixels.ndim - 2)))
    patches = split_patches(maps[:, None], grid, 1).any(axis=(2, 3))
    return patches if present is None else patches & present[:, None]
