"""Training curves from a run's metrics.csv."""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anysat_jax.report import style

LOSSES = {"loss_predictive": "Predictive loss (smooth L1)", "loss_contrastive": "Contrastive loss (nats)"}
SMOOTHED_SHARE = 0.05  # of the run, as the deviation of the smoothing kernel
SMOOTHED_POINTS = 200


@dataclasses.dataclass
class Curve:
    """A dataset's rows of the log, by step.

    Attributes:
      dataset: its name.
      steps: numbers of the updates.
      values: by the column's name.
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
        values = {name: np.array([float(row[name]) for row in chosen]) for name in (*LOSSES, "learning_rate")}
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
    """Both losses, each dataset thin as logged and thick as smoothed, and the learning rate."""
    with style.new_figure(path, (12, 4.6), f"Training: {run}") as figure:
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.62))
        for ax, (name, title) in zip(axes, LOSSES.items(), strict=False):
            _draw_loss(ax, name, curves)
            ax.set_title(title)
        _draw_learning_rate(axes[2], curves)
        for ax in axes:
            ax.set_xlabel("step")
            ax.grid(visible=True)
            ax.margins(x=0.01)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))


def _draw_loss(ax: Any, name: str, curves: Sequence[Curve]) -> None:
    width = SMOOTHED_SHARE * max(curve.steps.max() for curve in curves)
    for index, curve in enumerate(curves):
        colour = style.DATASET_COLOURS[index % len(style.DATASET_COLOURS)]
        values = curve.values[name]
        ax.plot(curve.steps, values, color=colour, alpha=0.3, linewidth=0.7)
        at = np.linspace(curve.steps[0], curve.steps[-1], SMOOTHED_POINTS)
        ax.plot(at, smooth(curve.steps, values, at, width), color=colour, linewidth=2, label=curve.dataset)


def _draw_learning_rate(ax: Any, curves: Sequence[Curve]) -> None:
    steps = np.concatenate([curve.steps for curve in curves])
    rates = np.concatenate([curve.values["learning_rate"] for curve in curves])
    order = np.argsort(steps)
    ax.plot(steps[order], rates[order], color=style.TEXT_COLOUR, linewidth=1.6)
    ax.set_title("Learning rate")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:.0e}")
