"""A head that starts as the best one on the frozen encoder: the end of a probe, the beginning of a fine-tuning.

Fine-tuning from there (Kumar et al. 2022, "Fine-tuning can distort pretrained features") does not first spoil the
encoder with the gradients of a random head.
"""

import dataclasses

import numpy as np
from absl import logging
from jaxtyping import Float, Shaped

from anysat_jax.adapt.solve import solve_head
from anysat_jax.train.errors import ConfigError
from anysat_jax.tuning.adaptation import Data, Start
from anysat_jax.tuning.cached_probe import features_of
from anysat_jax.tuning.vitals import Vitals

MAX_ROWS = 100_000  # of each part; more pixels change a linear layer little


def with_solved_head(data: Data, start: Start, vitals: Vitals | None = None) -> Start:
    """The start with the head that does best on frozen features, if `config.head_start` asks for that.

    Raises:
      DataError: a tile cannot be read.
      ConfigError: the head is not linear, answers several pixels at once, or cannot be solved.
    """
    if data.config.head_start != "solved":
        return start
    pixels = data.task.pixels_per_subpatch if data.task.level == "dense" else 1
    if start.network.head.kind != "linear" or pixels > 1:
        raise ConfigError(
            f"head_start = 'solved' needs a linear head with one answer a sub-patch; head.kind is "
            f"{start.network.head.kind!r}, with {pixels} x {pixels} answers: set head_start = 'random'"
        )
    sizes = {"train": data.options.patch_sizes[0], "val": data.patch_sizes[0]}
    parts = [_rows(data, start, split, size, vitals) for split, size in sizes.items()]
    try:
        head, penalty, loss = solve_head(data.task, *parts)
    except ValueError as error:
        raise ConfigError(f"{data.task.title}: {error}; set head_start = 'random'") from error
    logging.info("head solved on %d frozen features: loss %.4f on val, penalty %g", len(parts[0][0]), loss, penalty)
    return dataclasses.replace(start, params={**start.params, "head": head})


def _rows(
    data: Data, start: Start, split: str, patch_size: float, vitals: Vitals | None
) -> tuple[Float[np.ndarray, "N F"], Shaped[np.ndarray, "N *K"]]:
    """Features and labels of tiles, or of the pixels of all maps, at most `MAX_ROWS`, chosen by the seed."""
    (kept,) = features_of(data, start, split, (patch_size,), vitals).sizes.values()
    features, labels = np.asarray(kept.features), np.asarray(kept.labels)
    if data.task.level == "dense":
        features, labels = features.reshape(-1, features.shape[-1]), labels.reshape(-1)
    if len(features) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(data.config.seed).choice(len(features), MAX_ROWS, replace=False))
        features, labels = features[chosen], labels[chosen]
    return features.astype(np.float32), labels
