"""Scores from counts: counts are summed over batches and devices, and the score of the sum is the data set's score.

Averages of a score over batches are not the data set's score, so nothing here averages over batches. A class that
occurs neither in the truth nor among the predictions has no score (nan) and leaves every mean, as with scikit-learn's
`zero_division=nan`.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from anysat_jax.downstream.task import METRICS, Task, check_shapes, known_labels, standardised

Array = Any  # numpy on the host, jax on the device


@flax.struct.dataclass
class Counts:
    """What each class's score needs; a pytree, so that it can be summed over devices.

    Attributes:
      hits: how often the class was true and predicted.
      false_alarms: how often it was predicted and not true.
      misses: how often it was true and not predicted.
    """

    hits: Int[Array, "K"]
    false_alarms: Int[Array, "K"]
    misses: Int[Array, "K"]

    def __add__(self, other: Self) -> Self:
        return type(self)(self.hits + other.hits, self.false_alarms + other.false_alarms, self.misses + other.misses)


def confusion_matrix(
    truth: Int[Array, "*shape"], predicted: Int[Array, "*shape"], num_classes: int
) -> Int[Array, "K K"]:
    """How often each class (row) was predicted as each class (column). Traceable.

    Args:
      truth: class numbers; any value outside [0, num_classes), such as the label -1 for "unknown", is counted nowhere.
      predicted: class numbers in [0, num_classes).
      num_classes: K.
    """
    truth, predicted = jnp.asarray(truth, jnp.int32), jnp.asarray(predicted, jnp.int32)
    known = (truth >= 0) & (truth < num_classes)
    cells = jnp.where(known, truth * num_classes + predicted, num_classes**2)
    return jnp.bincount(cells.reshape(-1), length=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)


def class_counts(confusion: Int[Array, "K K"]) -> Counts:
    """Counts of each class from a confusion matrix with the truth in its rows."""
    hits = confusion.diagonal()
    return Counts(hits=hits, false_alarms=confusion.sum(axis=0) - hits, misses=confusion.sum(axis=1) - hits)


def label_confusion(
    truth: Bool[Array, "N K"], predicted: Bool[Array, "N K"], known: Bool[Array, "N K"]
) -> Int[Array, "K 2 2"]:
    """For each label, how often it was absent or there (row) and said to be so (column). Traceable.

    Args:
      truth: which labels each sample carries.
      predicted: which labels it is said to carry.
      known: for which labels the truth is known; the others are counted nowhere.
    """
    rows = [[(known & (truth == there) & (predicted == said)).sum(axis=0) for said in (0, 1)] for there in (0, 1)]
    return jnp.moveaxis(jnp.asarray(rows), -1, 0)


def pair_counts(confusion: Int[Array, "K 2 2"]) -> Counts:
    """Counts of each label from the matrices of `label_confusion`."""
    return Counts(hits=confusion[:, 1, 1], false_alarms=confusion[:, 0, 1], misses=confusion[:, 1, 0])


def label_counts(
    truth: Bool[Array, "N K"], predicted: Bool[Array, "N K"], valid: Bool[Array, "N"] | None = None
) -> Counts:
    """Counts of each label where a sample may carry several. Traceable.

    Args:
      truth: which labels each sample carries.
      predicted: which labels it is said to carry.
      valid: which samples count; None means all.
    """
    truth, predicted = jnp.asarray(truth, bool), jnp.asarray(predicted, bool)
    known = jnp.ones_like(truth) if valid is None else jnp.broadcast_to(valid[:, None], truth.shape)
    return pair_counts(label_confusion(truth, predicted, known))


def accuracy(counts: Counts) -> float:
    """Share of samples whose single class was predicted; nan where nothing was counted."""
    hits, _, misses = _on_host(counts)
    return float(_ratio(hits.sum(), hits.sum() + misses.sum()))


def f1_by_class(counts: Counts) -> Float[np.ndarray, "K"]:
    """F1 of each class, float64 in [0, 1]; nan where it is neither true nor predicted anywhere."""
    hits, false_alarms, misses = _on_host(counts)
    return _ratio(2 * hits, 2 * hits + false_alarms + misses)


def iou_by_class(counts: Counts) -> Float[np.ndarray, "K"]:
    """Intersection over union of each class, float64 in [0, 1]; nan where it is neither true nor predicted anywhere."""
    hits, false_alarms, misses = _on_host(counts)
    return _ratio(hits, hits + false_alarms + misses)


def macro_f1(counts: Counts) -> float:
    """Mean F1 over the classes that occur."""
    return _mean(f1_by_class(counts))


def weighted_f1(counts: Counts) -> float:
    """Mean F1 weighted by how often each class is true (the paper's score for TreeSatAI)."""
    hits, _, misses = _on_host(counts)
    return float(_ratio(np.nansum(f1_by_class(counts) * (hits + misses)), (hits + misses).sum()))


def micro_f1(counts: Counts) -> float:
    """F1 of all classes' counts together; the accuracy where each sample has one class."""
    hits, false_alarms, misses = (values.sum() for values in _on_host(counts))
    return float(_ratio(2 * hits, 2 * hits + false_alarms + misses))


def mean_iou(counts: Counts) -> float:
    """Mean intersection over union over the classes that occur."""
    return _mean(iou_by_class(counts))


def _on_host(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hits, false_alarms, misses = (np.asarray(c, np.int64) for c in (counts.hits, counts.false_alarms, counts.misses))
    return hits, false_alarms, misses


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean(scores: np.ndarray) -> float:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


ROUNDING = 1e-12  # variance of equal labels, relative to their square, that float32 may leave


@flax.struct.dataclass
class Moments:
    """What the scores need of a group of labels; or, with an axis in front, of several groups.

    Attributes:
      count: how many labels there are.
      mean: of the labels; 0 where there are none.
      spread: sum of the labels' squared distances from that mean.
      squared_error: sum of the squared errors.
      absolute_error: sum of the absolute errors.
    """

    count: Int[Array, "*groups"]
    mean: Float[Array, "*groups"]
    spread: Float[Array, "*groups"]
    squared_error: Float[Array, "*groups"]
    absolute_error: Float[Array, "*groups"]

    @classmethod
    def zero(cls) -> Self:
        """Of no labels at all."""
        return cls(0, 0.0, 0.0, 0.0, 0.0)


def sample_moments(predicted: Float[Array, "B *n"], truth: Float[Array, "B *n"], known: Bool[Array, "B *n"]) -> Moments:
    """Moments of each sample's labels, with an axis (B,). Traceable.

    One for each sample, so that float32 sums stay short; `merge_moments` adds them up in float64.

    Args:
      predicted: answers; float32 is kept.
      truth: labels, in the same unit, preferably about standardised; anything where they are unknown, NaN too.
      known: which labels count.
    """
    predicted, truth, known = (x.reshape(len(x), -1) for x in (predicted, truth, known))
    truth = jnp.where(known, truth, 0.0)
    errors = jnp.where(known, predicted - truth, 0.0)
    count = known.sum(axis=1)
    mean = truth.sum(axis=1) / jnp.maximum(count, 1)
    spread = jnp.square(jnp.where(known, truth - mean[:, None], 0.0)).sum(axis=1)
    return Moments(count, mean, spread, jnp.square(errors).sum(axis=1), jnp.abs(errors).sum(axis=1))


def merge_moments(*parts: Moments) -> Moments:
    """Moments of all the groups together, in float64 (Chan, Golub and LeVeque 1979). On the host."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.ravel(np.asarray(getattr(part, name), np.float64)) for part in parts])

    counts, means = joined("count"), joined("mean")
    total = counts.sum()
    mean = (counts * means).sum() / max(total, 1)
    spread = joined("spread").sum() + (counts * (means - mean) ** 2).sum()
    errors = (joined(name).sum() for name in ("squared_error", "absolute_error"))
    return Moments(int(total), float(mean), float(spread), *(float(error) for error in errors))


def rmse(moments: Moments) -> float:
    """Root of the mean squared error; nan where nothing was counted."""
    return float(np.sqrt(_over(moments.squared_error, moments.count)))


def mae(moments: Moments) -> float:
    """Mean absolute error; nan where nothing was counted."""
    return float(_over(moments.absolute_error, moments.count))


def r2(moments: Moments) -> float:
    """Share of the labels' variance that is explained, at most 1; nan where the labels do not vary."""
    rounding = ROUNDING * moments.count * (1 + moments.mean**2)
    return float(1 - _over(moments.squared_error, moments.spread if moments.spread > rounding else 0.0))


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")


@flax.struct.dataclass
class Tally:
    """What a batch adds to an evaluation; one of the two fields, after the kind of the task.

    Attributes:
      confusion: how often each class (row) was predicted as each (column), int32; for a multi-label task one 2 x 2
        matrix a label, [[true negatives, false alarms], [misses, hits]]. None for a regression.
      moments: of a regression, of each sample's labels and errors, in units of the task's offset and scale.
    """

    confusion: Int[Array, "K K"] | Int[Array, "K 2 2"] | None = None
    moments: Moments | None = None


def tally_batch(
    task: Task,
    logits: Float[Array, "B *n K"],
    labels: Shaped[Array, "B *n"] | Shaped[Array, "B *n K"],
    valid: Bool[Array, "B"] | None = None,
) -> Tally:
    """Counts a batch. Traceable; under `jit`, the counts of a batch cut over devices are those of the whole.

    Args:
      task: what is asked.
      logits: the network's answers; the largest one is the predicted class, those above 0 are the predicted labels.
      labels: see `known_labels`, which also says which of them count.
      valid: which samples are real; None means all.

    Raises:
      ValueError: the shapes of logits and labels do not belong together.
    """
    check_shapes(task, logits, labels)
    known = known_labels(task, labels, valid)
    if task.kind == "class":
        truth = jnp.where(known, labels, -1)
        return Tally(confusion=confusion_matrix(truth, logits.argmax(axis=-1), task.num_outputs))
    if task.kind == "multi_label":
        truth, predicted, known = (x.reshape(-1, task.num_outputs) for x in (labels == 1, logits > 0, known))
        return Tally(confusion=label_confusion(truth, predicted, known))
    return Tally(moments=sample_moments(logits[..., 0], standardised(task, labels), known))


class TallySum:
    """The sum of any number of tallies: whole numbers in int64, moments in float64.

    Attributes:
      confusion: as in `Tally`, or None.
      moments: of all samples together, in units of the task's offset and scale, or None.
    """

    def __init__(self, task: Task):
        classes = task.num_outputs
        shape = (classes, 2, 2) if task.kind == "multi_label" else (classes, classes)
        regression = task.kind == "regression"
        self.confusion = None if regression else np.zeros(shape, np.int64)
        self.moments = Moments.zero() if regression else None

    def add(self, tally: Tally) -> None:
        """Adds a batch's tally."""
        if self.moments is not None:
            self.moments = merge_moments(self.moments, tally.moments)
        else:
            self.confusion = self.confusion + np.asarray(tally.confusion, np.int64)

    @property
    def count(self) -> int:
        """How many labels were counted: samples, or pixels of a dense task."""
        if self.moments is not None:
            return int(self.moments.count)
        return int(self.confusion.sum() if self.confusion.ndim == 2 else self.confusion.sum(axis=(1, 2)).max())

    @property
    def counts(self) -> Counts:
        """Hits, false alarms and misses of each class."""
        return class_counts(self.confusion) if self.confusion.ndim == 2 else pair_counts(self.confusion)


_FROM_COUNTS: dict[str, Callable[[Counts], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "micro_f1": micro_f1,
    "mean_iou": mean_iou,
}


def scores(task: Task, total: TallySum) -> dict[str, float]:
    """Every score of `METRICS[task.kind]`, and "count", the number of labels they rest on.

    F1, accuracy and IoU lie in [0, 1]; RMSE and MAE are in the unit of the labels. nan where nothing can be said (see
    `json_values`).
    """
    if task.kind == "regression":
        of_errors = {
            "rmse": rmse(total.moments) * task.scale,
            "r2": r2(total.moments),
            "mae": mae(total.moments) * task.scale,
        }
        values = {name: of_errors[name] for name in METRICS[task.kind]}
    else:
        values = {name: _FROM_COUNTS[name](total.counts) for name in METRICS[task.kind]}
    return {**values, "count": total.count}


def per_class(task: Task, total: TallySum) -> dict[str, dict[str, float]]:
    """By score, then by class: "f1", "iou" (classes only) and "count", how often the class is true; nothing for a
    regression. nan for a class that is neither true nor predicted anywhere.
    """
    if task.kind == "regression":
        return {}
    counts = total.counts
    values = {"f1": f1_by_class(counts), "count": counts.hits + counts.misses}
    if task.kind == "class":
        values["iou"] = iou_by_class(counts)
    return {name: dict(zip(task.classes, np.asarray(of).tolist(), strict=True)) for name, of in values.items()}


def confusion(task: Task, total: TallySum) -> Int[np.ndarray, "..."] | None:
    """The confusion matrix (K, K), or (K, 2, 2) for a multi-label task, int64; None for a regression. See `Tally`."""
    return None if task.kind == "regression" else total.confusion


def json_values(values: Any) -> Any:
    """Nested dicts, lists, arrays and numbers as strict JSON values: what is not finite becomes None."""
    if isinstance(values, dict):
        return {key: json_values(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [json_values(value) for value in values]
    if isinstance(values, (np.ndarray, np.generic)):
        return json_values(values.tolist())
    return None if isinstance(values, float) and not math.isfinite(values) else values
