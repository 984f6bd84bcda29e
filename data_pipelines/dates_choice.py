"""Which dates of a series are kept, and to how many they are padded."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, Int

from data_pipelines.options import Sampling


def most_dates(count: int, sampling: Sampling, training: bool) -> int:
    """How many of `count` dates are kept at most: all but the clouded ones, which nobody has counted, are."""
    if training:
        count -= int(count * sampling.temporal_dropout + 1e-9)
    return min(count, sampling.limit) if sampling.limit else count


def choose_dates(
    count: int,
    sampling: Sampling,
    rng: np.random.Generator | None,
    cloud: Float32[np.ndarray, "T"] | None = None,
) -> Int[np.ndarray, "t"]:
    """Which of `count` dates to keep, in time order.

    First those go that are clouded too much, but for the clearest; of the rest, training draws as many as temporal
    dropout and limit leave, and evaluation takes as many as the limit allows, evenly spread.

    Args:
      count: dates that there are.
      sampling: the limits.
      rng: draws; None for evaluation.
      cloud: percent of each date, in the mean over the sample.
    """
    clear = np.arange(count) if cloud is None or sampling.max_cloud is None else _clear(cloud, sampling.max_cloud)
    limit = most_dates(len(clear), sampling, rng is not None)
    if len(clear) <= limit:
        return clear
    if rng is None:
        return clear[np.round(np.linspace(0, len(clear) - 1, limit)).astype(np.int64)]
    return clear[np.sort(rng.choice(len(clear), limit, replace=False))]


def _clear(cloud: Float32[np.ndarray, "T"], max_cloud: float) -> Int[np.ndarray, "t"]:
    clear = np.flatnonzero(cloud <= max_cloud)
    return clear if len(clear) else np.asarray([cloud.argmin()])


def padded_lengths(
    longest: Mapping[str, int],
    sampling: Sampling,
    training: bool,
    counts: Mapping[str, Int[np.ndarray, "B"]] | None = None,
) -> dict[str, int]:
    """Length of the dates axis of each series in a batch.

    With buckets, one bucket serves all sensors: the smallest that holds the longest series of the batch. So a (dataset,
    patch size) has no more shapes than there are buckets.

    Args:
      longest: dates of the longest series of the dataset, for each series.
      sampling: the limits and buckets.
      training: whether temporal dropout shortens the series.
      counts: dates of each of the batch's tiles, of all processes, for each series; without buckets None will do.
    """
    caps = {name: max(1, most_dates(length, sampling, training)) for name, length in longest.items()}
    if not sampling.date_buckets or counts is None:
        return caps
    need = max((most_dates(int(count.max()), sampling, training) for count in counts.values()), default=0)
    bucket = next(bucket for bucket in sampling.date_buckets if bucket >= need)
    return {name: min(cap, bucket) for name, cap in caps.items()}
