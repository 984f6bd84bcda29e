"""The radar of the paper's figure A: a task an axis, the paper's AnySat, the best of the others, and ours."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anysat_jax.report import paper, style
from anysat_jax.report.groups import Group
from anysat_jax.report.results_tables import headline_rows

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
