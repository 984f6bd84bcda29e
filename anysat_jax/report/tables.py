"""Scores as tables: aligned for the terminal, markdown for the report."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

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
