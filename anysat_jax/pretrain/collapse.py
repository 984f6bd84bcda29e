"""Looks at the features' health while a run trains, and warns when they collapse."""

import collections
from typing import Any, Self

import numpy as np
from absl import logging

from anysat_jax.train.monitor import Finished
from anysat_jax.train.record import RunRecord

WINDOW = 10  # steps of one kind of batch whose mean is looked at: a single batch says little
WATCHED = ("rank_tiles", "variance", "cosine")
MEANING = "the features tell patches and tiles apart less and less; see feature_* in metrics.csv, and docs/GLOSSARY.md"


class HealthWatch:
    """Judges the teacher's features, for each kind of batch by itself; their rank against what it was at the start.

    That is kept in the run's record, so that a run that goes on still knows it. A warning comes once, and again only
    after the value was good in between.
    """

    def __init__(self, record: RunRecord, min_rank_share: float, max_cosine: float, min_variance: float):
        """Takes the bounds.

        Args:
          record: of the run; gets the ranks at the start, and the warnings.
          min_rank_share: warns where the rank between tiles falls below this share of its start.
          max_cosine: warns where the cosine between tiles rises above.
          min_variance: warns where the variance falls below. A bound on its share of the start would warn of healthy
            runs, in which it falls to a twentieth before it rises.
        """
        self._record, self._min_share, self._max_cosine = record, min_rank_share, max_cosine
        self._min_variance = min_variance
        self._recent: dict[str, collections.deque[dict[str, float]]] = {}
        self._bad: set[tuple[str, str]] = set()

    @classmethod
    def of(cls, config: Any, record: RunRecord) -> Self:
        """From the config's section `health`."""
        health = config.health
        return cls(record, health.min_rank_share, health.max_cosine, health.min_variance)

    def __call__(self, finished: Finished) -> None:
        """Looks at one step. Of batches of a single tile, which has no other to compare with, only at the variance."""
        values = {name: float(finished.metrics[f"feature_{name}"]) for name in WATCHED}
        if not np.isfinite(values["variance"]):
            return
        recent = self._recent.setdefault(finished.kind, collections.deque(maxlen=WINDOW))
        recent.append(values)
        if len(recent) == WINDOW:
            self._judge(finished, {name: float(np.mean([one[name] for one in recent])) for name in values})

    def _judge(self, finished: Finished, mean: dict[str, float]) -> None:
        self._tell(
            finished,
            "variance",
            mean["variance"] < self._min_variance,
            f"the variance fell to {mean['variance']:.2g}, below health.min_variance = {self._min_variance:g}",
        )
        rank, cosine = mean["rank_tiles"], mean["cosine"]
        if np.isnan(rank):
            return
        start = self._record.first_ranks.setdefault(finished.kind, rank)
        self._tell(
            finished,
            "rank",
            rank < self._min_share * start,
            f"the rank between tiles fell from {start:.2f} to {rank:.2f}, below health.min_rank_share = "
            f"{self._min_share:g} of its start",
        )
        self._tell(
            finished,
            "cosine",
            cosine > self._max_cosine,
            f"the cosine between tiles rose to {cosine:.4f}, above health.max_cosine = {self._max_cosine:g}",
        )

    def _tell(self, finished: Finished, measure: str, is_bad: bool, what: Any) -> None:
        key = (finished.kind, measure)
        if is_bad and key not in self._bad:
            self._bad.add(key)
            self._record.warnings += 1
            logging.warning("step %d, %s: %s; %s", finished.step, finished.kind, what, MEANING)
        elif not is_bad:
            self._bad.discard(key)
