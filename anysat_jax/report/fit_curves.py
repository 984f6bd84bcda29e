"""Curves of a fit: training loss, learning rate, and the validation metric with the best epoch marked."""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anysat_jax.report import style
from anysat_jax.report.curves import SMOOTHED_POINTS, SMOOTHED_SHARE, smooth
from anysat_jax.report.runs import BrokenRun, Run, clean

FEW_POINTS = 20  # of a curve that is drawn as it is
MOST_POINTS = 5000  # of a curve; of a longer log every second row is drawn, or every third, ...


@dataclasses.dataclass(frozen=True)
class FitLog:
    """What a fit has logged; the arrays of evaluations may be empty.

    Attributes:
      name: of the run, for the legend.
      steps, loss, rate: number of each logged update, its loss and its learning rate.
      epochs, values: of each evaluation, and its value of the task's metric.
      best: the epoch whose parameters were kept; None where none is known.
    """

    name: str
    steps: Float[np.ndarray, "n"]
    loss: Float[np.ndarray, "n"]
    rate: Float[np.ndarray, "n"]
    epochs: Float[np.ndarray, "m"]
    values: Float[np.ndarray, "m"]
    best: int | None

    @property
    def best_value(self) -> float:
        """The value of the epoch whose parameters were kept; nan where it is not known."""
        kept = self.values[self.epochs == self.best]
        return float(kept[0]) if len(kept) else math.nan

    @property
    def in_words(self) -> str:
        """The name, with the epoch that was kept."""
        known = math.isfinite(self.best_value)
        return f"{self.name}, best {self.best_value:.3f} at epoch {self.best}" if known else self.name


def read_fit_log(run: Run) -> FitLog | None:
    """The log of a run; None where it has none, as an evaluation.

    Raises:
      BrokenRun: a file lacks a column or has a value that is no number.
    """
    if not (run.folder / "metrics.csv").exists():
        return None
    steps, loss, rate = _read_columns(run, "metrics.csv", ("step", "loss", "learning_rate"))
    if not len(steps):
        return None
    epochs, values = np.empty(0), np.empty(0)
    if (run.folder / "evaluation.csv").exists():
        epochs, values = _read_columns(run, "evaluation.csv", ("epoch", run.task.metric))
    return FitLog(f"seed {run.seed}", steps, loss, rate, epochs, values, run.best_epoch)


def _read_columns(run: Run, file: str, names: Sequence[str]) -> list[Float[np.ndarray, "n"]]:
    where = f"{run.label}/{file}"
    try:
        with (run.folder / file).open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        rows = rows[:: 1 + len(rows) // MOST_POINTS]
        return [np.array([float(row[name] or "nan") for row in rows]) for name in names]
    except KeyError as error:
        raise BrokenRun(f"{where} has no column {error}; its curves are not shown.") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise BrokenRun(f"{where} cannot be read: {clean(error)}; its curves are not shown.") from None


def draw_fit_curves(path: pathlib.Path, title: str, metric: str, logs: Sequence[FitLog]) -> None:
    """Draws the logs of one experiment, a colour for each seed.

    Args:
      path: the PNG file.
      title: of the figure.
      metric: what the values of the evaluations are, in words.
      logs: at least one.
    """
    with style.new_figure(path, (12, 4.2), title) as figure:
        axes = figure.subplots(1, 3)
        for index, log in enumerate(logs):
            colour = style.DATASET_COLOURS[index % len(style.DATASET_COLOURS)]
            _draw_loss(axes[0], log, colour)
            marker = "o" if len(log.rate) < FEW_POINTS else ""
            axes[1].plot(log.steps, log.rate, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
            _draw_values(axes[2], log, colour)
        for ax, name, unit in zip(
            axes, ("Training loss", "Learning rate", f"Validation: {metric}"), ("step", "step", "epoch"), strict=True
        ):
            ax.set_title(name)
            ax.set_xlabel(unit)
            ax.grid(visible=True)
            ax.margins(x=0.02)
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[1].set_ylim(bottom=0)
        axes[1].yaxis.set_major_formatter("{x:.1e}")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(logs)))


def _draw_loss(ax: Any, log: FitLog, colour: str) -> None:
    """Thin as logged, thick as smoothed; as logged only where there is little of it."""
    if len(log.steps) < FEW_POINTS:
        ax.plot(log.steps, log.loss, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=log.in_words)
        return
    ax.plot(log.steps, log.loss, color=colour, alpha=0.3, linewidth=0.7)
    at = np.linspace(log.steps[0], log.steps[-1], SMOOTHED_POINTS)
    width = max(SMOOTHED_SHARE * (log.steps[-1] - log.steps[0]), np.diff(log.steps).max())
    ax.plot(at, smooth(log.steps, log.loss, at, width), color=colour, linewidth=2, label=log.in_words)


def _draw_values(ax: Any, log: FitLog, colour: str) -> None:
    """The values by epoch, the best with a ring."""
    ax.plot(log.epochs, log.values, color=colour, marker="o", markersize=3.5, linewidth=1.6)
    if math.isfinite(log.best_value):
        ring = dict(marker="o", markersize=11, fillstyle="none", linestyle="", clip_on=False)
        ax.plot([log.best], [log.best_value], color=style.ACCENT_COLOUR, **ring)
