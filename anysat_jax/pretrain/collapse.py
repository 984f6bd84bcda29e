"""Health of the teacher's features: measures of each step, and the hook that warns when the features collapse."""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int

from anysat_jax.train.config import FRACTION, Section, checked
from anysat_jax.train.monitor import Finished
from anysat_jax.train.record import RunRecord

MEASURES = ("rank", "rank_tiles", "variance", "cosine", "position")
MAX_VECTORS, MAX_TILES = 256, 64  # measured, of a batch


def feature_health(vectors: Float[Array, "B N D"]) -> dict[str, Float[Array, ""]]:
    """Measures rank, variance and similarity of a batch's patch vectors: float32 scalars, traceable, equal on any mesh.

    Ranks depend on how many vectors there are, and all measures on the data: compare steps of one data set, patch size
    and batch size.

    Args:
      vectors: of N patches of B tiles, as of `sampled_vectors`, normalised.

    Returns:
      "rank": effective rank of the vectors around their mean; at most D and B * N - 1.
      "rank_tiles": the same, around the mean of each position over the tiles; at most D and (B - 1) * N.
      "variance": mean over channels of the variance, which normalisation bounds: 0 where all vectors are the same, 1
        where they cancel out.
      "cosine": mean cosine between vectors of different tiles at the same position: 1 where the content does not
        matter.
      "position": fraction of the variance that the position in the tile explains: 1 where the content does not matter.
      With a single tile, "rank_tiles", "cosine" and "position" are nan. Where nothing varies, a rank is 0.
    """
    count, mean = len(vectors), vectors.mean(axis=0, keepdims=True)
    around_all = vectors - mean.mean(axis=1, keepdims=True)
    around_place = vectors - mean
    # The sum over all pairs of tiles is |sum|^2, of which the pairs of a tile with itself are |vector|^2.
    same = jnp.square(vectors).sum(axis=-1).mean()
    pairs = jnp.square(mean).sum(axis=-1).mean() * count**2 - same * count
    variance = jnp.square(around_all).mean()
    # The mean of a place is that of `count` tiles, so that the variance around it is too small by 1 / count.
    content = jnp.square(around_place).mean() * count / max(count - 1, 1)
    alone = jnp.float32(jnp.nan)
    return {
        "rank": effective_rank(around_all),
        "rank_tiles": effective_rank(around_place) if count > 1 else alone,
        "variance": variance,
        "cosine": pairs / (count * (count - 1)) / jnp.maximum(same, 1e-12) if count > 1 else alone,
        "position": jnp.maximum(1 - content / jnp.maximum(variance, 1e-12), 0) if count > 1 else alone,
    }


def effective_rank(centred: Float[Array, "B N D"]) -> Float[Array, ""]:
    """Computes (tr G)^2 / tr(G^2) of the Gram matrix G of B * N vectors; its eigenvalues are the covariance's."""
    # Without eigenvalues, whose decomposition is slow on accelerators and cannot be cut over a mesh.
    gram = jnp.einsum("bnd,cmd->bncm", centred, centred)
    trace = jnp.square(centred).sum()
    return jnp.square(trace) / jnp.maximum(jnp.square(gram).sum(), 1e-12)


def sampled_vectors(patches: Float[Array, "B N D"]) -> Float[Array, "b n D"]:
    """Returns a few vectors of a batch, so that measuring them costs next to nothing."""
    tiles, places = chosen_vectors(*patches.shape[:2])
    # On a mesh the tiles are sharded, and indexing them moves data: only where there are too many.
    return patches[:, places] if len(tiles) == len(patches) else patches[:, places][tiles]


def chosen_vectors(num_tiles: int, num_places: int) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "n"]]:
    """Returns the tiles and positions whose vectors are measured, spread evenly; fixed when the step is compiled."""

    def spread(total: int, chosen: int) -> Int[np.ndarray, "chosen"]:
        return np.floor((np.arange(chosen) + 0.5) * total / chosen).astype(np.int32)

    tiles = min(num_tiles, MAX_TILES)
    return spread(num_tiles, tiles), spread(num_places, min(num_places, MAX_VECTORS // tiles))


@dataclasses.dataclass(frozen=True)
class HealthConfig(Section):
    """The section `health`: bounds on the teacher's features beyond which a run warns that they collapse."""

    NAME = "health"
    min_rank_share: float = checked(FRACTION, 0.2)  # least rank between tiles, as a fraction of that at the start
    max_cosine: float = checked(FRACTION, 0.999)  # largest cosine similarity between tiles at the same position
    # Absolute, since the variance of healthy runs falls to a twentieth of that at the start before it rises.
    min_variance: float = checked(FRACTION, 1e-3)  # least variance over all patches


WINDOW = 10  # steps of one kind of batch in a mean: single batches vary too much
WATCHED = ("rank_tiles", "variance", "cosine")
MEANING = (
    "features of different patches and tiles become alike; pretrain.objective=reconstruction, whose targets are raw "
    "values, or a lower optimizer.learning_rate prevents it; see feature_* in metrics.csv, and docs/GLOSSARY.md"
)


class CollapseMonitor:
    """Warns of collapsing features, for each kind of batch by itself.

    The rank is compared with that at the start, which the run's record keeps across restarts. A warning is repeated
    only after the value was good in between.
    """

    def __init__(self, config: HealthConfig, record: RunRecord):
        """Takes the bounds, and the run's record for the ranks at the start and the number of warnings."""
        self._config, self._record = config, record
        self._recent: dict[str, collections.deque[dict[str, float]]] = {}
        self._bad: set[tuple[str, str]] = set()

    def __call__(self, finished: Finished) -> None:
        """Adds a step. Of batches of a single tile, which cannot be compared with others, only the variance counts."""
        values = {name: float(finished.metrics[f"feature_{name}"]) for name in WATCHED}
        if not np.isfinite(values["variance"]):
            return
        recent = self._recent.setdefault(finished.kind, collections.deque(maxlen=WINDOW))
        recent.append(values)
        if len(recent) == WINDOW:
            self._check(finished, {name: float(np.mean([one[name] for one in recent])) for name in values})

    def _check(self, finished: Finished, mean: dict[str, float]) -> None:
        config, variance, rank, cosine = self._config, mean["variance"], mean["rank_tiles"], mean["cosine"]
        found = {
            "variance": (
                variance < config.min_variance,
                f"the variance fell to {variance:.2g}, below health.min_variance = {config.min_variance:g}",
            )
        }
        if not np.isnan(rank):  # of several tiles
            start = self._record.first_ranks.setdefault(finished.kind, rank)
            found["rank"] = (
                rank < config.min_rank_share * start,
                f"the rank between tiles fell from {start:.2f} to {rank:.2f}, below health.min_rank_share = "
                f"{config.min_rank_share:g} of its start",
            )
            found["cosine"] = (
                cosine > config.max_cosine,
                f"the cosine between tiles rose to {cosine:.4f}, above health.max_cosine = {config.max_cosine:g}",
            )
        for measure, (is_bad, problem) in found.items():
            key = (finished.kind, measure)
            if is_bad and key not in self._bad:
                self._record.warnings += 1
                logging.warning("step %d, %s: %s; %s", finished.step, finished.kind, problem, MEANING)
            (self._bad.add if is_bad else self._bad.discard)(key)
