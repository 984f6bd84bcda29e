"""Training curves from a run's metrics.csv, of any version: columns that it lacks are not drawn."""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anysat_jax.report import style

LOSSES = {"loss_predictive": "Predictive loss (smooth L1)", "loss_contrastive": "Contrastive loss (nats)"}
HEALTH = {
    "feature_rank": "Rank of features, all patches",
    "feature_rank_tiles": "Rank, tiles at a position",
    "feature_variance": "Variance, all patches",
    "feature_cosine": "Cosine, tiles at a position",
}
"""What `pretrain.health` measures of the teacher."""
SMOOTHED_SHARE = 0.05  # of the run, as the deviation of the smoothing kernel
SMOOTHED_POINTS = 200


@dataclasses.dataclass
class Curve:
    """A dataset's rows of the log, by step.

    Attributes:
      dataset: its name.
      steps: numbers of the updates.
      values: by the column's name; nan where the log has no value.
    """

    dataset: str
    steps: Float[np.ndarray, "n"]
    values: dict[str, Float[np.ndarray, "n"]]


def read_curves(path: pathlib.Path) -> list[Curve]:
    """The log's rows by dataset, sorted by name; nothing where there is no file or no row."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curves = []
    for dataset in sorted({row["dataset"] for row in rows}):
        chosen = [row for row in rows if row["dataset"] == dataset]
        columns = [name for name in (*LOSSES, "learning_rate", *HEALTH) if name in rows[0]]
        values = {name: np.array([float(row[name] or "nan") for row in chosen]) for name in columns}
        curves.append(Curve(dataset, np.array([float(row["step"]) for row in chosen]), values))
    return curves


def smooth(
    steps: Float[np.ndarray, "n"], values: Float[np.ndarray, "n"], at: Float[np.ndarray, "m"], width: float
) -> Float[np.ndarray, "m"]:
    """Averages of the finite values around each step in `at`, with Gaussian weights of a deviation of `width` steps."""
    distance = (at[:, None] - steps[None]) / max(width, 1e-9)
    finite = np.isfinite(values)
    weights = np.exp(-0.5 * distance**2) * finite[None]
    return weights @ np.where(finite, values, 0) / np.maximum(weights.sum(axis=1), 1e-12)


def draw_curves(path: pathlib.Path, run: str, curves: Sequence[Curve]) -> None:
    """Losses and the features' health, each dataset thin as logged and thick as smoothed, and the learning rate."""
    health = [name for name in HEALTH if any(np.isfinite(curve.values.get(name, np.nan)).any() for curve in curves)]
    rows = [row for row in ([*LOSSES, "learning_rate"], health) if row]
    with style.new_figure(path, (12, 0.9 + 3.7 * len(rows)), f"Training: {run}") as figure:
        axes = figure.subplot_mosaic([np.repeat(row, 12 // len(row)).tolist() for row in rows])
        for name, title in (LOSSES | HEALTH).items():
            if name in axes:
                _draw_smoothed(axes[name], name, curves)
                axes[name].set_title(title)
        _draw_learning_rate(axes["learning_rate"], curves)
        for ax in axes.values():
            ax.set_xlabel("step")
            ax.grid(visible=True)
            ax.margins(x=0.01)
        handles, labels = axes["loss_predictive"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))


def _draw_smoothed(ax: Any, name: str, curves: Sequence[Curve]) -> None:
    width = SMOOTHED_SHARE * max(curve.steps.max() for curve in curves)
    for index, curve in enumerate(curves):
        colour = style.DATASET_COLOURS[index % len(style.DATASET_COLOURS)]
        measured = np.isfinite(curve.values[name])  # not where an earlier version began the log
        if not measured.any():
            continue
        steps, values = curve.steps[measured], curve.values[name][measured]
        ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.7)
        at = np.linspace(steps[0], steps[-1], SMOOTHED_POINTS)
        ax.plot(at, smooth(steps, values, at, width), color=colour, linewidth=2, label=curve.dataset)


def _draw_learning_rate(ax: Any, curves: Sequence[Curve]) -> None:
    steps = np.concatenate([curve.steps for curve in curves])
    rates = np.concatenate([curve.values["learning_rate"] for curve in curves])
    order = np.argsort(steps)
    ax.plot(steps[order], rates[order], color=style.TEXT_COLOUR, linewidth=1.6)
    ax.set_title("Learning rate")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:.0e}")
