"""Tasks of a dataset: kind of the labels, metrics, losses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, Shaped

from anysat_jax.errors import ConfigError
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard

Level = Literal["tile", "dense"]
Kind = Literal["class", "multi_label", "regression"]

METRICS: dict[Kind, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1", "weighted_f1", "micro_f1", "mean_iou"),
    "multi_label": ("weighted_f1", "macro_f1", "micro_f1"),
    "regression": ("rmse", "r2", "mae"),
}
"""Scores of each kind of task; in the paper's tables accuracy is OA, mean_iou mIoU, macro_f1 maF1, weighted_f1 wF1."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Prediction of a label for each tile, or for each pixel of its label map."""

    dataset: str  # the dataset's name
    title: str  # the name shown to people
    # "tile" for a prediction for each tile, "dense" for each pixel of the label map; the key of `Batch.labels`.
    level: Level
    kind: Kind  # "class" for one class of several, "multi_label" for any number of them, "regression" for a number
    classes: tuple[str, ...] = ()  # names of the classes; none for a regression
    colours: tuple[str, ...] = ()  # a colour "#rrggbb" for each class of a dense task; may be empty
    metric: str = "accuracy"  # chooses the best checkpoint; one of `METRICS[kind]`
    metres: float = 0.0  # side of a pixel of the label map; 0 for a tile task
    sensor: str = ""  # sensor whose sub-patches the dense prediction is made of; "" for a tile task
    unit: str = ""  # of a regression
    # offset, scale: of a regression: the label is offset + scale * the network's output.
    offset: float = 0.0
    scale: float = 1.0

    @property
    def num_outputs(self) -> int:
        """Outputs of the network for each prediction."""
        return 1 if self.kind == "regression" else len(self.classes)

    @property
    def lower_is_better(self) -> bool:
        """Returns whether the metric is an error."""
        return self.metric in ("rmse", "mae")

    @property
    def pixels_per_subpatch(self) -> int:
        """Label pixels along a side of a sub-patch of `sensor`; 1 of a tile task."""
        return round(get_sensor(self.sensor).subpatch_metres / self.metres) if self.level == "dense" else 1

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the task whose `dataclasses.asdict` went through JSON, which makes lists of tuples."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def make_task(card: DatasetCard, level: Level, *, metric: str = "", sensor: str = "") -> Task:
    """Returns the task of a dataset's labels of a level.

    Args:
      metric: chooses the best checkpoint; "": the first of the kind, and mean_iou for class maps.
      sensor: its sub-patches make a dense prediction; "": the sensor whose sub-patches are the label's pixels, or else
        the finest whole multiple of them; Sentinel-2 where several fit.

    Raises:
      ConfigError: the dataset has no such label, no sensor fits, or the kind has no such metric.
    """
    if level not in get_args(Level):
        raise ConfigError(f"task.level = {level!r} must be 'tile' or 'dense'")
    label = card.tile_label if level == "tile" else card.dense_label
    if label == "none":
        other = "dense" if level == "tile" else "tile"
        has = "no labels at all" if card.tile_label == card.dense_label == "none" else f"labels of level {other!r} only"
        raise ConfigError(f"task.level = {level!r}: dataset {card.name!r} has {has}")
    kind: Kind = {"segmentation": "class", "change": "class"}.get(label, label)
    # The paper scores class maps by mIoU.
    metric = metric or ("mean_iou" if level == "dense" and kind == "class" else METRICS[kind][0])
    if metric not in METRICS[kind]:
        raise ConfigError(
            f"task.metric = {metric!r}: the labels of {card.name!r} are of kind {kind!r}, measured by "
            f"{', '.join(METRICS[kind])}"
        )
    dense = level == "dense"
    return Task(
        dataset=card.name,
        title=card.title,
        level=level,
        kind=kind,
        classes=card.dense_classes if dense else card.tile_classes,
        colours=card.dense_colours if dense else (),
        metric=metric,
        metres=card.dense_metres if dense else 0.0,
        sensor=_dense_sensor(card, sensor) if dense else "",
        unit=card.label_unit if kind == "regression" else "",
    )


def _dense_sensor(card: DatasetCard, wanted: str) -> str:
    multiples = {}  # label pixels along a side of a sub-patch, by sensor
    for name in card.sensors:
        sensor = get_sensor(name)
        ratio = sensor.subpatch_metres / card.dense_metres
        # Ratios of decimal metres, such as 2 / 0.2, are whole numbers up to rounding only.
        if sensor.kind != "context" and round(ratio) >= 1 and abs(ratio - round(ratio)) < 1e-6:
            multiples[name] = round(ratio)
    if wanted and wanted not in multiples:
        raise ConfigError(
            f"task.sensor = {wanted!r}: a dense prediction for {card.name!r} can be made of the sub-patches of "
            f"{', '.join(multiples) or 'no sensor'}"
        )
    if not multiples:
        raise ConfigError(
            f"dataset {card.name!r}: no sensor's sub-patches are squares of label pixels of {card.dense_metres:g} m"
        )
    # The finest prediction; of equally fine ones Sentinel-2's, which most archives have.
    return wanted or min(multiples, key=lambda name: (multiples[name], name != "s2"))


Array = Any  # numpy on the host, jax on the device


