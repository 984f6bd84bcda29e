"""Scores from counts: counts are summed over batches and devices, and the score of the sum is the data set's score.

Averages of a score over batches are not the data set's score, so nothing here averages over batches. A class that
occurs neither in the truth nor among the predictions has no score (nan) and leaves every mean, as with scikit-learn's
`zero_division=nan`.
"""

from typing import Any, Self

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

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
