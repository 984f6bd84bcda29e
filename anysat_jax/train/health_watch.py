"""Looks at the features' health while a run trains, and warns when they collapse."""

import collections
from typing import Any, Self

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from anysat_jax.train.ledger import Finished
from anysat_jax.train.summary import RunRecord

WINDOW = 10  # steps of one kind of batch whose mean is looked at: a single batch says little
MEANING = "the features tell tiles apart less and less; see feature_* in metrics.csv, and docs/GLOSSARY.md"


class HealthWatch:
    """Compares the teacher's features with what they were at the start, for each kind of batch by itself.

    What they were is kept in the run's record, so that a run that goes on still knows it. A warning comes once, and
    again only after the value was good in between.
    """

    def __init__(self, record: RunRecord, min_rank_share: float, max_cosine: float):
        """Takes the bounds.

        Args:
          record: of the run; gets the ranks at the start, and the warnings.
          min_rank_share: warns where the rank between tiles falls below this share of its start.
          max_cosine: warns where the cosine between tiles rises above.
        """
        self._record, self._min_share, self._max_cosine = record, min_rank_share, max_cosine
        self._recent: dict[str, collections.deque[dict[str, float]]] = {}
        self._bad: set[tuple[str, str]] = set()

    @classmethod
    def of(cls, config: ConfigDict, record: RunRecord) -> Self:
        """From the config's section `health`."""
        return cls(record, config.health.min_rank_share, config.health.max_cosine)

    def __call__(self, finished: Finished) -> None:
        """Looks at one step. Batches of a single tile, which have no other to compare with, are passed over."""
        values = {name: float(finished.metrics[f"feature_{name}"]) for name in ("rank_tiles", "cosine")}
        if not np.isfinite(list(values.values())).all():
            return
        recent = self._recent.setdefault(finished.kind, collections.deque(maxlen=WINDOW))
        recent.append(values)
        if len(recent) == WINDOW:
            self._judge(finished, {name: float(np.mean([one[name] for one in recent])) for name in values})

    def _judge(self, finished: Finished, mean: dict[str, float]) -> None:
        start = self._record.first_ranks.setdefault(finished.kind, mean["rank_tiles"])
        rank, cosine = mean["rank_tiles"], mean["cosine"]
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