def known_labels(
    task: Task, labels: Shaped[Array, "B *shape"], valid: Bool[Array, "B"] | None = None
) -> Bool[Array, "B *shape"]:
    """Returns True for the labels that count. Traceable.

    Args:
      task: of a "class" task, every value outside [0, K) is unknown; of a "multi_label" task, every value but 0 and 1;
        of a "regression", every value that is not finite.
      labels: class numbers, zeros and ones (B, *n, K), or numbers in the task's unit.
      valid: True for samples that are not padding; padding does not count. None: all.
    """
    labels = jnp.asarray(labels)
    if task.kind == "class":
        known = (labels >= 0) & (labels < task.num_outputs)
    elif task.kind == "multi_label":
        known = (labels == 0) | (labels == 1)
    else:
        known = jnp.isfinite(labels)
    if valid is None:
        return known
    return known & jnp.asarray(valid, bool).reshape(-1, *(1,) * (labels.ndim - 1))


def standardised(task: Task, labels: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the target of a regression's network, float32: (label - offset) / scale."""
    return (jnp.asarray(labels, jnp.float32) - task.offset) / task.scale


def prediction(task: Task, logits: Float[np.ndarray, "*shape K"]) -> Shaped[np.ndarray, "..."]:
    """Returns the prediction of logits: class numbers, labels (bool, with K), or numbers in the label's unit."""
    if task.kind == "regression":
        return logits[..., 0] * task.scale + task.offset
    return logits > 0 if task.kind == "multi_label" else logits.argmax(axis=-1)


def check_shapes(task: Task, logits: Shaped[Array, "..."], labels: Shaped[Array, "..."]) -> None:
    """Checks that there is one prediction for each label.

    Raises:
      ValueError: the shapes of logits and labels do not belong together.
    """
    expected = labels.shape if task.kind == "multi_label" else (*labels.shape, task.num_outputs)
    if logits.shape != expected or logits.shape[-1] != task.num_outputs:
        raise ValueError(
            f"task {task.dataset!r}: logits of shape {logits.shape} for labels of shape {labels.shape}; labels of kind "
            f"{task.kind!r} with {task.num_outputs} outputs need logits of shape {(*expected[:-1], task.num_outputs)}"
        )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the loss; `DownstreamConfig` checks their values."""

    # Weight of each class, or of each label of a multi-label task. None: equal weights. None for a regression.
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0  # fraction of the target that is spread evenly over the classes; 0 for a regression


def task_loss(
    task: Task,
    config: LossConfig,
    logits: Float[Array, "B *n K"],
    labels: Shaped[Array, "B *n"] | Shaped[Array, "B *n K"],
    valid: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Returns softmax cross-entropy (class), binary cross-entropy (multi_label) or squared error (regression).

    The squared error is in units of the task's `scale`; its minimum is the expected value, which also minimises RMSE.
    Under `jit` with a batch cut over devices, the means are over the labels of all devices. Traceable.

    Args:
      logits: any float dtype; the loss is computed in float32. K = 1 for a regression.
      labels: see `known_labels`, which also defines which of them count; logits of the others have no influence.
      valid: True for samples that are not padding; None: all.

    Returns:
      The weighted mean over all known labels, and over those of each sample; 0 where there are none. A sample with
      logits that are not finite has a loss that is not finite.

    Raises:
      ValueError: shapes do not belong together, or `config` does not fit the task.
    """
    check_shapes(task, logits, labels)
    known = known_labels(task, labels, valid)
    logits = jnp.asarray(logits, jnp.float32)
    # Replaced before the loss, not after it: the gradient of 0 * nan is nan.
    logits = jnp.where(known if task.kind == "multi_label" else known[..., None], logits, 0.0)
    losses, weights = _label_losses(task, config, logits, jnp.where(known, labels, 0))
    weights = jnp.where(known, weights, 0.0)
    # A mean over labels, not over samples: a map that is mostly unknown weighs less.
    axes = tuple(range(1, losses.ndim))
    sums, totals = (losses * weights).sum(axis=axes), weights.sum(axis=axes)
    return _ratio(sums.sum(), totals.sum()), _ratio(sums, totals)


def _label_losses(
    task: Task, config: LossConfig, logits: Float[jax.Array, "*n K"], labels: Shaped[jax.Array, "..."]
) -> tuple[Float[jax.Array, "..."], Float[jax.Array, "..."]]:
    """Returns the loss of each label, and its weight."""
    if task.kind == "regression":
        losses = jnp.square(logits[..., 0] - standardised(task, labels))
        return losses, jnp.ones_like(losses)
    smoothing = config.label_smoothing
    weights = jnp.ones(task.num_outputs) if config.class_weights is None else jnp.float32(config.class_weights)
    if task.kind == "multi_label":
        targets = labels.astype(jnp.float32) * (1 - smoothing) + smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits, targets), jnp.broadcast_to(weights, logits.shape)
    classes = labels.astype(jnp.int32)
    # Without one-hot targets, which take K times the memory of a label map.
    chosen = jnp.take_along_axis(logits, classes[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - (1 - smoothing) * chosen - smoothing * logits.mean(axis=-1)
    return losses, weights[classes]


def _ratio(sums: Float[jax.Array, "*n"], totals: Float[jax.Array, "*n"]) -> Float[jax.Array, "*n"]:
    # The inner `where` keeps the gradient finite where nothing is known.
    return jnp.where(totals > 0, sums / jnp.where(totals > 0, totals, 1.0), 0.0)


def balanced_weights(counts: Int[np.ndarray, "K"] | Sequence[int]) -> tuple[float, ...]:
    """Returns weights that give every class the same total weight: labels / (classes with labels * its count), or 0.

    Raises:
      ValueError: all counts, of the training labels of each class, are 0.
    """
    counts = np.asarray(counts, np.float64)
    seen = counts > 0
    if not seen.any():
        raise ValueError(f"balanced weights of {len(counts)} classes: training has no label of any of them")
    # The mean over all labels is 1, so that the learning rate needs no change.
    weights = np.where(seen, counts.sum() / (seen.sum() * np.maximum(counts, 1)), 0.0)
    return tuple(weights.tolist())
