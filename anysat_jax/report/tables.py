"""Tables: the paper's numbers with ours beside them, runs that repeat no row of the paper, scores of linear probes."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from tabulate import tabulate

from anysat_jax.report import paper
from anysat_jax.report.document import bold, emphasis, table
from anysat_jax.report.runs import IN_UNITS, OF_REGRESSION, Group, split_by

RUN_COLUMNS = ("Seeds", "Config", "Start", "Commit", "Date", "Seconds")
METRIC_WORDS = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mean_iou": "mIoU",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}
MODE_WORDS = {
    "finetune": "fine-tuned",
    "probe": "linear probe",
    "last_block": "last block trained",
    "projector": "projector and head trained",
    "scratch": "trained from scratch",
}
OURS, PAPER = "our number", "paper"


def overview_table(groups: Mapping[str, Sequence[Group]]) -> str:
    """Returns the numbers of the radar: the paper's AnySat, the best of the others, and ours by the row they repeat."""
    rows = []
    for block in paper.BLOCKS:
        theirs, other = headline_rows(block)
        metric, found = block.metrics[-1], groups.get(theirs.row, [])
        ours = score_cell(found[0], metric) if found else ""
        numbers = (ours, _percent(theirs.scores[-1]), _percent(other.scores[-1]))
        rows.append((block.axis.replace("\n", " "), paper.METRIC_NAMES[metric], *numbers, other.model))
    numeric = ("Our number", "AnySat, paper", "Best other, paper")
    columns = ("Task", "Metric (%)", *numeric, "Which")
    return table(columns, rows, numeric, "Our number and the paper's on each axis of the radar")


def headline_rows(block: paper.PaperBlock) -> tuple[paper.PaperRow, paper.PaperRow]:
    """Returns AnySat's first row of a block, and the row of another model with the best last score."""
    others = [row for row in block.rows if not row.row and row.scores[-1] is not None]
    return next(row for row in block.rows if row.row), max(others, key=lambda row: row.scores[-1] or 0.0)


def paper_table(block: paper.PaperBlock, groups: Mapping[str, Sequence[Group]]) -> str:
    """Returns a block of the paper's tables; the cells of our numbers are empty if nothing was run.

    A row that several groups of our runs repeat is listed once for each.
    """
    scores = [f"{paper.METRIC_NAMES[metric]}, {whose}" for metric in block.metrics for whose in (PAPER, OURS)]
    pretraining = ["Pre-training"] if block.table == "A" else []
    columns = ("Model", *scores, *pretraining, "Inputs", *RUN_COLUMNS)
    rows = [
        _paper_row(block, row, group)
        for row in block.rows
        for group in (groups.get(row.row) if row.row else None) or [None]
    ]
    return table(columns, rows, (*scores, "Seconds"), f"Table {block.table}: {block.heading}, in %")


def _paper_row(block: paper.PaperBlock, row: paper.PaperRow, group: Group | None) -> tuple[str, ...]:
    scores: list[str] = []
    for index, metric in enumerate(block.metrics):
        theirs = _percent(row.scores[index])
        is_best = row.scores[index] == block.best(index)
        scores += [bold(theirs) if is_best else theirs, score_cell(group, metric) if group else ""]
    used = [name + " ◦" * (sign == "◦") for name, sign in zip(block.modalities, row.inputs, strict=True) if sign]
    pretraining = [row.pretraining] if block.table == "A" else []
    return (row.model, *scores, *pretraining, ", ".join(used), *(run_cells(group) if group else [""] * 6))


def other_tables(groups: Iterable[Group]) -> list[str]:
    """Returns a table for each task of the runs that repeat no row of the paper, whichever metric they chose by."""
    tables = []
    for same in split_by(groups, lambda group: msgspec.structs.replace(group.first.task, metric="")):
        task = same[0].first.task
        metrics = [name for name in METRIC_WORDS if any(name in group.first.scores for group in same)]
        unit = {"r2": ""} | dict.fromkeys(IN_UNITS, f" ({task.unit})" if task.unit else "")
        names = [METRIC_WORDS[metric] + unit.get(metric, " (%)") for metric in metrics]
        by_labels = sorted(same, key=lambda group: group.first.fraction)
        rows = [row for group in by_labels for row in _other_rows(group, metrics)]
        columns = ("Run", "Method", "Labels (%)", *names, *RUN_COLUMNS)
        level = "one answer a tile" if task.level == "tile" else "one answer a pixel"
        tables.append(table(columns, rows, ("Labels (%)", *names, "Seconds"), f"{task.title}, {level}"))
    return tables


