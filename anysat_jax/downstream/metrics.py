"""Scores of a split, from counts that are summed over batches, devices and hosts.

The mean of batch scores is not the score of a split, so scores are computed from the sums alone. A class that occurs
neither in the truth nor among the predictions has no score (nan) and is left out of every mean, like scikit-learn's
`zero_division=nan`.
"""

import math
from collections.abc import Iterable
from typing import Any, Self

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from anysat_jax.downstream.task import METRICS, LossConfig, Task, check_shapes, known_labels, standardised, task_loss

Array = Any  # numpy on the host, jax on the device
ROUNDING = 1e-12  # variance of equal labels, relative to their square, that float32 may leave


@flax.struct.dataclass
class Moments:
    """Sufficient statistics of a regression's scores for a group of labels; an axis in front for several groups."""

    count: Int[Array, "*groups"]  # number of labels
    mean: Float[Array, "*groups"]  # of the labels; 0 where there are none
    spread: Float[Array, "*groups"]  # sum of the labels' squared distances from that mean
    squared_error: Float[Array, "*groups"]  # sum over the labels
    absolute_error: Float[Array, "*groups"]  # sum over the labels

    def merged(self, other: Self) -> Self:
        """Returns the moments of all groups of both, in float64 (Chan, Golub and LeVeque 1979). On the host."""
        names = ("count", "mean", "spread", "squared_error", "absolute_error")
        counts, means, *sums = (
            np.concatenate([np.ravel(np.asarray(getattr(part, name), np.float64)) for part in (self, other)])
            for name in names
        )
        mean = (counts * means).sum() / max(counts.sum(), 1)
        spread, squared, absolute = (float(values.sum()) for values in sums)
        # Distances from each group's own mean, plus those of the means: no difference of two large sums of squares.
        spread += float((counts * (means - mean) ** 2).sum())
        return Moments(int(counts.sum()), float(mean), spread, squared, absolute)


@flax.struct.dataclass
class EvalCounts:
    """Counts of a batch."""

    samples: Int[Array, ""]  # number of samples, padding left out
    labelled: Int[Array, ""]  # those that have a label
    # Sum of their losses, each sample's own mean counting once; 0 if no loss was computed.
    loss: Float[Array, ""] | float
    # Number of times that each class (row) was predicted as each (column), int32; of a multi-label task one 2 x 2
    # matrix for each label, [[true negatives, false alarms], [misses, hits]]. None for a regression.
    confusion: Int[Array, "K K"] | Int[Array, "K 2 2"] | None = None
    # Of a regression, of each sample's labels and errors, (B,), in units of the task's offset and scale.
    moments: Moments | None = None


def count_batch(
    task: Task,
    logits: Float[Array, "B *n K"],
    labels: Shaped[Array, "B *n"] | Shaped[Array, "B *n K"],
    valid: Bool[Array, "B"] | None = None,
    loss: LossConfig | None = None,
) -> EvalCounts:
    """Counts a batch. Traceable; under `jit`, the counts of a batch cut over devices are those of the whole batch.

    Args:
      logits: the largest is the predicted class; those above 0 are the predicted labels.
      labels: see `known_labels`, which also defines which of them count.
      valid: True for samples that are not padding; None: all.
      loss: class weights and smoothing; None: no loss is computed.

    Raises:
      ValueError: the shapes of logits and labels do not belong together.
    """
    check_shapes(task, logits, labels)
    known = known_labels(task, labels, valid)
    labelled, loss_sum = known.reshape(len(known), -1).any(axis=1), 0.0
    if loss is not None:
        # Of each sample, not of the batch, whose mean would depend on how the split was cut into batches.
        _, losses = task_loss(task, loss, logits, labels, valid)
        loss_sum = jnp.where(labelled, losses, 0.0).sum()
    samples = jnp.asarray(len(known) if valid is None else valid.sum())
    counts = EvalCounts(samples, labelled.sum(), loss_sum)
    if task.kind == "class":
        classes = task.num_outputs
        # Pairs (truth, prediction) as one number, for `bincount`; unknown labels go into a bin of their own.
        cells = jnp.asarray(labels, jnp.int32) * classes + logits.argmax(axis=-1)
        cells = jnp.where(known, cells, classes**2).reshape(-1)
        return counts.replace(confusion=jnp.bincount(cells, length=classes**2 + 1)[:-1].reshape(classes, classes))
    if task.kind == "multi_label":
        truth, predicted, known = (x.reshape(-1, task.num_outputs) for x in (labels == 1, logits > 0, known))
        cells = [[(known & (truth == t) & (predicted == p)).sum(axis=0) for p in (0, 1)] for t in (0, 1)]
        return counts.replace(confusion=jnp.moveaxis(jnp.asarray(cells), -1, 0))
    return counts.replace(moments=_sample_moments(logits[..., 0], standardised(task, labels), known))


def _sample_moments(
    predicted: Float[Array, "B *n"], truth: Float[Array, "B *n"], known: Bool[Array, "B *n"]
) -> Moments:
    # Of each sample, so that float32 sums stay short; `Moments.merged` adds them in float64.
    predicted, truth, known = (x.reshape(len(x), -1) for x in (predicted, truth, known))
    truth = jnp.where(known, truth, 0.0)
    errors = jnp.where(known, predicted - truth, 0.0)
    count = known.sum(axis=1)
    mean = truth.sum(axis=1) / jnp.maximum(count, 1)
    spread = jnp.square(jnp.where(known, truth - mean[:, None], 0.0)).sum(axis=1)
    return Moments(count, mean, spread, jnp.square(errors).sum(axis=1), jnp.abs(errors).sum(axis=1))


