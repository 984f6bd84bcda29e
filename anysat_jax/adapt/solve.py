"""Linear heads solved at once: the best LayerNorm + Linear on frozen features, without a learning rate.

The head is a convex problem, see `anysat_jax.adapt.probe`. Where features differ little beside what they share, as
those of an untrained or shortly trained encoder do, AdamW takes thousands of steps to what is found here in seconds.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from anysat_jax.adapt.labels import known_labels, standardised
from anysat_jax.adapt.losses import LossConfig, task_loss
from anysat_jax.adapt.probe import LinearProbe, feature_statistics, fit_penalties, layer_norm, probe_logits
from anysat_jax.adapt.tasks import Task

PENALTIES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""Weights of |kernel|^2 / 2 beside the mean loss, for features of unit variance."""

HeadParams = Mapping[str, Mapping[str, Float[Array, "..."]]]


def solve_head(
    task: Task,
    train: tuple[Float[np.ndarray, "N F"], Shaped[np.ndarray, "N *K"]],
    val: tuple[Float[np.ndarray, "M F"], Shaped[np.ndarray, "M *K"]],
) -> tuple[HeadParams, float, float]:
    """The head whose penalty has the lowest loss on the validation part.

    The loss, not the task's metric: on few labels the metric is so noisy that it picks penalties by luck.

    Args:
      train: features and labels to fit; labels that are unknown are left out.
      val: features and labels to choose the penalty by.

    Returns:
      Parameters of `Head` of kind "linear", float32; the penalty; its loss.

    Raises:
      ValueError: no sample of a part has a label, or features are not finite.
    """
    used = _known(task, "training", *train)
    judged = _known(task, "validation", *val)
    probes = _fit(task, jnp.asarray(train[0][used], jnp.float32), np.asarray(train[1])[used])
    losses = [_loss(task, _member(probes, i), val[0][judged], val[1][judged]) for i in range(len(PENALTIES))]
    best = int(np.argmin(losses))
    return _as_head(_member(probes, best)), PENALTIES[best], losses[best]


def _member(probes: LinearProbe, number: int) -> LinearProbe:
    return jax.tree.map(lambda leaf: np.asarray(leaf[number]), probes)


def _known(task: Task, part: str, features: np.ndarray, labels: np.ndarray) -> Bool[np.ndarray, "N"]:
    known = np.asarray(known_labels(task, labels))
    known = known.reshape(len(known), -1).all(axis=1)
    if not known.any():
        raise ValueError(f"no sample of the {part} part has a label, so that no head can be solved")
    if not np.isfinite(features[known]).all():
        raise ValueError(f"features of the {part} part are not finite, so that no head can be solved")
    return known


def _fit(task: Task, features: Float[Array, "N F"], labels: Shaped[np.ndarray, "N *K"]) -> LinearProbe:
    """A probe for each penalty."""
    if task.kind == "regression":
        return _ridge(features, jnp.asarray(standardised(task, labels), jnp.float32).reshape(-1, 1))
    targets = labels if task.kind == "multi_label" else labels[:, None] == np.arange(task.num_outputs)[None]
    everything = jnp.ones(len(labels), bool)
    multi_label = task.kind == "multi_label"
    return fit_penalties(
        features, jnp.asarray(targets, jnp.float32), everything, np.float32(PENALTIES), multi_label=multi_label
    )


@jax.jit
def _ridge(features: Float[Array, "N F"], targets: Float[Array, "N 1"]) -> LinearProbe:
    """Ridge regressions in closed form, in the principal axes of the standardised features."""
    normed = layer_norm(features)
    mean, scale = feature_statistics(normed, jnp.full(len(normed), 1 / len(normed)))
    inputs = (normed - mean[None]) / scale[None]
    centre = targets.mean(axis=0)
    variances, axes = jnp.linalg.eigh(inputs.T @ inputs / len(inputs))
    moments = axes.T @ (inputs.T @ (targets - centre[None]) / len(inputs))
    penalties = jnp.asarray(PENALTIES, jnp.float32)
    kernels = moments[None] / (jnp.maximum(variances, 0)[None] + penalties[:, None])[..., None]
    kernels = jnp.einsum("gf,pfk->pgk", axes, kernels)
    copies = [jnp.broadcast_to(leaf[None], (len(PENALTIES), *leaf.shape)) for leaf in (mean, scale, centre)]
    return LinearProbe(copies[0], copies[1], kernels, copies[2], penalties, False)


def _loss(task: Task, probe: LinearProbe, features: np.ndarray, labels: np.ndarray) -> float:
    return float(_loss_of_kind(dataclasses.replace(task, level="tile"), probe, features, labels))


@functools.partial(jax.jit, static_argnums=0)
def _loss_of_kind(
    task: Task, probe: LinearProbe, features: Float[Array, "N F"], labels: Shaped[Array, "N *K"]
) -> Float[Array, ""]:
    return task_loss(task, LossConfig(), probe_logits(probe, features), labels)[0]


def _as_head(probe: LinearProbe) -> HeadParams:
    """The probe's standardisation becomes the LayerNorm's scale and bias."""
    return {
        "norm": {"scale": 1 / probe.scale, "bias": -probe.mean / probe.scale},
        "out": {"kernel": probe.kernel, "bias": probe.bias},
    }
