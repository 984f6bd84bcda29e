"""Finished runs, read back from their folders. The files may be anybody's, so nothing in them is taken on trust."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from anysat_jax.downstream.task import METRICS, Task
from anysat_jax.report import paper

LONGEST_TEXT = 160
SUMMARY = "summary.json"
OF_A_RUN = ("checkpoints", "run.lock", "status.json", "metrics.csv")  # what a run leaves before it ends
OF_A_SEED = ("seed", "fraction_seed", "init", "workdir", "root", "folder", "num_workers", "watchdog_seconds", "profile")
"""Values of a config in which runs may differ and still be repetitions of one experiment."""


class BrokenRun(ValueError):
    """A run cannot be shown; the message is a sentence that names the file."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the results page says of a run.

    Attributes:
      label: the folder's name, with a number where several have the same.
      folder: where the run is; never shown.
      name, job, mode, row: as in the config; `row` is the id of a row of the paper's tables, or "".
      start: in words, what the network started from.
      seed: of the run.
      fraction: share of the training labels that was used, in (0, 1].
      synthetic: whether the tiles were made up, so that the scores say nothing about the dataset.
      task: what was learned, as far as it is shown.
      split: the split of `scores`: "test", or "val" where the dataset has no test split.
      scores: by metric, as measured: shares in [0, 1], errors in the task's unit.
      neighbours: scores of the nearest-neighbour probe on the same split; empty where there was none.
      confusion: (K, K) counts with the truth in the rows, (K, 2, 2) for several labels a tile, None for a regression.
      best_epoch: of the checkpoint that was scored; None where nothing was trained.
      commit, date: of the code and of the run's end; "" where unknown.
      seconds: the run took; nan where unknown.
      settings: digest of the config without what repetitions may differ in.
    """

    label: str
    folder: pathlib.Path
    name: str
    job: str
    mode: str
    row: str
    start: str
    seed: int
    fraction: float
    synthetic: bool
    task: Task
    split: str
    scores: Mapping[str, float]
    neighbours: Mapping[str, float]
    confusion: Int[np.ndarray, "K ..."] | None
    best_epoch: int | None
    commit: str
    date: str
    seconds: float
    settings: str


def read_runs(folders: Sequence[pathlib.Path]) -> tuple[list[Run], list[str]]:
    """Reads every run that can be read; a folder that is given twice counts once.

    Returns:
      The runs, and a sentence about each of the others.
    """
    runs, problems = [], []
    for folder, label in _labels(folders).items():
        try:
            runs.append(read_run(folder, label))
        except BrokenRun as error:
            problems.append(str(error))
    return runs, problems


def read_run(folder: pathlib.Path, label: str) -> Run:
    """A run from its summary.json.

    Raises:
      BrokenRun: the run is not finished, or the file is not what a run of fine-tuning, probing or evaluation writes.
    """
    where = f"{label}/{SUMMARY}"
    values = _read_json(folder / SUMMARY, where)
    try:
        return _make_run(folder, label, values)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"has no value {error}" if isinstance(error, KeyError) else f"cannot be used: {clean(error)}"
        raise BrokenRun(f"{where} {reason}; run the fine-tuning, probing or evaluation again.") from None


def clean(text: Any) -> str:
    """A text of a file on one line, without control characters and not too long."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"


