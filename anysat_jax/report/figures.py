"""The figures of the results page, each with the words that stand in for it."""

import math
import pathlib
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from anysat_jax.report import paper, style
from anysat_jax.report.curves import FitLog, draw_curves, draw_fit_curves, read_curves, read_fit_log
from anysat_jax.report.document import Block, Cell, Column, Figure, Sheet
from anysat_jax.report.maps import Mosaic, Panels, draw_mosaic, draw_panels, read_panels
from anysat_jax.report.runs import SUMMARY, BrokenRun, Group, Run
from anysat_jax.report.tables import METRIC_WORDS, MODE_WORDS, Score, headline_rows

CELL_INCHES = 0.36
LETTER_INCHES = 0.085
FEWEST_CELLS = 8  # a matrix of two classes gets larger cells, so that the title has room
LONGEST_NAME = 28
OUTCOMES = ("carried,\nfound", "carried,\nmissed", "not carried,\nclaimed", "not carried,\nnot claimed")


def draw_confusion(path: pathlib.Path, title: str, classes: Sequence[str], counts: Int[np.ndarray, "K ..."]) -> None:
    """Draws a matrix of classes, or for several labels a tile a row of outcomes for each label.

    Args:
      path: the PNG file.
      title: above the matrix.
      classes: K names.
      counts: (K, K) with the truth in the rows, or (K, 2, 2): [[true negatives, false alarms], [misses, hits]].
    """
    several = counts.ndim == 3
    shares = label_shares(counts) if several else row_shares(counts)
    totals = counts[:, 1].sum(axis=-1) if several else counts.sum(axis=1)
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in classes]
    rows = [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)]
    _draw_shares(path, title, shares, rows, OUTCOMES if several else names)