def _other_rows(group: Group, metrics: Sequence[str]) -> list[tuple[str, ...]]:
    run, about = group.first, run_cells(group)
    labels = f"{100 * run.fraction:g}"
    name = group.distinct(lambda one: one.label) + (" (synthetic tiles)" if run.synthetic else "")
    method = MODE_WORDS.get(run.mode, run.mode) + (", evaluated again" if run.job == "evaluate" else "")
    rows = [(name, method, labels, *(score_cell(group, metric) for metric in metrics), *about)]
    if run.neighbours:
        scores = [score_cell(group, metric, neighbours=True) for metric in metrics]
        rows.append((name, "nearest neighbours", labels, *scores, *about))
    return rows


def run_cells(group: Group) -> tuple[str, ...]:
    """Returns the origin of a group's numbers, in the order of `RUN_COLUMNS`."""
    run, seconds = group.first, statistics.fmean(one.seconds for one in group.runs)
    return (
        ", ".join(str(one.seed) for one in group.runs),
        f"{run.job}: {run.name}" if run.name else run.job,
        group.distinct(lambda one: one.start),
        group.distinct(lambda one: one.commit),
        group.distinct(lambda one: one.date[:10]),
        "" if math.isnan(seconds) else f"{seconds:.0f}",
    )


def score_cell(group: Group, metric: str, neighbours: bool = False) -> str:
    """Returns our number, see `Group.score`: the mean over the group's runs, with their spread if there are several."""
    mean, spread = group.score(metric, neighbours)
    if math.isnan(mean):
        return emphasis("not measured")
    # Errors and R² are shown as they are; the other scores are fractions, shown in percent as in the paper.
    scale, digits = (1.0, 3) if metric in OF_REGRESSION else (100.0, 1)
    text = f"{scale * mean:.{digits}f}"
    if not math.isnan(spread):
        text += f" ± {scale * spread:.{digits}f}"
    split = group.first.split
    return emphasis(text if split == "test" else f"{text} ({split})")


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of one linear probe, on frozen features of the random start and of the pretrained network."""

    dataset: str  # the dataset's title
    task: Literal["tile", "dense"]  # "tile" (one answer a tile) or "dense" (one a pixel)
    metric: str  # its name, such as "mIoU"
    random: float  # the score on the random start's features, in [0, 1]; nan if nothing could be scored
    pretrained: float  # the score on the pretrained network's features
    headline: bool = False  # whether this metric represents the probe in means and figures; one for each probe


SCORE_COLUMNS = ("dataset", "task", "metric (%)", "random", "pretrained", "difference")


def score_table(scores: Sequence[Score]) -> str:
    """Returns the scores of probes as a table, headline scores in bold."""
    rows = [_score_row(score, bold if score.headline else str) for score in scores]
    return table(SCORE_COLUMNS, rows, SCORE_COLUMNS[3:])


def score_text(scores: Sequence[Score]) -> str:
    """Returns the same for a terminal."""
    align = ("left",) * 3 + ("right",) * 3
    rows = [_score_row(score, str) for score in scores]
    return tabulate(rows, SCORE_COLUMNS, tablefmt="simple", disable_numparse=True, colalign=align)


def _score_row(score: Score, write: Callable[[str], str]) -> tuple[str, ...]:
    values = (score.random, score.pretrained, score.pretrained - score.random)
    formats = (".1f", ".1f", "+.1f")
    numbers = [format(100 * one, spec) if math.isfinite(one) else "-" for one, spec in zip(values, formats)]
    return (score.dataset, score.task, score.metric, *map(write, numbers))
