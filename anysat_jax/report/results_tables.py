"""The tables of the results page: the paper's numbers with ours beside them, and the runs that no row stands for."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from anysat_jax.adapt.tasks import METRICS
from anysat_jax.report import paper
from anysat_jax.report.document import Cell, Column, Sheet
from anysat_jax.report.groups import Group, split

RUN_COLUMNS = (
    Column("Seeds"),
    Column("Config"),
    Column("Start"),
    Column("Commit"),
    Column("Date"),
    Column("Seconds", numeric=True),
)
METRIC_WORDS = {
    "accuracy": "accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "weighted_f1": "weighted F1 (%)",
    "micro_f1": "micro F1 (%)",
    "mean_iou": "mIoU (%)",
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
IN_UNITS = ("rmse", "mae")
WHOSE = (("paper", False), ("our number", True))


def overview_sheet(groups: Mapping[str, Sequence[Group]]) -> Sheet:
    """The numbers of the radar: the paper's AnySat, the best of the others, and ours."""
    rows = []
    for block in paper.BLOCKS:
        ours, other = headline_rows(block)
        name, metric = block.axis.replace("\n", " "), block.metrics[-1]
        found = groups.get(ours.row, [])
        score = score_cell(found[0], metric) if found else Cell()
        other_cell = _percent_cell(other.scores[-1])
        texts = (Cell(name), Cell(paper.METRIC_NAMES[metric]))
        rows.append((*texts, score, _percent_cell(ours.scores[-1]), other_cell, Cell(other.model)))
    columns = (
        Column("Task"),
        Column("Metric (%)"),
        Column("Our number", numeric=True, ours=True),
        Column("AnySat, paper", numeric=True),
        Column("Best other, paper", numeric=True),
        Column("Which"),
    )
    return Sheet("Our number and the paper's on each axis of the radar", columns, tuple(rows))


def headline_rows(block: paper.PaperBlock) -> tuple[paper.PaperRow, paper.PaperRow]:
    """AnySat's first row of a block, and the row of another model with the best last score."""
    others = [row for row in block.rows if not row.row and row.scores[-1] is not None]
    return next(row for row in block.rows if row.row), max(others, key=lambda row: row.scores[-1] or 0.0)


def paper_sheet(block: paper.PaperBlock, groups: Mapping[str, Sequence[Group]]) -> Sheet:
    """A block of the paper's tables; the cells of our numbers are empty where nothing was run.

    Args:
      block: the rows of one task.
      groups: our runs by the row that they repeat. A row with several groups is listed once for each.
    """
    names = [paper.METRIC_NAMES[metric] for metric in block.metrics]
    scores = [Column(f"{name}, {whose}", True, ours) for name in names for whose, ours in WHOSE]
    pretraining = [Column("Pre-training")] if block.table == "A" else []
    columns = (Column("Model"), *scores, *pretraining, Column("Inputs"), *RUN_COLUMNS)
    rows = [
        _paper_row(block, row, group)
        for row in block.rows
        for group in (groups.get(row.row) if row.row else None) or [None]
    ]
    return Sheet(f"Table {block.table}: {block.heading}, in %", columns, tuple(rows))


def _paper_row(block: paper.PaperBlock, row: paper.PaperRow, group: Group | None) -> tuple[Cell, ...]:
    scores: list[Cell] = []
    for index, metric in enumerate(block.metrics):
        theirs = row.scores[index]
        scores += [
            _percent_cell(theirs, bold=theirs == block.best(index)),
            score_cell(group, metric) if group else Cell(),
        ]
    signs = {"✓": "", "◦": " ◦"}
    used = [name + signs[sign] for name, sign in zip(block.modalities, row.inputs, strict=True) if sign]
    pretraining = [Cell(row.pretraining)] if block.table == "A" else []
    about = run_cells(group) if group else (Cell(),) * len(RUN_COLUMNS)
    return (Cell(row.model), *scores, *pretraining, Cell(", ".join(used)), *about)


def other_sheets(groups: Iterable[Group]) -> list[Sheet]:
    """A table for each task of the runs that are no row of the paper's, whichever metric they chose by."""
    return [
        _other_sheet(some) for some in split(groups, lambda group: dataclasses.replace(group.first.task, metric=""))
    ]


def _other_sheet(groups: Sequence[Group]) -> Sheet:
    task = groups[0].first.task
    metrics = METRICS[task.kind]
    words = [f"{METRIC_WORDS[m]} ({task.unit})" if m in IN_UNITS and task.unit else METRIC_WORDS[m] for m in metrics]
    columns = (
        Column("Run"),
        Column("Method"),
        Column("Labels (%)", numeric=True),
        *(Column(name, numeric=True, ours=True) for name in words),
        *RUN_COLUMNS,
    )
    level = "one answer a tile" if task.level == "tile" else "one answer a pixel"
    rows = [
        row for group in sorted(groups, key=lambda group: group.first.fraction) for row in _other_rows(group, metrics)
    ]
    return Sheet(f"{task.title}, {level}", columns, tuple(rows))


def _other_rows(group: Group, metrics: Sequence[str]) -> list[tuple[Cell, ...]]:
    run = group.first
    labels = Cell(f"{100 * run.fraction:g}", run.fraction)
    name = Cell(group.words(lambda one: one.label) + (" (synthetic tiles)" if run.synthetic else ""))
    method = Cell(MODE_WORDS.get(run.mode, run.mode) + (", evaluated again" if run.job == "evaluate" else ""))
    rows = [(name, method, labels, *(score_cell(group, metric) for metric in metrics), *run_cells(group))]
    if run.neighbours:
        scores = [_measured(*group.neighbours_score(metric), metric, run.split) for metric in metrics]
        rows.append((name, Cell("nearest neighbours"), labels, *scores, *run_cells(group)))
    return rows


def run_cells(group: Group) -> tuple[Cell, ...]:
    """Where numbers come from, in the order of `RUN_COLUMNS`."""
    run = group.first
    seconds = Cell() if math.isnan(group.seconds) else Cell(f"{group.seconds:.0f}", group.seconds)
    return (
        Cell(", ".join(str(one.seed) for one in group.runs)),
        Cell(f"{run.job}: {run.name}" if run.name else run.job),
        Cell(group.words(lambda one: one.start)),
        Cell(group.words(lambda one: one.commit)),
        Cell(group.words(lambda one: one.date[:10])),
        seconds,
    )


def score_cell(group: Group, metric: str) -> Cell:
    """Our number: the mean over the group's runs, with their spread where there are several."""
    return _measured(*group.score(metric), metric, group.first.split)


def _measured(mean: float, spread: float, metric: str, split: str) -> Cell:
    if math.isnan(mean):
        return Cell("not measured")
    scale, digits = (1.0, 3) if metric in (*IN_UNITS, "r2") else (100.0, 1)
    text = f"{scale * mean:.{digits}f}"
    if not math.isnan(spread):
        text += f" ± {scale * spread:.{digits}f}"
    return Cell(text if split == "test" else f"{text} ({split})", scale * mean)


def _percent_cell(score: float | None, bold: bool = False) -> Cell:
    return Cell("-") if score is None else Cell(f"{score:.1f}", score, bold)
