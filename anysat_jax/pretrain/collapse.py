"""Hook of the monitor that warns when the teacher's features collapse."""

import collections

import numpy as np
from absl import logging

from anysat_jax.pretrain.config import HealthConfig
from anysat_jax.train.monitor import Finished
from anysat_jax.train.record import RunRecord

WINDOW = 10  # steps of one kind of batch in a mean: single batches vary too much
WATCHED = ("rank_tiles", "variance", "cosine")
MEANING = "the features tell patches and tiles apart less and less; see feature_* in metrics.csv, and docs/GLOSSARY.md"


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
        found = {"variance": ""}
        if variance < config.min_variance:
            found["variance"] = (
                f"the variance fell to {variance:.2g}, below health.min_variance = {config.min_variance:g}"
            )
        if not np.isnan(rank):
            start = self._record.first_ranks.setdefault(finished.kind, rank)
            found |= {"rank": "", "cosine": ""}
            if rank < config.min_rank_share * start:
                found["rank"] = (
                    f"the rank between tiles fell from {start:.2f} to {rank:.2f}, below health.min_rank_share = "
                    f"{config.min_rank_share:g} of its start"
                )
            if cosine > config.max_cosine:
                found["cosine"] = (
                    f"the cosine between tiles rose to {cosine:.4f}, above health.max_cosine = {config.max_cosine:g}"
                )
        for measure, problem in found.items():
            key = (finished.kind, measure)
            if problem and key not in self._bad:
                self._record.warnings += 1
                logging.warning("step %d, %s: %s; %s", finished.step, finished.kind, problem, MEANING)
            (self._bad.add if problem else self._bad.discard)(key)
