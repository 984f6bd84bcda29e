"""The tables of the results page: the paper's numbers with ours beside them, and the runs that no row stands for."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from anysat_jax.downstream.task import METRICS
from anysat_jax.report import paper
from anysat_jax.report.document import Cell, Column, Sheet
from anysat_jax.report.runs import Group, split

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


Task = Literal["tile", "dense"]
COLUMNS = ("dataset", "task", "metric (%)", "random", "pretrained", "difference")
NUM_TEXT_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of one probe, on frozen features of the random start and of the pretrained network.

    Attributes:
      dataset: the dataset's title.
      task: "tile" (one answer a tile) or "dense" (one a pixel).
      metric: what was measured, e.g. "mIoU".
      random: the score on the random start's features, in [0, 1]; nan where nothing could be scored.
      pretrained: the score on the pretrained network's features.
      headline: whether this metric stands for the probe in means and figures; one for each probe.
    """

    dataset: str
    task: Task
    metric: str
    random: float
    pretrained: float
    headline: bool = False


def task_means(scores: Iterable[Score]) -> dict[str, dict[str, float | None]]:
    """For each task, the means over the datasets' headline scores: {"tile": {"random", "pretrained"}, "dense": ...}.

    A dataset of which either score is missing is left out of both means; None where that leaves nothing.
    """
    means = {}
    for task in ("tile", "dense"):
        chosen = [score for score in scores if score.task == task and score.headline and _is_whole(score)]
        means[task] = {
            name: sum(getattr(score, name) for score in chosen) / len(chosen) if chosen else None
            for name in ("random", "pretrained")
        }
    return means


def score_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """A row of text for each score, percentages with one decimal."""
    return [
        (
            score.dataset,
            score.task,
            score.metric,
            _percent(score.random),
            _percent(score.pretrained),
            _percent(score.pretrained - score.random, sign=True),
        )
        for score in scores
    ]


def text_table(scores: Sequence[Score]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    rows = [COLUMNS, *score_rows(scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def markdown_table(scores: Sequence[Score]) -> str:
    """The same as a markdown table, headline scores in bold."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---:|---:|---:|"]
    for score, row in zip(scores, score_rows(scores), strict=True):
        cells = [
            f"**{cell}**" if score.headline and column >= NUM_TEXT_COLUMNS else cell for column, cell in enumerate(row)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def score_tree(scores: Iterable[Score]) -> dict[str, Any]:
    """All scores as {dataset: {task: {metric: {"random", "pretrained"}}}}, None for what is missing."""
    tree: dict[str, Any] = {}
    for score in scores:
        values = {
            name: value if math.isfinite(value := getattr(score, name)) else None for name in ("random", "pretrained")
        }
        tree.setdefault(score.dataset, {}).setdefault(score.task, {})[score.metric] = values
    return tree


def _is_whole(score: Score) -> bool:
    return math.isfinite(score.random) and math.isfinite(score.pretrained)


def _percent(value: float, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def _align(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if column < NUM_TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