def row_shares(counts: Int[np.ndarray, "K L"]) -> Float[np.ndarray, "K L"]:
    """Each row over its sum; nan in rows without any count."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def label_shares(counts: Int[np.ndarray, "K 2 2"]) -> Float[np.ndarray, "K 4"]:
    """Of the tiles that carry a label the shares found and missed; of the others the shares claimed and not claimed."""
    carried, others = row_shares(counts[:, 1, ::-1]), row_shares(counts[:, 0, ::-1])
    return np.concatenate([carried, others], axis=1)


def _draw_shares(
    path: pathlib.Path, title: str, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    height, width = shares.shape
    cell = CELL_INCHES * max(1.0, FEWEST_CELLS / max(height, width))
    upright = len(columns) == len(OUTCOMES) and columns[0] == OUTCOMES[0]
    beside = LETTER_INCHES * max(map(len, rows))
    above = 0.5 if upright else LETTER_INCHES * max(map(len, columns))
    cell_width = max(cell, 1.0) if upright else cell
    with style.new_figure(path, (cell_width * width + beside + 1.6, cell * height + above + 1.4), title) as figure:
        ax = figure.subplots()
        colours = _colours()
        image = ax.imshow(100 * shares, cmap=colours, vmin=0, vmax=100, aspect="auto")
        ax.set_xticks(range(width), columns, rotation=0 if upright else 90, fontsize=9)
        ax.set_yticks(range(height), rows, fontsize=9)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("outcome" if upright else "prediction")
        ax.set_ylabel("truth (count)")
        _write_shares(ax, shares)
        bar = figure.colorbar(image, ax=ax, shrink=min(1.0, 4 / (cell * height)), pad=0.02)
        bar.set_label("% of the row")


def _colours() -> Any:
    """White to blue; grey where nothing was counted."""
    from matplotlib import colormaps

    return colormaps["Blues"].with_extremes(bad="#dddddd")


def _write_shares(ax: Any, shares: np.ndarray) -> None:
    """Whole percents in the cells, none where they round to 0."""
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        share = shares[row, column]
        colour = "white" if share > 0.55 else style.TEXT_COLOUR
        text = ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        text.set_in_layout(False)  # it is inside anyway, and thousands of them take long to lay out


RINGS = 4
COARSEST = 5.0  # points between rings where no score is far from its axis's best
CENTRE = 0.12  # of the radius, so that lines do not meet in a point


def radar_values(groups: Mapping[str, Sequence[Group]]) -> dict[str, list[float]]:
    """Scores in percent by axis: "AnySat, paper", "best other, paper" and "ours", nan where nothing was run."""
    values: dict[str, list[float]] = {"AnySat, paper": [], "best other, paper": [], "ours": []}
    for block in paper.BLOCKS:
        theirs, other = headline_rows(block)
        found = groups.get(theirs.row, [])
        values["AnySat, paper"].append(theirs.scores[-1] or math.nan)
        values["best other, paper"].append(other.scores[-1] or math.nan)
        values["ours"].append(100 * found[0].score(block.metrics[-1])[0] if found else math.nan)
    return values


def draw_radar(path: pathlib.Path, values: Mapping[str, Sequence[float]]) -> None:
    """Draws `radar_values`. The rim of an axis is its best score, and a ring is as many points on every axis."""
    table = np.array(list(values.values()))
    best = np.nanmax(table, axis=0)
    step = max(COARSEST, 5 * math.ceil(np.nanmax(best - table) / RINGS / 5))
    radii = 1 - (1 - CENTRE) * (best - table) / (RINGS * step)
    angles = np.linspace(0, 2 * np.pi, table.shape[1], endpoint=False)
    with style.new_figure(path, (10.5, 8.4), "Tasks of the paper") as figure:
        ax = figure.add_subplot(projection="polar")
        ax.set_theta_zero_location("N")
        ax.set_theta_direction(-1)
        _draw_axes(ax, angles, best, step)
        looks = ((style.PRETRAINED_COLOUR, "o"), (style.FAINT_COLOUR, "s"), (style.ACCENT_COLOUR, "D"))
        for name, radius, (colour, marker) in zip(values, radii, looks, strict=True):
            _draw_line(ax, angles, radius, colour, marker, name)
        figure.legend(loc="outside lower center", ncols=3)


def _draw_axes(ax: Any, angles: np.ndarray, best: np.ndarray, step: float) -> None:
    """Names of the tasks with the score at the rim; external datasets in italics."""
    ax.set_ylim(0, 1)
    ax.set_xticks(angles, [""] * len(angles))
    rings = 1 - (1 - CENTRE) * np.arange(RINGS) / RINGS
    ax.set_yticks(rings, [""] * RINGS)
    for ring, radius in list(enumerate(rings))[1:]:
        ax.text(np.pi / len(angles), radius, f"-{ring * step:g}", fontsize=9, color=style.FAINT_COLOUR, ha="center")
    ax.spines["polar"].set_color("#bbbbbb")
    for block, angle, score in zip(paper.BLOCKS, angles, best, strict=True):
        across, up = np.sin(angle), np.cos(angle)
        where = "center" if abs(across) < 0.1 else "left" if across > 0 else "right"
        level = "center" if abs(up) < 0.9 else "bottom" if up > 0 else "top"
        slant = "italic" if block.table == "B" else "normal"
        text = f"{block.axis}\n{paper.METRIC_NAMES[block.metrics[-1]]} {score:.1f}"
        ax.text(angle, 1.07, text, ha=where, va=level, fontsize=10, fontstyle=slant, color=style.TEXT_COLOUR)


def _draw_line(ax: Any, angles: np.ndarray, radius: np.ndarray, colour: str, marker: str, name: str) -> None:
    """A closed line with a gap at each axis without a score; nothing at all without any score."""
    if np.isnan(radius).all():
        return
    closed = np.append(angles, angles[0] + 2 * np.pi), np.append(radius, radius[0])
    ax.plot(*closed, color=colour, marker=marker, linewidth=1.8, markersize=5, clip_on=False, zorder=3, label=name)


Point = tuple[float, float, float]
"""Share of the labels, mean score, spread (nan for a single run)."""


def label_lines(groups: Iterable[Group]) -> dict[str, list[Point]]:
    """The scores of each method that was tried with several shares of the labels, by its name in words.

    Args:
      groups: runs of one task; the score is the metric that each chose its best epoch by.
    """
    lines: dict[str, list[Point]] = {}
    for group in groups:
        run = group.first
        mean, spread = group.score(run.task.metric)
        if run.job != "evaluate" and math.isfinite(mean):
            name = f"{MODE_WORDS.get(run.mode, run.mode)}, start: {run.start.partition(' ')[0]}"
            lines.setdefault(name, []).append((run.fraction, mean, spread))
    return {name: sorted(points) for name, points in lines.items() if len({point[0] for point in points}) > 1}


def draw_label_curves(path: pathlib.Path, title: str, metric: str, lines: Mapping[str, Sequence[Point]]) -> None:
    """Draws `label_lines` over a logarithmic axis of shares, with the spread as bars.

    Args:
      path: the PNG file.
      title: of the figure.
      metric: what the scores are, in words.
      lines: at least one.
    """
    from matplotlib.ticker import NullLocator

    with style.new_figure(path, (7.5, 4.8), title) as figure:
        ax = figure.subplots()
        for colour, (name, points) in zip(_colours_of_label_curves(len(lines)), lines.items(), strict=True):
            shares, means, spreads = zip(*points, strict=True)
            bars = [0.0 if math.isnan(spread) else spread for spread in spreads]
            ax.errorbar(shares, means, bars, color=colour, marker="o", linewidth=1.8, capsize=3, label=name)
        ax.set_xscale("log")
        ticks = sorted({point[0] for points in lines.values() for point in points})
        ax.set_xticks(ticks, [f"{100 * share:g} %" for share in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("share of the training labels")
        ax.set_ylabel(metric)
        ax.grid(visible=True)
        figure.legend(loc="outside lower center", ncols=1 if len(lines) > 2 else 2)


def _colours_of_label_curves(count: int) -> list[str]:
    return [style.DATASET_COLOURS[index % len(style.DATASET_COLOURS)] for index in range(count)]


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


def draw_all(
    folder: pathlib.Path,
    run: str,
    metrics_csv: pathlib.Path,
    scores: Sequence[Score],
    mosaics: Sequence[Mosaic],
) -> list[tuple[str, str]]:
    """Draws everything that there is something to draw of.

    Args:
      folder: gets the files.
      run: what the run was, for the titles.
      metrics_csv: the training's log; without it there are no curves.
      scores: of the probes.
      mosaics: of held-out tiles, one for each dataset.

    Returns:
      File name and caption of each figure.
    """
    written = []
    curves = read_curves(metrics_csv)
    if curves:
        draw_curves(folder / "curves.png", run, curves)
        written.append(("curves.png", "Training"))
    else:
        logging.warning("no training curves: %s has no rows", metrics_csv)
    if scores:
        draw_scores(folder / "probes.png", run, scores)
        written.append(("probes.png", "Probe scores"))
    for mosaic in mosaics:
        file = f"features_{mosaic.card.name}.png"
        draw_mosaic(folder / file, run, mosaic)
        written.append((file, f"Dense features and land cover: {mosaic.card.title}"))
    return written


def draw_scores(path: pathlib.Path, run: str, scores: Sequence[Score]) -> None:
    """Bars of each probe's headline score, random start against pretrained, a panel for each task."""
    panels = [(task, [s for s in scores if s.headline and s.task == task]) for task in ("tile", "dense")]
    panels = [(task, chosen) for task, chosen in panels if chosen]
    widths = [len(chosen) + 0.6 for _, chosen in panels]
    size = (max(6.0, 1.9 * sum(widths) + 1.2), 4.6)
    with style.new_figure(path, size, f"Linear probes of frozen features: {run}") as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
        for ax, (task, chosen) in zip(axes, panels, strict=True):
            _draw_bars(ax, chosen)
            ax.set_title("One answer a tile" if task == "tile" else "One answer a 10 m pixel")
        highest = max((v for s in scores if s.headline for v in (s.random, s.pretrained) if v == v), default=1.0)
        axes[0].set_ylim(0, min(105, 120 * highest + 1))
        axes[0].set_ylabel("score on held-out tiles (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _draw_bars(ax: Any, scores: Sequence[Score]) -> None:
    """Two bars for each score, with their values above."""
    for offset, name, label, colour in (
        (-0.19, "random", "random start", style.RANDOM_COLOUR),
        (0.19, "pretrained", "pretrained", style.PRETRAINED_COLOUR),
    ):
        heights = [100 * getattr(score, name) for score in scores]
        bars = ax.bar([i + offset for i in range(len(scores))], heights, 0.36, label=label, color=colour)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=10, color=style.TEXT_COLOUR)
    ax.set_xticks(range(len(scores)), [f"{score.dataset}\n{score.metric}" for score in scores])
    ax.set_xlim(-0.6, len(scores) - 0.4)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y")
