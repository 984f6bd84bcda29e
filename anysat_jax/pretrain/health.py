"""Are the teacher's features alive? Measures that fall, or rise, long before a collapse shows in the losses.

The vectors are those that the student must predict, normalised over their channels. Positions alone can make patches
differ, so two of the measures ask how they differ between tiles at the same position, which only the content can do.

The effective rank is the participation ratio (tr C)^2 / tr(C^2) of the covariance C: 1 where all variance lies along
one direction, k where it is even over k directions. It is read from the Gram matrix of a few vectors without
eigenvalues, whose iterations would be slow to compile and to run on accelerators, in every program of the step.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from anysat_jax.pretrain.losses import normalise

MEASURES = ("rank", "rank_tiles", "variance", "cosine")
MAX_VECTORS, MAX_TILES = 256, 64  # looked at, of a batch


def feature_health(patches: Float[Array, "B N D"]) -> dict[str, Float[Array, ""]]:
    """Rank, variance and similarity of a batch's patch vectors, float32 scalars. Traceable, the same on any mesh.

    A few vectors are looked at (see `chosen_vectors`), so that this costs next to nothing. Ranks depend on how many
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
    # On a mesh the tiles are cut over devices: they are only picked from where there are too many.
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
    """(tr G)^2 / tr(G^2) of the Gram matrix G of B * N vectors, whose non-zero eigenvalues are the covariance's."""
    gram = jnp.einsum("bnd,cmd->bncm", centred, centred)
    trace = jnp.square(centred).sum()
    return jnp.square(trace) / jnp.maximum(jnp.square(gram).sum(), 1e-12)


def chosen_vectors(num_tiles: int, num_places: int) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "n"]]:
    """Tiles and positions whose vectors are looked at, spread evenly; fixed when the step is compiled."""
    tiles = min(num_tiles, MAX_TILES)
    places = min(num_places, MAX_VECTORS // tiles)
    return _spread(num_tiles, tiles), _spread(num_places, places)


def _spread(total: int, chosen: int) -> Int[np.ndarray, "chosen"]:
    return np.floor((np.arange(chosen) + 0.5) * total / chosen).astype(np.int32)
