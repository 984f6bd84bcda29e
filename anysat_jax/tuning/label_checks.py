"""Whether a prepared dataset's labels can be learnt and measured, asked before the first step.

Preparing a dataset counted every label; nothing is read here but those counts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from anysat_jax.adapt.tasks import Task
from anysat_jax.train.errors import ConfigError
from data_pipelines.tally import NO_LABEL

TRAIN = "train"
SHOWN = 5  # classes that a message names


@dataclasses.dataclass(frozen=True)
class LabelFacts:
    """What is known of a task's labels.

    Attributes:
      task: the task; a regression's has the mean of the training labels as offset and their deviation as scale.
      counts: for each split, tiles or pixels of each class, (K,) int64; for a regression those with a value, (1,).
      mean, std: of a regression's training labels; None for classes.
    """

    task: Task
    counts: dict[str, Int64[np.ndarray, "K"]]
    mean: float | None = None
    std: float | None = None


def check_labels(
    task: Task, report: Mapping[str, Any], splits: Sequence[str], *, allow_absent_classes: bool = False
) -> LabelFacts:
    """Refuses labels that nothing can be learnt from, or that cannot be measured.

    Args:
      task: what is asked.
      report: of the dataset's preparation, as `data_pipelines.preparation_report.read_report` gives it.
      splits: that the run reads; "train" is among them where it trains.
      allow_absent_classes: whether a class may be measured that no training tile shows.

    Raises:
      ConfigError: a split is not there or empty, or has no label of the task; the labels are of other classes than the
        task; or a class of another split is absent from training.
    """
    counts = {split: _counts(task, report, split) for split in splits}
    if TRAIN in splits and task.kind != "regression" and not allow_absent_classes:
        _check_seen_in_training(task, counts)
    if task.kind != "regression" or TRAIN not in splits:
        return LabelFacts(task, counts)
    labels = report["splits"][TRAIN]["labels"][task.level]
    mean, std = labels["mean"], labels["std"]
    return LabelFacts(dataclasses.replace(task, offset=mean, scale=std if std > 0 else 1.0), counts, mean, std)


def _counts(task: Task, report: Mapping[str, Any], split: str) -> Int64[np.ndarray, "K"]:
    """How often each class has a label in a split."""
    there = report["splits"]
    if split not in there:
        raise ConfigError(f"dataset {task.dataset!r} has no split {split!r}; as prepared it has {', '.join(there)}")
    if not there[split]["examples"]:
        raise ConfigError(
            f"split {split!r} of dataset {task.dataset!r} is empty ({there[split]['skipped']} tiles were skipped when "
            "it was prepared); prepare it from data that has some, or leave the split out"
        )
    labels = there[split]["labels"].get(task.level, {})
    counts = _numbers(task, split, labels)
    if not counts.any():
        raise ConfigError(
            f"split {split!r} of dataset {task.dataset!r} has no {task.level} label in any of its "
            f"{there[split]['examples']} tiles; leave it out, or choose another task.level"
        )
    return counts


def _numbers(task: Task, split: str, labels: Mapping[str, Any]) -> Int64[np.ndarray, "K"]:
    """The report's counts in the order of the task's classes."""
    if task.kind == "regression":
        return np.array([labels.get("count", 0)], np.int64)
    names = [name for name in labels if name != NO_LABEL]
    if tuple(names) != task.classes:
        raise ConfigError(
            f"split {split!r} of dataset {task.dataset!r} was prepared with labels of {_some(names)}, and the task has "
            f"{_some(task.classes)}; prepare the dataset again"
        )
    return np.array([labels[name] for name in names], np.int64)


def _check_seen_in_training(task: Task, counts: Mapping[str, Int64[np.ndarray, "K"]]) -> None:
    """Refuses classes that another split has and training has not."""
    for split, found in counts.items():
        absent = [
            name for name, here, seen in zip(task.classes, found, counts[TRAIN], strict=True) if here and not seen
        ]
        if absent:
            raise ConfigError(
                f"split {split!r} of dataset {task.dataset!r} has labels of {_some(absent)}, and {TRAIN!r} has none, "
                "so that no model can learn them; set task.allow_absent_classes to go on nevertheless"
            )


def _some(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{shown}{more}" if names else "no class"
