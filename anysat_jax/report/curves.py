"""Curves of losses, rates and scores from the logs of runs: metrics.csv and evaluation.csv, of any version."""

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
    "feature_position": "Variance explained by position",
}
"""Columns that pretraining logs of the teacher's features."""
SMOOTHED_FRACTION = 0.05  # of the run, as the deviation of the smoothing kernel
SMOOTHED_POINTS = 200
FEW_POINTS = 20  # of a curve that is not smoothed
# Smoothing takes memory in proportion to the rows: of a longer log every second row is drawn, or every third, ...
MOST_POINTS = 5000

Series = Float[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rows of a pretraining's log for one dataset; `values` by column, nan where the log has no value."""

    dataset: str
    steps: Series
    values: dict[str, Series]


def read_curves(path: pathlib.Path) -> list[Curve]:
    """Reads a pretraining's log by dataset, sorted by name; empty without a file or rows."""
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


def smooth(steps: Series, values: Series, at: Float[np.ndarray, "m"], width: float) -> Float[np.ndarray, "m"]:
    """Averages the finite values around each step in `at`, with Gaussian weights of a deviation of `width` steps."""
    distance = (at[:, None] - steps[None]) / max(width, 1e-9)
    finite = np.isfinite(values)
    # 0 * nan is nan: a weight of 0 alone would not leave a value out.
    weights = np.exp(-0.5 * distance**2) * finite[None]
    return weights @ np.where(finite, values, 0) / np.maximum(weights.sum(axis=1), 1e-12)


def draw_series(ax: Any, steps: Series, values: Series, colour: str, label: str, span: float) -> None:
    """Draws values thin as logged and thick as smoothed; a few only as logged. `span`: steps of the whole run."""
    if len(steps) < FEW_POINTS:
        ax.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label)
        return
    ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.7)
    at = np.linspace(steps[0], steps[-1], SMOOTHED_POINTS)
    # At least one logged step on each side of any point: a narrower kernel would have no weight in gaps of the log.
    width = max(SMOOTHED_FRACTION * span, np.diff(steps).max())
    ax.plot(at, smooth(steps, values, at, width), color=colour, linewidth=2, label=label)


def draw_curves(path: pathlib.Path, run: str, curves: Sequence[Curve]) -> None:
    """Draws losses and the features' health of a pretraining by dataset, and the learning rate."""
    health = [name for name in HEALTH if any(np.isfinite(curve.values.get(name, np.nan)).any() for curve in curves)]
    rows = [row for row in ([*LOSSES, "learning_rate"], health) if row]
    span = max(curve.steps.max() for curve in curves)
    with style.new_figure(path, (12, 0.9 + 3.7 * len(rows)), f"Training: {run}") as figure:
        # A row has three to five panels.
        axes = figure.subplot_mosaic([np.repeat(row, 60 // len(row)).tolist() for row in rows])
        for name, title in (LOSSES | HEALTH).items():
            if name not in axes:
                continue
            axes[name].set_title(title)
            for colour, curve in style.coloured(curves):
                # An earlier version without this column may have begun the log.
                known, values = np.isfinite(curve.values[name]), curve.values[name]
                if known.any():
                    draw_series(axes[name], curve.steps[known], values[known], colour, curve.dataset, span)
        steps = np.concatenate([curve.steps for curve in curves])
        rates = np.concatenate([curve.values["learning_rate"] for curve in curves])[np.argsort(steps)]
        rate = axes["learning_rate"]
        rate.plot(np.sort(steps), rates, color=style.TEXT_COLOUR, linewidth=1.6)
        rate.set(title="Learning rate", ylim=(0, None))
        rate.yaxis.set_major_formatter("{x:.0e}")
        for ax in axes.values():
            ax.set(xlabel="step", xmargin=0.01)
            ax.grid(visible=True)
        handles, labels = axes["loss_predictive"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))


@dataclasses.dataclass(frozen=True)
class FitLog:
    """Log of a fine-tuning; the arrays of evaluations may be empty."""

    name: str  # of the run, for the legend
    steps: Series  # number of each logged update
    loss: Series  # of each
    rate: Series  # learning rate of each
    epochs: Float[np.ndarray, "m"]  # of each evaluation
    values: Float[np.ndarray, "m"]  # of the task's metric in each
    best: int | None  # the epoch whose parameters were kept; None if unknown

    @property
    def best_value(self) -> float:
        """The value of the epoch whose parameters were kept; nan if unknown."""
        kept = self.values[self.epochs == self.best]
        return float(kept[0]) if len(kept) else math.nan

    @property
    def label(self) -> str:
        """The name, with the epoch that was kept."""
        known = math.isfinite(self.best_value)
        return f"{self.name}, best {self.best_value:.3f} at epoch {self.best}" if known else self.name


def read_fit_log(run: Run) -> FitLog | None:
    """Reads the log of a run; None if it has none, as an evaluation.

    Raises:
      BrokenRun: a file lacks a column or has a value that is not a number.
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


def _read_columns(run: Run, file: str, names: Sequence[str]) -> list[Series]:
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
    """Draws the logs of one experiment, at least one, a colour for each seed; a ring marks the epoch that was kept."""
    lines, ring = dict(marker="o", markersize=3.5, linewidth=1.6), dict(markersize=11, fillstyle="none", linestyle="")
    with style.new_figure(path, (12, 4.2), title) as figure:
        loss, rate, values = figure.subplots(1, 3)
        for colour, log in style.coloured(logs):
            draw_series(loss, log.steps, log.loss, colour, log.label, log.steps[-1] - log.steps[0])
            marker = "o" if len(log.rate) < FEW_POINTS else ""
            rate.plot(log.steps, log.rate, color=colour, **lines | {"marker": marker})
            values.plot(log.epochs, log.values, color=colour, **lines)
            if math.isfinite(log.best_value):
                values.plot([log.best], [log.best_value], color=style.ACCENT_COLOUR, marker="o", clip_on=False, **ring)
        names = {loss: "Training loss", rate: "Learning rate", values: f"Validation: {metric}"}
        for ax, name in names.items():
            ax.set(title=name, xlabel="epoch" if ax is values else "step", xmargin=0.02)
            ax.grid(visible=True)
            ax.xaxis.get_major_locator().set_params(integer=True)
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter("{x:.1e}")
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(logs)))
