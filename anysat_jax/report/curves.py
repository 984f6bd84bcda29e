"""Training curves from a run's metrics.csv, of any version: columns that it lacks are not drawn."""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anysat_jax.report import style
from anysat_jax.report.runs import BrokenRun, Run, clean

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
