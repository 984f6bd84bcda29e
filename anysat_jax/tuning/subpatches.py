"""Some sub-patches of a tile in place of all: so that the features of dense tasks fit on a disk."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Shaped

Array = Any  # numpy on the host, jax on the device


def label_blocks(labels: Shaped[np.ndarray, "B H W"], side: int) -> Shaped[np.ndarray, "B n p p"]:
    """Label maps cut into the sub-patches' squares of `side` pixels, raster order."""
    batch, height, width = labels.shape
    blocks = labels.reshape(batch, height // side, side, width // side, side).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(batch, -1, side, side)


def draw_subpatches(
    labelled: Bool[np.ndarray, "B n"], index: Int[np.ndarray, "B"], count: int
) -> Int32[np.ndarray, "B m"]:
    """Numbers of `count` sub-patches of each tile, or all of them: at random, those with a label first.

    The draw depends on the tile alone, so that the same ones are taken at every patch size and in every batch.
    """
    order = np.stack([np.random.default_rng(int(tile)).permutation(labelled.shape[1]) for tile in index])
    return np.argsort(order + labelled.shape[1] * ~labelled, axis=1)[:, :count].astype(np.int32)


def take_subpatches(features: Float[Array, "B h w F"], chosen: Int[Array, "B m"]) -> Float[Array, "B m 1 F"]:
    """Some sub-patches of each map, as a map of one column."""
    flat = features.reshape(features.shape[0], -1, features.shape[-1])
    return jnp.take_along_axis(flat, chosen[:, :, None], axis=1)[:, :, None]
