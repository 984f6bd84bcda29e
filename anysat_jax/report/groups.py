"""Repetitions: runs of one experiment with other seeds, and the mean and spread of their scores."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from anysat_jax.report import paper
from anysat_jax.report.runs import Run

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, sorted by it.

    Attributes:
      runs: at least one.
    """

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that stands for all where only one can be shown."""
        return self.runs[0]

    @property
    def paper_row(self) -> str:
        """The id of the paper's row that the runs repeat; "" where their data or labels are not the paper's."""
        run = self.first
        known = run.row in set(paper.row_ids())
        return run.row if known and run.fraction == 1.0 and not run.synthetic else ""

    def score(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation of a metric; nan where any run lacks it, and for the spread of one."""
        return mean_and_spread([run.scores.get(metric, math.nan) for run in self.runs])

    def neighbours_score(self, metric: str) -> tuple[float, float]:
        """The same of the nearest-neighbour probe."""
        return mean_and_spread([run.neighbours.get(metric, math.nan) for run in self.runs])

    @property
    def seconds(self) -> float:
        """Mean duration of a run."""
        return statistics.fmean(run.seconds for run in self.runs)

    def words(self, of: Callable[[Run], str]) -> str:
        """What is said of the runs, each saying once."""
        return ", ".join(dict.fromkeys(text for run in self.runs if (text := of(run))))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the spread of a single value is nan."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups runs of one experiment, the largest groups of a row first, otherwise in the order of the runs.

    Runs with the same settings that started from different weights are repetitions if their seeds differ too; where
    a seed occurs twice, each start is an experiment of its own.
    """
    groups = []
    for same in split(runs, _experiment):
        seeds = [run.seed for run in same]
        groups += [same] if len(set(seeds)) == len(seeds) else split(same, lambda run: run.start)
    made = [Group(tuple(sorted(group, key=lambda run: (run.seed, run.label)))) for group in groups]
    return sorted(made, key=lambda group: -len(group.runs))


def by_row(groups: Iterable[Group]) -> Mapping[str, list[Group]]:
    """The groups of each of the paper's rows."""
    rows: dict[str, list[Group]] = {}
    for group in groups:
        rows.setdefault(group.paper_row, []).append(group)
    return rows


def _experiment(run: Run) -> Hashable:
    kind = run.start.partition(" ")[0]
    return run.name, run.job, run.mode, run.row, run.fraction, run.synthetic, run.task, run.split, kind, run.settings


def split(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """The items in lists of the same key, in the order of their first ones."""
    parts: dict[Hashable, list[T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())