class SplitScores:
    """Sum of the counts of any number of batches, and its scores: whole numbers in int64, moments in float64."""

    def __init__(self, task: Task):
        classes, regression = task.num_outputs, task.kind == "regression"
        shape = (classes, 2, 2) if task.kind == "multi_label" else (classes, classes)
        self._task, self._labelled, self._loss = task, 0, 0.0
        self.samples = 0  # number of samples: tiles, or windows of them
        # Positions in the split of the tiles that could not be read, and that the scores do without.
        self.left_out: set[int] = set()
        # As in `EvalCounts`, int64, or None.
        self.confusion: Int[np.ndarray, "..."] | None = None if regression else np.zeros(shape, np.int64)
        # Of all samples together, in units of the task's offset and scale, or None.
        self.moments = Moments(0, 0.0, 0.0, 0.0, 0.0) if regression else None

    def add(self, counts: EvalCounts, left_out: Iterable[int] = ()) -> None:
        """Adds a batch's counts, and the tiles that it lacks."""
        self.samples += int(counts.samples)
        self._labelled += int(counts.labelled)
        self._loss += float(counts.loss)
        self.left_out.update(left_out)
        if self.moments is not None:
            self.moments = self.moments.merged(counts.moments)
        else:
            # int32 on the devices is enough for the pixels of a batch, not for those of a split.
            self.confusion = self.confusion + np.asarray(counts.confusion, np.int64)

    @property
    def count(self) -> int:
        """Number of labels that were counted: samples, or pixels of a dense task."""
        if self.moments is not None:
            return int(self.moments.count)
        # Of a multi-label task every label has a matrix, and may be unknown where another is known.
        return int(self.confusion.sum() if self.confusion.ndim == 2 else self.confusion.sum(axis=(1, 2)).max())

    @property
    def loss(self) -> float:
        """Mean loss over the samples that have a label; nan without any."""
        return self._loss / self._labelled if self._labelled else math.nan

    @property
    def scores(self) -> dict[str, float]:
        """Every score of `METRICS[task.kind]`, and "count", the number of labels.

        F1, accuracy and IoU are in [0, 1]; RMSE and MAE are in the unit of the labels. nan where nothing was counted.
        """
        if self.moments is not None:
            moments, scale = self.moments, self._task.scale
            # Equal labels have no R2, but float32 leaves them a spread of about their rounding.
            varies = moments.spread > ROUNDING * moments.count * (1 + moments.mean**2)
            values = {
                "rmse": np.sqrt(_ratio(moments.squared_error, moments.count)) * scale,
                "mae": _ratio(moments.absolute_error, moments.count) * scale,
                "r2": 1 - _ratio(moments.squared_error, moments.spread if varies else 0.0),
            }
        else:
            hits, false_alarms, misses, f1, iou = self._by_class()
            support = hits + misses
            values = {
                "accuracy": _ratio(hits.sum(), support.sum()),
                "macro_f1": _mean(f1),
                "weighted_f1": _ratio(np.nansum(f1 * support), support.sum()),  # the paper's score for TreeSatAI
                "micro_f1": _ratio(2 * hits.sum(), 2 * hits.sum() + false_alarms.sum() + misses.sum()),
                "mean_iou": _mean(iou),
            }
        return {name: float(values[name]) for name in METRICS[self._task.kind]} | {"count": self.count}

    @property
    def metrics(self) -> dict[str, float]:
        """The scores and the loss, without the count."""
        return {name: value for name, value in self.scores.items() if name != "count"} | {"loss": self.loss}

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """By score, then by class: "f1", "count" (true labels) and "iou" (classes only); {} of a regression."""
        if self.moments is not None:
            return {}
        hits, _, misses, f1, iou = self._by_class()
        values = {"f1": f1, "count": hits + misses} | ({"iou": iou} if self._task.kind == "class" else {})
        return {name: dict(zip(self._task.classes, of.tolist(), strict=True)) for name, of in values.items()}

    def _by_class(self) -> tuple[np.ndarray, ...]:
        """Returns hits, false alarms, misses, F1 and IoU of each class."""
        if self.confusion.ndim == 3:
            hits, false_alarms, misses = self.confusion[:, 1, 1], self.confusion[:, 0, 1], self.confusion[:, 1, 0]
        else:
            hits = self.confusion.diagonal()
            false_alarms, misses = self.confusion.sum(axis=0) - hits, self.confusion.sum(axis=1) - hits
        wrong = false_alarms + misses
        return hits, false_alarms, misses, _ratio(2 * hits, 2 * hits + wrong), _ratio(hits, hits + wrong)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def _mean(scores: Float[np.ndarray, "K"]) -> float:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan


def json_values(values: Any) -> Any:
    """Returns nested dicts, lists, arrays and numbers as strict JSON values: nan and infinities become None."""
    if isinstance(values, dict):
        return {key: json_values(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [json_values(value) for value in values]
    if isinstance(values, (np.ndarray, np.generic)):
        return json_values(values.tolist())
    return None if isinstance(values, float) and not math.isfinite(values) else values
