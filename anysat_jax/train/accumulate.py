"""Gradient accumulation: one step's batch in micro-batches, one after the other, whose gradients are averaged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from anysat_jax.batch import Batch
from anysat_jax.model.partitioning import BATCH_AXES, constrain
from anysat_jax.pretrain.masks import PatchMasks
from anysat_jax.pretrain.objective import Metrics, Params

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
