"""Figures of scores: confusion matrices, the radar of the paper's tasks, scores by labels used, bars of probes."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from anysat_jax.report import paper, style
from anysat_jax.report.runs import Group
from anysat_jax.report.tables import MODE_WORDS, Score, headline_rows

# ---------------------------------------------------------------- confusion matrices

CELL_INCHES = 0.36
LETTER_INCHES = 0.085
FEWEST_CELLS = 8  # a matrix of two classes gets larger cells, so that the title has room
LONGEST_NAME = 28
OUTCOMES = ("carried,\nfound", "carried,\nmissed", "not carried,\nclaimed", "not carried,\nnot claimed")


def draw_confusion(path: pathlib.Path, title: str, classes: Sequence[str], counts: Int[np.ndarray, "K ..."]) -> None:
    """Draws a matrix of K classes, or for several labels a tile a row of outcomes for each label, to a PNG file.

    `counts` is (K, K) with the truth in the rows, or (K, 2, 2): [[true negatives, false alarms], [misses, hits]].
    """
    from matplotlib import colormaps

    several = counts.ndim == 3
    fractions = label_fractions(counts) if several else row_fractions(counts)
    totals = counts[:, 1].sum(axis=-1) if several else counts.sum(axis=1)
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in classes]
    rows = [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)]
    columns = OUTCOMES if several else names
    height, width = fractions.shape
    cell = CELL_INCHES * max(1.0, FEWEST_CELLS / max(height, width))
    beside = LETTER_INCHES * max(map(len, rows))
    above = 0.5 if several else LETTER_INCHES * max(map(len, columns))
    cell_width = max(cell, 1.0) if several else cell
    with style.new_figure(path, (cell_width * width + beside + 1.6, cell * height + above + 1.4), title) as figure:
        ax = figure.subplots()
        # Grey for rows without counts: white would read as 0 %.
        colours = colormaps["Blues"].with_extremes(bad="#dddddd")
        image = ax.imshow(100 * fractions, cmap=colours, vmin=0, vmax=100, aspect="auto")
        ax.set_xticks(range(width), columns, rotation=0 if several else 90, fontsize=9)
        ax.set_yticks(range(height), rows, fontsize=9)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set(xlabel="outcome" if several else "prediction", ylabel="truth (count)")
        _write_percents(ax, fractions)
        figure.colorbar(image, ax=ax, shrink=min(1.0, 4 / (cell * height)), pad=0.02).set_label("% of the row")


def row_fractions(counts: Int[np.ndarray, "K L"]) -> Float[np.ndarray, "K L"]:
    """Returns each row over its sum; nan in rows without any count."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def label_fractions(counts: Int[np.ndarray, "K 2 2"]) -> Float[np.ndarray, "K 4"]:
    """Returns the fractions found and missed of the tiles that carry a label; claimed and not claimed of the others."""
    carried, others = row_fractions(counts[:, 1, ::-1]), row_fractions(counts[:, 0, ::-1])
    return np.concatenate([carried, others], axis=1)


def describe_confusion(classes: Sequence[str], counts: Int[np.ndarray, "K ..."]) -> str:
    """Returns the size of a matrix and the percentage that is right, in a sentence."""
    if counts.ndim == 3:
        part, total = counts[:, 1, 1].sum(), counts[:, 1].sum()
        text = f"Shares found, missed, claimed and not claimed of {len(classes)} labels; {{}} of the labels were found."
    else:
        part, total = np.trace(counts), counts.sum()
        text = f"Truth in rows, prediction in columns, {len(classes)} classes; {{}} of the counts are on the diagonal."
    return text.format(f"{100 * part / total:.0f} %" if total else "none")


def _write_percents(ax: Any, fractions: Float[np.ndarray, "K L"]) -> None:
    """Writes whole percents into the cells, except those that round to 0."""
    for row, column in np.argwhere(np.nan_to_num(fractions) >= 0.005):
        value = fractions[row, column]
        colour = "white" if value > 0.55 else style.TEXT_COLOUR
        text = ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        # Thousands of texts take long to lay out, and these are inside of the axes anyway.
        text.set_in_layout(False)


# ---------------------------------------------------------------- radar of the paper's tasks

RINGS = 4
COARSEST = 5.0  # points between rings if no score is far from its axis's best
CENTRE = 0.12  # of the radius, so that lines do not meet in a point


