"""The tally of an evaluation: what each batch adds up to, summed exactly, and the scores of the sum.

`tally_batch` runs on the devices and counts a batch; `TallySum` adds the counts on the host without rounding. Scores
are made of the sum only, so they do not depend on how the set was cut into batches or over devices and processes.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from anysat_jax.adapt import metrics, moments
from anysat_jax.adapt.labels import check_shapes, known_labels, standardised
from anysat_jax.adapt.metrics import Counts
from anysat_jax.adapt.moments import Moments
from anysat_jax.adapt.tasks import METRICS, Task

Array = Any  # numpy on the host, jax on the device


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
        return Tally(confusion=metrics.confusion_matrix(truth, logits.argmax(axis=-1), task.num_outputs))
    if task.kind == "multi_label":
        truth, predicted, known = (x.reshape(-1, task.num_outputs) for x in (labels == 1, logits > 0, known))
        return Tally(confusion=metrics.label_confusion(truth, predicted, known))
    return Tally(moments=moments.sample_moments(logits[..., 0], standardised(task, labels), known))


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
            self.moments = moments.merge_moments(self.moments, tally.moments)
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
        return metrics.class_counts(self.confusion) if self.confusion.ndim == 2 else metrics.pair_counts(self.confusion)


_FROM_COUNTS: dict[str, Callable[[Counts], float]] = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
    "weighted_f1": metrics.weighted_f1,
    "micro_f1": metrics.micro_f1,
    "mean_iou": metrics.mean_iou,
}


def scores(task: Task, total: TallySum) -> dict[str, float]:
    """Every score of `METRICS[task.kind]`, and "count", the number of labels they rest on.

    F1, accuracy and IoU lie in [0, 1]; RMSE and MAE are in the unit of the labels. nan where nothing can be said (see
    `json_values`).
    """
    if task.kind == "regression":
        of_errors = {
            "rmse": moments.rmse(total.moments) * task.scale,
            "r2": moments.r2(total.moments),
            "mae": moments.mae(total.moments) * task.scale,
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
    values = {"f1": metrics.f1_by_class(counts), "count": counts.hits + counts.misses}
    if task.kind == "class":
        values["iou"] = metrics.iou_by_class(counts)
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
