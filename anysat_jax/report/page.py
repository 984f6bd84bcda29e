"""Pages: the results of finished runs beside the paper's, and the report of a pretraining."""

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from absl import logging

from anysat_jax.report import curves, figures, maps, paper, tables
from anysat_jax.report.document import figure, heading, join, listing, table, to_html
from anysat_jax.report.runs import SUMMARY, BrokenRun, Group, Run, by_row, group_runs, read_runs, split_by

FOLDER = "figures"
MOST_CLASSES = 128  # of a matrix that can be read
T = TypeVar("T")

NUMBERS = (
    "Our numbers are measured by the runs that are listed beside them, on the test split, or on the split in "
    "parentheses if the dataset has no test split. If several runs differ in their seed only, the number is "
    "their mean ± sample standard deviation. A cell is empty if nothing was run: no number of ours comes from the "
    "paper. Runs on synthetic tiles or on a part of the labels do not repeat the paper's rows, and are listed among "
    "the other runs."
)
INPUTS = (
    "The paper's numbers are those of tables A and B of its supplement, test sets, in percent, the best of each column "
    "in bold. ◦ marks inputs of which a single date was used, or seasonal medians. LP stands for linear probing. The "
    "paper scores SICKLE on its validation split, since the test split has not been released."
)


def write_results(runs: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Writes results.md, results.html and figures/ into the folder `out`, and returns the path of results.html.

    Of `runs`, workdirs of fine-tuning, probing and evaluation, the unfinished and broken ones are named on the page,
    with the reason.
    """
    found, problems = read_runs(runs)
    # Figures are drawn while the page is put together: drawing finds the last of the problems, listed at its top.
    groups, drawn = group_runs(found), ResultsFigures(out)
    rows, others = by_row(groups), [group for group in groups if not group.paper_row]
    shown = [heading("Overview"), drawn.radar(rows), tables.overview_table(rows)]
    shown += [heading("Table A: test sets of GeoPlex"), INPUTS]
    shown += [tables.paper_table(block, rows) for block in paper.TABLE_A]
    shown += [heading("Table B: external datasets")]
    shown += [tables.paper_table(block, rows) for block in paper.TABLE_B]
    if others:
        same = split_by(groups, lambda group: (group.first.task, group.first.split, group.first.synthetic))
        label_curves = [block for number, some in enumerate(same, 1) if (block := drawn.label_curves(some, number))]
        shown += [heading("Other runs"), *tables.other_tables(others), *label_curves]
    for number, group in enumerate(groups, 1):
        if blocks := drawn.of_group(group, number):
            shown += [heading(describe(group)), *blocks]
    problems += drawn.problems
    start = [heading("AnySat: results", 1), heading("Runs shown")]
    start += [f"{len(found)} {'run' if len(found) == 1 else 'runs'} shown.", NUMBERS]
    start += ["Not everything could be shown:", listing(problems)] if problems else []
    page, path = join([*start, *shown]), out / "results.html"
    (out / "results.md").write_text(page, encoding="utf-8")
    path.write_text(to_html(page), encoding="utf-8")
    return path


def describe(group: Group) -> str:
    """Returns a heading for a group's figures."""
    run = group.first
    method = tables.MODE_WORDS.get(run.mode, run.mode)
    return f"{run.task.title}: {method}, start: {run.start}" + (" (synthetic tiles)" if run.synthetic else "")


class ResultsFigures:
    """Draws the figures of the results page."""

    def __init__(self, out: pathlib.Path) -> None:
        self._out = out
        self.problems: list[str] = []  # a sentence for each file that could not be shown
        (out / FOLDER).mkdir(parents=True, exist_ok=True)

    def radar(self, groups: dict[str, list[Group]]) -> str:
        """Returns the radar of the paper's tasks; `groups` by the row that they repeat."""
        values = figures.radar_values(groups)
        count = int(np.isfinite(values["ours"]).sum())
        return self._draw(
            "radar",
            lambda path: figures.draw_radar(path, values),
            "The paper's tasks, external datasets in italics; LP stands for linear probing. The number at an axis is "
            "its best score, which is the rim; rings are points below it, as many on every axis.",
            f"Radar with {len(values['ours'])} axes, one for each task of the paper: its AnySat, the best other model, "
            f"and our number on {count or 'none'} of them. The table below has the numbers.",
        )

    def label_curves(self, groups: Sequence[Group], number: int) -> str:
        """Returns scores by the fraction of labels, "" without a method with several; the groups have one task."""
        lines, run = figures.label_lines(groups), groups[0].first
        if not lines:
            return ""
        title, metric = run.task.title, tables.METRIC_WORDS[run.task.metric]
        ends = (f"{name}: {points[0][1]:.3f} to {points[-1][1]:.3f}" for name, points in lines.items())
        return self._draw(
            f"labels-{number:02d}",
            lambda path: figures.draw_label_curves(path, title, metric, lines),
            f"{title}: {metric} by the share of the training labels, mean and sample standard deviation.",
            f"{metric} of {title} from the smallest to the largest share of labels. {'; '.join(ends)}.",
        )

    def of_group(self, group: Group, number: int) -> list[str]:
        """Returns samples and confusion matrix of the first run, and curves of all, as far as there are any."""
        # The number makes names unique after all that is not a letter or a digit is replaced.
        name = f"{number:02d}-{re.sub('[^a-z0-9]+', '-', group.first.label.lower()).strip('-')[:40]}"
        return [block for draw in (self._samples, self._confusion, self._curves) if (block := draw(group, name))]

    def _samples(self, group: Group, name: str) -> str:
        run, samples = group.first, self._read(maps.read_samples, group.first)
        if samples is None:
            return ""
        # Tiles of a single pixel have no picture.
        if run.task.level == "tile" and not samples.inputs:
            answers = zip(samples.ids, map(str, samples.prediction), map(str, samples.truth), strict=True)
            return table(("Tile", "Prediction", "Ground truth"), answers, caption="A few tiles")
        dense = run.task.level == "dense"
        inputs = ", ".join(samples.inputs) or "no inputs"
        shown = f"Tiles of {samples.extent:g} m: inputs, prediction and ground truth, run {run.label}, seed {run.seed}."
        return self._draw(
            f"{name}-panels",
            lambda path: maps.draw_samples(path, describe(group), run.task, samples),
            f"{shown} White is void." if dense else shown,
            f"{len(samples.ids)} samples of {run.task.title}, a row each: {inputs}, then prediction and truth "
            f"{'as maps' if dense else 'in words'}.",
        )

    def _confusion(self, group: Group, name: str) -> str:
        run = group.first
        if run.confusion is None:
            return ""
        if len(run.confusion) > MOST_CLASSES:
            self.problems.append(
                f"{run.label}/{SUMMARY}: a confusion matrix of {len(run.confusion)} classes is not drawn."
            )
            return ""
        counts, classes, which = run.confusion, run.task.classes, f"run {run.label}, seed {run.seed}"
        return self._draw(
            f"{name}-confusion",
            lambda path: figures.draw_confusion(path, f"{run.task.title}, {which}", classes, counts),
            f"Confusion matrix on the split {run.split}, {which}: percent of each row.",
            figures.describe_confusion(classes, counts),
        )

    def _curves(self, group: Group, name: str) -> str:
        logs = [log for run in group.runs if (log := self._read(curves.read_fit_log, run)) is not None]
        if not logs:
            return ""
        metric = tables.METRIC_WORDS[group.first.task.metric]
        ends = (f"{log.label}: {log.loss[0]:.3g} to {log.loss[-1]:.3g} in {log.steps[-1]:.0f} steps" for log in logs)
        return self._draw(
            f"{name}-curves",
            lambda path: curves.draw_fit_curves(path, describe(group), metric, logs),
            "Training loss, learning rate and the validation metric; the ring marks the epoch that was kept.",
            f"Training loss, learning rate and validation {metric}. Loss by run: {'; '.join(ends)}.",
        )

    def _read(self, read: Callable[[Run], T], run: Run) -> T | None:
        try:
            return read(run)
        except BrokenRun as error:
            self.problems.append(str(error))
            return None

    def _draw(self, name: str, draw: Callable[[pathlib.Path], None], caption: str, alt: str) -> str:
        return draw_figure(self._out, f"{FOLDER}/{name}.png", draw, caption, alt)


def draw_figure(folder: pathlib.Path, file: str, draw: Callable[[pathlib.Path], None], caption: str, alt: str) -> str:
    """Draws a PNG file below the folder of a page, and returns its block of the page."""
    draw(folder / file)
    # PNG's first chunk begins with the width in pixels.
    width = int.from_bytes((folder / file).read_bytes()[16:20], "big")
    # Half of it on the page, so that figures are sharp on screens of twice the density.
    return figure(file, round(width / 2), caption, alt)


PROTOCOL = """\
Each score is a linear probe's (LayerNorm and one linear layer) on features that stay frozen: fitted on the training
split, its weight penalty chosen on a fifth of it, scored on held-out tiles. *Random* is the same network at its random
start, *pretrained* the teacher at the end of the run; both are probed alike. Bold: the score that represents the probe
in the figures and in `summary.json`, which has means over the datasets.

Pictures of features show their three main components relative to each tile's mean; colours compare down a column."""


def write_pretraining(
    folder: pathlib.Path,
    run: str,
    metrics_csv: pathlib.Path,
    scores: Sequence[tables.Score],
    mosaics: Sequence[maps.Mosaic],
) -> pathlib.Path:
    """Writes README.md, the report of a pretraining, with its figures beside it, and returns its path.

    The `folder` exists; `run` is the run's name, for the titles. `metrics_csv` is the training's log, without which
    there are no curves; the `scores` of probes may be empty; `mosaics` are held-out tiles by dataset.
    """
    blocks = [heading(run, 1), heading("Linear probes")]
    blocks += [tables.score_table(scores), PROTOCOL] if scores else ["Nothing was probed."]

    def add(file: str, caption: str, draw: Callable[[pathlib.Path, str, T], None], data: T) -> None:
        block = draw_figure(folder, file, lambda path: draw(path, run, data), caption, caption)
        blocks.extend([heading(caption), block])

    if log := curves.read_curves(metrics_csv):
        add("curves.png", "Training", curves.draw_curves, log)
    else:
        logging.warning("no training curves: %s has no rows", metrics_csv)
    if scores:
        add("probes.png", "Probe scores", figures.draw_scores, scores)
    for one in mosaics:
        name, title = one.card.name, one.card.title
        add(f"features_{name}.png", f"Dense features and land cover: {title}", maps.draw_mosaic, one)
    page = folder / "README.md"
    page.write_text(join(blocks), encoding="utf-8")
    return page