def _labels(folders: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    labels: dict[pathlib.Path, str] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        name = clean(folder.name) or "run"
        label = next(
            text for i in range(len(labels) + 1) if (text := f"{name} ({i + 1})" if i else name) not in labels.values()
        )
        labels[folder] = label
    return labels


def _read_json(path: pathlib.Path, where: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenRun(f"{where} is not there: {_why_not(path.parent)}.") from None
    except NotADirectoryError:
        raise BrokenRun(
            f"{where.removesuffix(f'/{SUMMARY}')} is a file: give the folder of a run (--workdir)."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRun(f"{where} cannot be read as JSON: {type(error).__name__}.") from None
    if not isinstance(values, dict) or "task" not in values:
        raise BrokenRun(f"{where} has no 'task': it is not of a fine-tuning, probing or evaluation run.")
    return values


def _why_not(folder: pathlib.Path) -> str:
    """Why a folder has no summary."""
    if not os.path.isdir(folder):
        return "there is no such folder"
    if any(os.path.exists(folder / name) for name in OF_A_RUN):
        return "the run is not finished; start it again, and it goes on"
    return "the folder is not one of a run"


def _make_run(folder: pathlib.Path, label: str, values: dict[str, Any]) -> Run:
    task = _read_task(values["task"])
    split, scores = _read_scores(task, values["scores"])
    about, config = values.get("provenance") or {}, values.get("config") or {}
    return Run(
        label=label,
        folder=folder,
        name=clean(values["name"]),
        job=clean(values["job"]),
        mode=clean(values["mode"]),
        row=clean(values.get("row") or ""),
        start=_start(values.get("init") or {}),
        seed=int(values["seed"]),
        fraction=_fraction(values.get("fraction", 1.0)),
        synthetic=bool((config.get("data") or {}).get("fake_tiles")),
        task=task,
        split=split,
        scores=scores,
        neighbours=_read_neighbours(task, values.get("knn") or {}, split),
        confusion=_read_confusion(task, (values.get("confusion") or {}).get(split)),
        best_epoch=_optional_int((values.get("best") or {}).get("epoch")),
        commit=_commit(about),
        date=clean(about.get("date") or ""),
        seconds=_number(about.get("seconds"), "provenance.seconds"),
        settings=_settings(config),
    )


def _read_task(values: dict[str, Any]) -> Task:
    """What of a task is shown; without a regression's offset and scale, in which repetitions may differ."""
    try:
        task = Task.from_json(values)
    except (TypeError, AttributeError):
        raise ValueError("'task' is not a task") from None
    if task.kind not in METRICS or task.metric not in METRICS[task.kind] or task.level not in ("tile", "dense"):
        raise ValueError(f"there is no task of kind {task.kind!r}, level {task.level!r} and metric {task.metric!r}")
    return Task(
        dataset=clean(task.dataset),
        title=clean(task.title or task.dataset),
        level=task.level,
        kind=task.kind,
        classes=tuple(clean(name) for name in task.classes),
        colours=tuple(clean(colour) for colour in task.colours),
        metric=task.metric,
        unit=clean(task.unit),
    )


def _read_scores(task: Task, scores: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The scores on the test split, or else on the validation split."""
    split = next((name for name in ("test", "val") if scores.get(name)), None)
    if split is None:
        raise ValueError("there are scores of neither the split 'test' nor 'val'")
    return split, _by_metric(task, scores[split], f"scores.{split}")


def _read_neighbours(task: Task, values: dict[str, Any], split: str) -> dict[str, float]:
    found = values.get(split) or {}
    return _by_metric(task, found, f"knn.{split}") if found else {}


def _by_metric(task: Task, values: dict[str, Any], where: str) -> dict[str, float]:
    return {name: _number(values.get(name), f"{where}.{name}") for name in METRICS[task.kind]}


def _read_confusion(task: Task, values: Any) -> Int[np.ndarray, "K ..."] | None:
    if values is None or task.kind == "regression":
        return None
    counts, classes = np.asarray(values), len(task.classes)
    shape = (classes, 2, 2) if task.kind == "multi_label" else (classes, classes)
    if counts.shape != shape or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"the confusion matrix must be {shape} counts")
    return counts


def _start(init: dict[str, Any]) -> str:
    """Kind and name of the initial weights, without the folders above."""
    kind = clean(init.get("kind") or "unknown")
    name = clean(str(init.get("source") or "").replace("\\", "/").rstrip("/").rpartition("/")[2])
    words = {"none": "random", "run": "run", "export": "export", "published": "published weights"}
    return words.get(kind, kind) if kind == "none" or not name else f"{words.get(kind, kind)} {name}"


def _commit(about: dict[str, Any]) -> str:
    commit = clean(about.get("commit") or "")[:9]
    return f"{commit} and changes" if commit and about.get("dirty") else commit


def _number(value: Any, where: str) -> float:
    """A number, nan for None."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where} = {value!r} is no number")
    return float(value)


def _fraction(value: Any) -> float:
    if not 0 < (share := _number(value, "fraction")) <= 1:
        raise ValueError(f"fraction = {share:g} is not in (0, 1]")
    return share


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _settings(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_without(config), sort_keys=True).encode()).hexdigest()


def _without(value: Any) -> Any:
    """A config without what repetitions may differ in."""
    if not isinstance(value, dict):
        return value
    return {key: _without(inner) for key, inner in value.items() if key not in OF_A_SEED}


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
