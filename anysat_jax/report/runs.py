"""Finished runs, read back from their folders, and grouped by experiment. Nothing in the files is taken on trust."""

import dataclasses
import hashlib
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from jaxtyping import Int

from anysat_jax.report import paper

LONGEST_TEXT = 160
SUMMARY = "summary.json"
OF_A_RUN = ("checkpoints", "run.lock", "status.json", "metrics.csv")  # what a run leaves before it ends
OF_A_SEED = ("seed", "fraction_seed", "init", "workdir", "root", "folder", "num_workers", "watchdog_seconds", "profile")
"""Values of a config in which runs may differ and still be repetitions of one experiment."""
IN_UNITS = ("rmse", "mae")  # metrics in the unit of the label
OF_REGRESSION = (*IN_UNITS, "r2")
STARTS = {"none": "random", "run": "run", "export": "export", "published": "published weights"}
T = TypeVar("T")


class BrokenRun(ValueError):
    """A run cannot be shown; the message is a sentence that names the file."""


class TaskInfo(msgspec.Struct, frozen=True):
    """The part of a task that is shown, without a regression's offset and scale, in which repetitions may differ."""

    dataset: str  # its name
    level: Literal["tile", "dense"]  # an answer for each tile, or for each pixel ("dense")
    kind: Literal["class", "multi_label", "regression"]  # one class, several labels, or a number
    metric: str  # the one that the best epoch was chosen by
    title: str = ""  # its title
    classes: tuple[str, ...] = ()  # names
    colours: tuple[str, ...] = ()  # "#rrggbb" for each class, or nothing
    unit: str = ""  # of a regression


class Origin(msgspec.Struct):
    """Section "provenance" of a summary."""

    commit: str | None = None
    dirty: bool | None = None
    date: str | None = None
    seconds: float | None = None


Scores = dict[str, float | None]


