"""The loss of a task: a weighted mean over the labels that are known."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, Shaped

from anysat_jax.adapt.labels import check_shapes, known_labels, standardised
from anysat_jax.adapt.tasks import Task

Array = Any  # numpy on the host, jax on the device


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How answers are judged in training.

    Attributes:
      class_weights: how much a label of each class counts; of a multi-label task, how much each label's question does.
        None: all the same. A regression has none.
      label_smoothing: share of the target that is spread evenly over the classes; 0 for a regression.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing = {self.label_smoothing} must lie in [0, 1)")
        weights = self.class_weights
        if weights is not None and not (all(0 <= w < math.inf for w in weights) and any(weights)):
            raise ValueError(f"class_weights = {weights} must be finite and not negative, and not all zero")


def task_loss(
    task: Task,
    config: LossConfig,
    logits: Float[Array, "B *n K"],
    labels: Shaped[Array, "B *n"] | Shaped[Array, "B *n K"],
    valid: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B"]]:
    """Softmax cross-entropy (class), binary cross-entropy (multi_label), or the squared error (regression). Traceable.

    The squared error is in units of the task's `scale`; its best answer is the expected value, which R2 and RMSE ask
    for. Under `jit` with a batch cut over devices, the means run over the labels of all of them.

    Args:
      task: what is asked.
      config: weights of the classes and smoothing.
      logits: the network's answers, any float dtype; the loss is computed in float32. K = 1 for a regression.
      labels: see `known_labels`, which also says which of them count. What the logits are elsewhere does not matter.
      valid: which samples are real; None means all.

    Returns:
      The weighted mean over all known labels, and over those of each sample; 0 where there are none. A sample whose
      answer is not finite has a loss that is not finite.

    Raises:
      ValueError: shapes do not belong together, or `config` does not fit the task.
    """
    _check(task, config)
    check_shapes(task, logits, labels)
    known = known_labels(task, labels, valid)
    logits = jnp.asarray(logits, jnp.float32)
    logits = jnp.where(known if task.kind == "multi_label" else known[..., None], logits, 0.0)
    labels = jnp.where(known, labels, 0)
    judge = {"class": _cross_entropy, "multi_label": _binary_cross_entropy, "regression": _squared_error}[task.kind]
    losses, weights = judge(task, config, logits, labels)
    weights = jnp.where(known, weights, 0.0)
    axes = tuple(range(1, losses.ndim))
    sums, totals = (losses * weights).sum(axis=axes), weights.sum(axis=axes)
    return _ratio(sums.sum(), totals.sum()), _ratio(sums, totals)


def balanced_weights(counts: Int[np.ndarray, "K"] | Sequence[int]) -> tuple[float, ...]:
    """Weights by which every class counts the same, however often it occurs.

    The weight of a class is inverse to its count, and the mean over all labels is 1: labels / (classes seen * count). A
    class that was never seen weighs 0.

    Args:
      counts: how often each class occurs in training.

    Raises:
      ValueError: nothing was counted.
    """
    counts = np.asarray(counts, np.float64)
    seen = counts > 0
    if not seen.any():
        raise ValueError(f"balanced weights of {len(counts)} classes: training has no label of any of them")
    weights = np.where(seen, counts.sum() / (seen.sum() * np.maximum(counts, 1)), 0.0)
    return tuple(weights.tolist())


def _check(task: Task, config: LossConfig) -> None:
    weights = config.class_weights
    if task.kind == "regression" and (weights is not None or config.label_smoothing):
        raise ValueError(f"task {task.dataset!r} is a regression, which has no class_weights and no label_smoothing")
    if weights is not None and len(weights) != task.num_outputs:
        raise ValueError(f"task {task.dataset!r}: {len(weights)} class_weights for {task.num_outputs} classes")


def _class_weights(task: Task, config: LossConfig) -> Float[jax.Array, "K"]:
    return jnp.ones(task.num_outputs) if config.class_weights is None else jnp.float32(config.class_weights)


def _cross_entropy(
    task: Task, config: LossConfig, logits: Float[jax.Array, "*n K"], labels: Int[jax.Array, "*n"]
) -> tuple[Float[jax.Array, "*n"], Float[jax.Array, "*n"]]:
    """Losses and weights; no one-hot targets, which take K times the memory of a label map."""
    classes = labels.astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, classes[..., None], axis=-1)[..., 0]
    share = config.label_smoothing
    losses = jax.nn.logsumexp(logits, axis=-1) - (1 - share) * chosen - share * logits.mean(axis=-1)
    return losses, _class_weights(task, config)[classes]


def _binary_cross_entropy(
    task: Task, config: LossConfig, logits: Float[jax.Array, "*n K"], labels: Shaped[jax.Array, "*n K"]
) -> tuple[Float[jax.Array, "*n K"], Float[jax.Array, "*n K"]]:
    targets = labels.astype(jnp.float32) * (1 - config.label_smoothing) + config.label_smoothing / 2
    weights = _class_weights(task, config).reshape(*(1,) * (logits.ndim - 1), -1)
    return optax.sigmoid_binary_cross_entropy(logits, targets), jnp.broadcast_to(weights, logits.shape)


def _squared_error(
    task: Task, config: LossConfig, logits: Float[jax.Array, "*n 1"], labels: Float[jax.Array, "*n"]
) -> tuple[Float[jax.Array, "*n"], Float[jax.Array, "*n"]]:
    del config
    losses = jnp.square(logits[..., 0] - standardised(task, labels))
    return losses, jnp.ones_like(losses)


def _ratio(sums: Float[jax.Array, "*n"], totals: Float[jax.Array, "*n"]) -> Float[jax.Array, "*n"]:
    return jnp.where(totals > 0, sums / jnp.where(totals > 0, totals, 1.0), 0.0)
