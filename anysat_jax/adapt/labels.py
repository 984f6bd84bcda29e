"""Which labels count, and in which unit a network answers."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from anysat_jax.adapt.tasks import Task

Array = Any  # numpy on the host, jax on the device


def known_labels(
    task: Task, labels: Shaped[Array, "B *shape"], valid: Bool[Array, "B"] | None = None
) -> Bool[Array, "B *shape"]:
    """True for the labels that count. Traceable.

    Args:
      task: what the labels answer. Of a "class" task, every value outside [0, K) is unknown; of a "multi_label" task,
        every value but 0 and 1; of a "regression", every value that is not finite.
      labels: class numbers, zeros and ones (B, *n, K), or numbers in the task's unit.
      valid: which samples are real; the others, such as the padding of a last batch, do not count. None means all.
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
    """What the network of a regression should answer, float32: (label - offset) / scale."""
    return (jnp.asarray(labels, jnp.float32) - task.offset) / task.scale


def in_unit(task: Task, logits: Float[Array, "*shape 1"]) -> Float[Array, "*shape"]:
    """A regression's answers in the unit of its labels."""
    return logits[..., 0] * task.scale + task.offset


def check_shapes(task: Task, logits: Shaped[Array, "..."], labels: Shaped[Array, "..."]) -> None:
    """Sees that there is one answer for each label.

    Raises:
      ValueError: the shapes of logits and labels do not belong together.
    """
    expected = labels.shape if task.kind == "multi_label" else (*labels.shape, task.num_outputs)
    if logits.shape != expected or logits.shape[-1] != task.num_outputs:
        raise ValueError(
            f"task {task.dataset!r}: logits of shape {logits.shape} for labels of shape {labels.shape}; labels of kind "
            f"{task.kind!r} with {task.num_outputs} outputs need logits of shape {(*expected[:-1], task.num_outputs)}"
        )