class Summary(msgspec.Struct):
    """The part of summary.json that is shown."""

    job: str
    name: str
    mode: str
    seed: int
    task: TaskInfo
    scores: dict[str, Scores | None]
    row: str | None = None
    init: dict[str, Any] | None = None
    fraction: float = 1.0
    best: dict[str, Any] | None = None
    knn: dict[str, Scores | int | None] | None = None
    confusion: dict[str, Any] | None = None
    provenance: Origin | None = None
    config: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of fine-tuning, probing or evaluation."""

    label: str  # the folder's name, with a number if several have the same
    folder: pathlib.Path  # of the run; never shown
    # name, job, mode, row: as in the config; `row` is the id of a row of the paper's tables, or "".
    name: str
    job: str
    mode: str
    row: str
    start: str  # in words, the weights that the network started from
    seed: int  # of the run
    fraction: float  # of the training labels that was used, in (0, 1]
    synthetic: bool  # whether the tiles were made up, so that the scores mean nothing for the dataset
    task: TaskInfo  # of the run
    split: str  # of `scores`: "test", or "val" for a dataset without a test split
    scores: Mapping[str, float]  # by metric: fractions in [0, 1], errors in the task's unit; nan if not measured
    neighbours: Mapping[str, float]  # scores of the nearest-neighbour probe on the same split; empty if there was none
    # (K, K) counts with the truth in the rows, (K, 2, 2) for several labels a tile, None for a regression.
    confusion: Int[np.ndarray, "K ..."] | None
    best_epoch: int | None  # of the checkpoint that was scored; None if nothing was trained
    commit: str  # of the code; "" if unknown
    date: str  # of the run's end; "" if unknown
    seconds: float  # the run took; nan if unknown
    settings: str  # digest of the config without the values in which repetitions may differ


def read_runs(folders: Sequence[pathlib.Path]) -> tuple[list[Run], list[str]]:
    """Returns the runs that can be read, and a sentence about each of the others; a folder given twice counts once."""
    runs, problems, labels = [], [], set()
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        name = clean(folder.name) or "run"
        names = (name, *(f"{name} ({number})" for number in range(2, len(labels) + 2)))
        label = next(text for text in names if text not in labels)
        labels.add(label)
        # One broken run must not hide the others.
        try:
            runs.append(_read_run(folder, label))
        except BrokenRun as error:
            problems.append(str(error))
    return runs, problems


def _read_run(folder: pathlib.Path, label: str) -> Run:
    where = f"{label}/{SUMMARY}"
    values = _read_json(folder / SUMMARY, where)
    try:
        return _make_run(folder, label, msgspec.convert(values, Summary))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BrokenRun(
            f"{where} cannot be used: {clean(error)}; run the fine-tuning, probing or evaluation again."
        ) from None


def clean(text: Any) -> str:
    """Returns a text of a file on one line, without control characters and not too long."""
    # A control character or a line break could change the page around the text.
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"


def _read_json(path: pathlib.Path, where: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = "the folder is not one of a run"
        if not path.parent.is_dir():
            reason = "there is no such folder"
        elif any((path.parent / name).exists() for name in OF_A_RUN):
            reason = "the run is not finished; the same command continues it"
        raise BrokenRun(f"{where} is not there: {reason}.") from None
    except NotADirectoryError:
        raise BrokenRun(
            f"{where.removesuffix(f'/{SUMMARY}')} is a file: give the folder of a run (--workdir)."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRun(f"{where} cannot be read as JSON: {type(error).__name__}.") from None
    if not isinstance(values, dict) or "task" not in values:
        raise BrokenRun(f"{where} has no 'task': it is not of a fine-tuning, probing or evaluation run.")
    return values


def _make_run(folder: pathlib.Path, label: str, found: Summary) -> Run:
    task = found.task
    if (task.metric in OF_REGRESSION) != (task.kind == "regression"):
        raise ValueError(f"there is no task of kind {task.kind!r} and metric {task.metric!r}")
    texts = {name: clean(getattr(task, name)) for name in ("dataset", "metric", "unit")}
    lists = {name: tuple(clean(text) for text in getattr(task, name)) for name in ("classes", "colours")}
    task = msgspec.structs.replace(task, title=clean(task.title or task.dataset), **texts, **lists)
    # A dataset without a test split is scored on its validation split.
    split = next((name for name in ("test", "val") if found.scores.get(name)), None)
    if split is None:
        raise ValueError("there are scores of neither the split 'test' nor 'val'")
    if not 0 < found.fraction <= 1:
        raise ValueError(f"fraction = {found.fraction:g} is not in (0, 1]")
    origin, config = found.provenance or Origin(), found.config or {}
    commit, epoch = clean(origin.commit or "")[:9], (found.best or {}).get("epoch")
    return Run(
        label=label,
        folder=folder,
        name=clean(found.name),
        job=clean(found.job),
        mode=clean(found.mode),
        row=clean(found.row or ""),
        start=_start_words(found.init or {}),
        seed=found.seed,
        fraction=found.fraction,
        synthetic=bool((config.get("data") or {}).get("fake_tiles")),
        task=task,
        split=split,
        scores=_known_scores(found.scores[split]),
        neighbours=_known_scores((found.knn or {}).get(split)),
        confusion=_confusion(task, (found.confusion or {}).get(split)),
        best_epoch=None if epoch is None else int(epoch),
        commit=f"{commit} and changes" if commit and origin.dirty else commit,
        date=clean(origin.date or ""),
        seconds=math.nan if origin.seconds is None else origin.seconds,
        settings=hashlib.sha256(json.dumps(_without_seed(config), sort_keys=True).encode()).hexdigest(),
    )


def _known_scores(scores: Any) -> dict[str, float]:
    """Returns scores by metric, nan for None; without the number of samples and the loss."""
    if not isinstance(scores, dict):
        return {}
    return {clean(k): math.nan if v is None else float(v) for k, v in scores.items() if k not in ("count", "loss")}


def _confusion(task: TaskInfo, values: Any) -> Int[np.ndarray, "K ..."] | None:
    if values is None or task.kind == "regression":
        return None
    # A matrix of another size would be drawn beside the wrong classes.
    counts, classes = np.asarray(values), len(task.classes)
    shape = (classes, 2, 2) if task.kind == "multi_label" else (classes, classes)
    if counts.shape != shape or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"the confusion matrix must be {shape} counts")
    return counts


def _start_words(init: Mapping[str, Any]) -> str:
    kind = clean(init.get("kind") or "unknown")
    # Only the last part of the path: the page is shared, and folders are private.
    name = clean(str(init.get("source") or "").replace("\\", "/").rstrip("/").rpartition("/")[2])
    return STARTS.get(kind, kind) if kind == "none" or not name else f"{STARTS.get(kind, kind)} {name}"


def _without_seed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_seed(inner) for key, inner in value.items() if key not in OF_A_SEED}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, sorted by it; at least one."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that represents all if only one can be shown."""
        return self.runs[0]

    @property
    def paper_row(self) -> str:
        """The id of the paper's row that the runs repeat; "" if their data or labels are not the paper's."""
        run = self.first
        return run.row if run.row in paper.row_ids() and run.fraction == 1.0 and not run.synthetic else ""

    def score(self, metric: str, neighbours: bool = False) -> tuple[float, float]:
        """Returns `mean_and_spread` of the runs, or of their nearest-neighbour probes; nan if any lacks the metric."""
        scores = [run.neighbours if neighbours else run.scores for run in self.runs]
        return mean_and_spread([one.get(metric, math.nan) for one in scores])

    def distinct(self, of: Callable[[Run], str]) -> str:
        """Returns the distinct values over the runs, comma-separated."""
        return ", ".join(dict.fromkeys(text for run in self.runs if (text := of(run))))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation; the spread of a single value is nan."""
    # A mean over fewer runs than are listed beside it would mislead.
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups runs of one experiment, the largest groups of a row first, otherwise in the order of the runs."""

    def experiment(run: Run) -> Hashable:
        kind = run.start.partition(" ")[0]
        about = (run.name, run.job, run.mode, run.row, run.fraction, run.synthetic, run.task, run.split)
        return *about, kind, run.settings

    groups = []
    for same in split_by(runs, experiment):
        # Repetitions may start from weights that were pretrained with different seeds too. If a seed occurs twice,
        # the weights are what was compared, and each start is an experiment of its own.
        seeds = [run.seed for run in same]
        groups += [same] if len(set(seeds)) == len(seeds) else split_by(same, lambda run: run.start)
    made = [Group(tuple(sorted(group, key=lambda run: (run.seed, run.label)))) for group in groups]
    return sorted(made, key=lambda group: -len(group.runs))


def by_row(groups: Iterable[Group]) -> Mapping[str, list[Group]]:
    """Returns the groups of each of the paper's rows."""
    return {some[0].paper_row: some for some in split_by(groups, lambda group: group.paper_row)}


def split_by(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Returns the items in lists of the same key, in the order of their first ones."""
    parts: dict[Hashable, list[T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())