def radar_values(groups: Mapping[str, Sequence[Group]]) -> dict[str, list[float]]:
    """Returns scores in percent by axis: "AnySat, paper", "best other, paper" and "ours", nan if nothing was run."""
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
    scores = np.array(list(values.values()))
    best = np.nanmax(scores, axis=0)
    # As many points between rings on every axis, so that distances to the rim compare between tasks.
    step = max(COARSEST, 5 * math.ceil(np.nanmax(best - scores) / RINGS / 5))
    radii = 1 - (1 - CENTRE) * (best - scores) / (RINGS * step)
    angles = np.linspace(0, 2 * np.pi, scores.shape[1], endpoint=False)
    with style.new_figure(path, (10.5, 8.4), "Tasks of the paper") as figure:
        ax = figure.add_subplot(projection="polar")
        _draw_radar_axes(ax, angles, best, step)
        looks = ((style.PRETRAINED_COLOUR, "o"), (style.FAINT_COLOUR, "s"), (style.ACCENT_COLOUR, "D"))
        for name, radius, (colour, marker) in zip(values, radii, looks, strict=True):
            if np.isnan(radius).all():
                continue
            # The first point again closes the line; missing scores leave gaps.
            closed = np.append(angles, angles[0] + 2 * np.pi), np.append(radius, radius[0])
            line = dict(color=colour, marker=marker, linewidth=1.8, markersize=5, clip_on=False, zorder=3)
            ax.plot(*closed, label=name, **line)
        figure.legend(loc="outside lower center", ncols=3)


def _draw_radar_axes(ax: Any, angles: Float[np.ndarray, "n"], best: Float[np.ndarray, "n"], step: float) -> None:
    """Draws rings, and names of the tasks with the score at the rim; external datasets in italics."""
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
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


# ---------------------------------------------------------------- scores by the fraction of labels

Point = tuple[float, float, float]
"""Fraction of the labels, mean score, spread (nan for a single run)."""


def label_lines(groups: Iterable[Group]) -> dict[str, list[Point]]:
    """Returns scores of one task by the words for a method, if it was tried with several fractions of the labels.

    The score is the metric that each run chose its best epoch by.
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
    """Draws `label_lines`, at least one, with the spread as bars; `metric` in words."""
    from matplotlib.ticker import NullLocator

    with style.new_figure(path, (7.5, 4.8), title) as figure:
        ax = figure.subplots()
        for colour, (name, points) in style.coloured(lines.items()):
            fractions, means, spreads = zip(*points, strict=True)
            bars = [0.0 if math.isnan(spread) else spread for spread in spreads]
            ax.errorbar(fractions, means, bars, color=colour, marker="o", linewidth=1.8, capsize=3, label=name)
        # Fractions of labels are usually powers of ten: on a linear axis most points would be at its left end.
        ax.set_xscale("log")
        ticks = sorted({point[0] for points in lines.values() for point in points})
        ax.set_xticks(ticks, [f"{100 * fraction:g} %" for fraction in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="share of the training labels", ylabel=metric)
        ax.grid(visible=True)
        figure.legend(loc="outside lower center", ncols=1 if len(lines) > 2 else 2)


# ---------------------------------------------------------------- probes of a pretraining

TASK_TITLES = {"tile": "One answer a tile", "dense": "One answer a 10 m pixel"}


def draw_scores(path: pathlib.Path, run: str, scores: Sequence[Score]) -> None:
    """Draws bars of each probe's headline score, random start against pretrained, a panel for each task."""
    panels = {task: [s for s in scores if s.headline and s.task == task] for task in TASK_TITLES}
    panels = {task: chosen for task, chosen in panels.items() if chosen}
    bars = (
        (-0.19, "random", "random start", style.RANDOM_COLOUR),
        (0.19, "pretrained", "pretrained", style.PRETRAINED_COLOUR),
    )
    widths = [len(chosen) + 0.6 for chosen in panels.values()]
    size = (max(6.0, 1.9 * sum(widths) + 1.2), 4.6)
    with style.new_figure(path, size, f"Linear probes of frozen features: {run}") as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
        for ax, (task, chosen) in zip(axes, panels.items(), strict=True):
            for offset, name, label, colour in bars:
                heights = [100 * getattr(score, name) for score in chosen]
                drawn = ax.bar([i + offset for i in range(len(chosen))], heights, 0.36, label=label, color=colour)
                ax.bar_label(drawn, fmt="%.1f", padding=2, fontsize=10, color=style.TEXT_COLOUR)
            ax.set_xticks(range(len(chosen)), [f"{score.dataset}\n{score.metric}" for score in chosen])
            ax.set(title=TASK_TITLES[task], xlim=(-0.6, len(chosen) - 0.4))
            ax.tick_params(axis="x", length=0)
            ax.grid(axis="y")
        shown = [value for s in scores if s.headline for value in (s.random, s.pretrained) if math.isfinite(value)]
        # Room above the highest bar for its number, and for the numbers of bars of 0.
        top = min(105, 120 * max(shown, default=1.0) + 1)
        axes[0].set(ylim=(0, top), ylabel="score on held-out tiles (%)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
