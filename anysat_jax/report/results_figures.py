"""The figures of the results page, each with the words that stand in for it."""

import pathlib
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anysat_jax.report.confusion import draw_confusion
from anysat_jax.report.document import Block, Cell, Column, Figure, Sheet
from anysat_jax.report.fit_curves import FitLog, draw_fit_curves, read_fit_log
from anysat_jax.report.groups import Group
from anysat_jax.report.label_curves import draw_label_curves, label_lines
from anysat_jax.report.panels import Panels, draw_panels, read_panels
from anysat_jax.report.radar import draw_radar, radar_values
from anysat_jax.report.results_tables import METRIC_WORDS, MODE_WORDS
from anysat_jax.report.runs import SUMMARY, BrokenRun, Run

FOLDER = "figures"
MOST_CLASSES = 128  # of a matrix that can be read


class FigureFolder:
    """Draws figures beside the page, and keeps what went wrong.

    Attributes:
      problems: a sentence for each file that could not be shown.
    """

    def __init__(self, out: pathlib.Path) -> None:
        """Takes the folder of the page."""
        self._out = out
        self.problems: list[str] = []
        (out / FOLDER).mkdir(parents=True, exist_ok=True)

    def radar(self, groups: Mapping[str, Sequence[Group]]) -> Figure:
        """The radar of the paper's tasks; `groups` by the row that they repeat."""
        values = radar_values(groups)
        count = int(np.isfinite(values["ours"]).sum())
        return self._draw(
            "radar",
            lambda path: draw_radar(path, values),
            "The paper's tasks, external datasets in italics; LP stands for linear probing. The number at an axis is "
            "its best score, which is the rim; rings are points below it, as many on every axis.",
            f"Radar with {len(values['ours'])} axes, one for each task of the paper: its AnySat, the best other model, "
            f"and our number on {count or 'none'} of them. The table below has the numbers.",
        )

    def by_labels(self, groups: Sequence[Group], number: int) -> list[Figure]:
        """Scores by the share of labels, where a method was tried with several; `groups` of one task and metric."""
        lines, task = label_lines(groups), groups[0].first.task
        if not lines:
            return []
        metric = METRIC_WORDS[task.metric].removesuffix(" (%)")
        ends = (f"{name}: {points[0][1]:.3f} to {points[-1][1]:.3f}" for name, points in lines.items())
        return [
            self._draw(
                f"labels-{number:02d}",
                lambda path: draw_label_curves(path, task.title, metric, lines),
                f"{task.title}: {metric} by the share of the training labels, mean and sample standard deviation.",
                f"{metric} of {task.title} from the smallest to the largest share of labels. {'; '.join(ends)}.",
            )
        ]

    def of_group(self, group: Group, number: int) -> list[Block]:
        """Panels, confusion matrix and curves of runs, as far as there are any.

        Args:
          group: repetitions; panels and matrix are of the first one.
          number: of the group on the page, for the names of the files.
        """
        name = f"{number:02d}-{re.sub('[^a-z0-9]+', '-', group.first.label.lower()).strip('-')[:40]}"
        parts = (self._panels, self._confusion, self._curves)
        return [block for part in parts for block in part(group, name)]

    def _panels(self, group: Group, name: str) -> list[Block]:
        run = group.first
        panels = self._read(read_panels, run)
        if panels is None:
            return []
        if run.task.level == "tile" and not panels.inputs:
            return [answers_sheet(panels)]
        dense = run.task.level == "dense"
        inputs = ", ".join(panels.inputs) or "no inputs"
        shown = f"Tiles of {panels.extent:g} m: inputs, prediction and ground truth, {which(group)}."
        return [
            self._draw(
                f"{name}-panels",
                lambda path: draw_panels(path, describe(group), run.task, panels),
                f"{shown} White is void." if dense else shown,
                f"{len(panels.ids)} samples of {run.task.title}, a row each: {inputs}, then prediction and truth "
                f"{'as maps' if dense else 'in words'}.",
            )
        ]

    def _confusion(self, group: Group, name: str) -> list[Block]:
        run = group.first
        if run.confusion is None:
            return []
        if len(run.confusion) > MOST_CLASSES:
            self.problems.append(
                f"{run.label}/{SUMMARY}: a confusion matrix of {len(run.confusion)} classes is not drawn."
            )
            return []
        counts, classes = run.confusion, run.task.classes
        return [
            self._draw(
                f"{name}-confusion",
                lambda path: draw_confusion(path, f"{run.task.title}, {which(group)}", classes, counts),
                f"Confusion matrix on the split {run.split}, {which(group)}: percent of each row.",
                confusion_words(classes, counts),
            )
        ]

    def _curves(self, group: Group, name: str) -> list[Block]:
        logs = [log for run in group.runs if (log := self._read(read_fit_log, run)) is not None]
        if not logs:
            return []
        metric = METRIC_WORDS[group.first.task.metric].removesuffix(" (%)")
        return [
            self._draw(
                f"{name}-curves",
                lambda path: draw_fit_curves(path, describe(group), metric, logs),
                "Training loss, learning rate and the validation metric; the ring marks the epoch that was kept.",
                curve_words(metric, logs),
            )
        ]

    def _read(self, read: Callable[[Run], Any], run: Run) -> Any:
        try:
            return read(run)
        except BrokenRun as error:
            self.problems.append(str(error))
            return None

    def _draw(self, name: str, draw: Callable[[pathlib.Path], None], caption: str, alt: str) -> Figure:
        file = f"{FOLDER}/{name}.png"
        draw(self._out / file)
        with (self._out / file).open("rb") as png:
            width, height = struct.unpack(">16xII", png.read(24))
        return Figure(file, caption, alt, (width, height))


def describe(group: Group) -> str:
    """A heading for a group's figures."""
    run = group.first
    method = MODE_WORDS.get(run.mode, run.mode)
    return f"{run.task.title}: {method}, start: {run.start}" + (" (synthetic tiles)" if run.synthetic else "")


def which(group: Group) -> str:
    """Which of the repetitions is shown."""
    return f"run {group.first.label}, seed {group.first.seed}"


def answers_sheet(panels: Panels) -> Sheet:
    """Tiles without anything to see, such as single pixels: their answers as a table."""
    rows = zip(panels.ids, panels.truth, panels.prediction, strict=True)
    columns = (Column("Tile"), Column("Prediction"), Column("Ground truth"))
    return Sheet("A few tiles", columns, tuple((Cell(i), Cell(str(said)), Cell(str(truth))) for i, truth, said in rows))


def confusion_words(classes: Sequence[str], counts: np.ndarray) -> str:
    """What a matrix shows in one sentence: its size and the share that is right."""
    if counts.ndim == 3:
        found = _share(counts[:, 1, 1].sum(), counts[:, 1].sum())
        return (
            f"Shares found, missed, claimed and not claimed of {len(classes)} labels; {found} of the labels were found."
        )
    right = _share(np.trace(counts), counts.sum())
    return f"Truth in rows, prediction in columns, {len(classes)} classes; {right} of the counts lie on the diagonal."


def curve_words(metric: str, logs: Sequence[FitLog]) -> str:
    """From where to where each run's loss went, and its best epoch."""
    runs = (f"{log.in_words}: {log.loss[0]:.3g} to {log.loss[-1]:.3g} in {log.steps[-1]:.0f} steps" for log in logs)
    return f"Training loss, learning rate and validation {metric}. Loss by run: {'; '.join(runs)}."


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.0f} %" if total else "none"
