"""Linear probes: how much of a task a linear layer reads from features that stay as they are.

The paper's probe is LayerNorm + Linear (section 4). Fitting the linear layer is a convex problem, so it is solved on
the whole training set at once, and the score depends on no learning rate and no batch order. The weight penalty is the
one that does best on a part cut from the training set.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from anysat_jax.downstream.task import LossConfig, Task, known_labels, standardised, task_loss

PENALTIES: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weights of |kernel|^2 / 2 beside the mean loss, fitted side by side; one is chosen."""

VALIDATION_SHARE = 0.2
SOLVER_STEPS = 100


@flax.struct.dataclass
class LinearProbe:
    """A fitted probe: LayerNorm, standardisation by the training features, linear layer.

    LayerNorm's own affine map is left out: the linear layer makes up for it.

    Attributes:
      mean: of the LayerNormed training features.
      scale: their standard deviation.
      kernel: the linear layer's weights.
      bias: its bias; -inf for a class that training never showed, so that it is never predicted.
      penalty: the penalty that was chosen.
      multi_label: whether a sample may carry several labels (sigmoid) or has one class (softmax). Static.
    """

    mean: Float[Array, "F"]
    scale: Float[Array, "F"]
    kernel: Float[Array, "F K"]
    bias: Float[Array, "K"]
    penalty: Float[Array, ""]
    multi_label: bool = flax.struct.field(pytree_node=False)

    def predict(self, features: Float[Array, "*shape F"]) -> Shaped[Array, "..."]:
        """Class numbers (*shape,) int32 or, where a sample may carry several labels, (*shape, K) bool."""
        return _predict(self, features)


def fit_probe(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, "N"] | Shaped[np.ndarray, "N K"],
    num_classes: int,
    *,
    groups: Int[np.ndarray, "N"] | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Fits a probe and chooses its penalty.

    Args:
      features: frozen features, one row a sample (a tile, or a pixel of a dense map).
      labels: classes (N,), where values outside [0, num_classes) mean unknown and are left out, or multi-hot (N, K).
      num_classes: K.
      groups: which samples belong together, such as the pixels of a tile: validation takes a group whole or not at all.
      seed: of the cut between training and validation.

    Returns:
      The probe, fitted on all samples with the penalty that had the lowest loss on the validation part; the middle
      penalty where there are too few groups to cut.

    Raises:
      ValueError: the features hold values that are not finite, or no sample has a label.
    """
    multi_label = labels.ndim == 2
    known = np.ones(len(labels), bool) if multi_label else (labels >= 0) & (labels < num_classes)
    _check(features, known)
    targets = labels if multi_label else labels[:, None] == np.arange(num_classes)[None]
    targets = targets.astype(np.float32)
    validation = _validation_part(np.arange(len(labels)) if groups is None else groups, known, seed)
    penalty = PENALTIES[len(PENALTIES) // 2]
    if validation.any():
        penalty = _best_penalty(features, targets, known & ~validation, known & validation, multi_label)
    probes = fit_penalties(features, targets, known, np.float32([penalty]), multi_label=multi_label)
    probe = jax.tree.map(lambda leaf: leaf[0], probes)
    return probe.replace(bias=jnp.where((targets * known[:, None]).any(axis=0), probe.bias, -jnp.inf))


@functools.partial(jax.jit, static_argnames=("multi_label", "steps"))
def fit_penalties(
    features: Float[Array, "N F"],
    targets: Float[Array, "N K"],
    used: Bool[Array, "N"],
    penalties: Float[Array, "P"],
    *,
    multi_label: bool,
    steps: int = SOLVER_STEPS,
) -> LinearProbe:
    """Fits one probe for each penalty; the probes' leaves have a leading axis P.

    Accelerated gradient steps in the principal axes of the features, where an upper bound of the curvature is diagonal
    (Böhning 1992): no line search, and fewer steps than L-BFGS where variances span orders of magnitude.

    Args:
      features: frozen features.
      targets: one-hot classes or multi-hot labels.
      used: which samples are fitted; the others are as if left out.
      penalties: weights of |kernel|^2 / 2.
      multi_label: sigmoid or softmax.
      steps: gradient steps.
    """
    share = used / used.sum()
    normed = layer_norm(features)
    mean, scale = feature_statistics(normed, share)
    inputs = (normed - mean[None]) / scale[None]
    variances, axes = jnp.linalg.eigh((inputs * share[:, None]).T @ inputs)
    kernel, bias = _solve(inputs @ axes, variances, targets, share, penalties, multi_label, steps)
    copies = len(penalties), *mean.shape
    mean, scale = (jnp.broadcast_to(values[None], copies) for values in (mean, scale))
    return LinearProbe(mean, scale, jnp.einsum("gf,fpk->pgk", axes, kernel), bias, penalties, multi_label)


def _solve(
    inputs: Float[Array, "N F"],
    variances: Float[Array, "F"],
    targets: Float[Array, "N K"],
    share: Float[Array, "N"],
    penalties: Float[Array, "P"],
    multi_label: bool,
    steps: int,
) -> tuple[Float[Array, "F P K"], Float[Array, "P K"]]:
    """Kernels and biases for uncorrelated `inputs` of mean 0 and the given variances."""

    def objective(layer: tuple[Array, Array]) -> Float[Array, ""]:
        kernel, bias = layer
        losses = _losses(jnp.einsum("nf,fpk->npk", inputs, kernel) + bias[None], targets[:, None], multi_label)
        return (losses * share[:, None]).sum() + 0.5 * (kernel**2 * penalties[None, :, None]).sum()

    bound = 0.25 if multi_label else 0.5  # of the losses' second derivatives by the logits
    curvature = bound * jnp.maximum(variances, 0)[:, None, None] + penalties[None, :, None]
    shape = len(penalties), targets.shape[-1]
    start = jnp.zeros((inputs.shape[-1], *shape)), jnp.zeros(shape)
    return _descend(objective, start, (1 / curvature, jnp.float32(1 / bound)), steps)


def _descend(objective: Callable[[Any], Array], start: Any, step_sizes: Any, steps: int) -> Any:
    """Nesterov's accelerated gradient descent with a step size for each coordinate."""
    gradient = jax.grad(objective)

    def step(carry: tuple[Any, Any, Array], _: None) -> tuple[tuple[Any, Any, Array], None]:
        point, previous, momentum = carry
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = jax.tree.map(lambda p, q: p + (momentum - 1) / following * (p - q), point, previous)
        new = jax.tree.map(lambda a, g, size: a - size * g, ahead, gradient(ahead), step_sizes)
        return (new, point, following), None

    return jax.lax.scan(step, (start, start, jnp.float32(1)), None, length=steps)[0][0]


def layer_norm(features: Float[Array, "*shape F"], epsilon: float = 1e-6) -> Float[Array, "*shape F"]:
    """LayerNorm over the last axis, without parameters, in float32."""
    features = jnp.asarray(features, jnp.float32)
    centred = features - features.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)


def feature_statistics(features: Float[Array, "N F"], share: Float[Array, "N"]) -> tuple[Array, Array]:
    """Weighted mean and deviation; a feature that does not vary is left at about zero, not blown up."""
    mean = share @ features
    variance = share @ (features - mean[None]) ** 2
    return mean, jnp.sqrt(variance + 1e-6 * variance.mean() + 1e-12)


def _losses(logits: Float[Array, "*n K"], targets: Float[Array, "*n K"], multi_label: bool) -> Float[Array, "*n"]:
    targets = jnp.broadcast_to(targets, logits.shape)
    if multi_label:
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)
    return optax.softmax_cross_entropy(logits, targets)


@jax.jit
def _predict(probe: LinearProbe, features: Float[Array, "*shape F"]) -> Shaped[Array, "..."]:
    logits = probe_logits(probe, features.reshape(-1, features.shape[-1]))
    predicted = logits > 0 if probe.multi_label else logits.argmax(axis=-1)
    return predicted.reshape(*features.shape[:-1], *predicted.shape[1:])


def probe_logits(probe: LinearProbe, features: Float[Array, "N F"]) -> Float[Array, "N K"]:
    """What a probe says of features, before softmax or sigmoid. Traceable."""
    return ((layer_norm(features) - probe.mean[None]) / probe.scale[None]) @ probe.kernel + probe.bias[None]


@jax.jit
def _penalty_losses(
    probes: LinearProbe, features: Float[Array, "N F"], targets: Float[Array, "N K"], used: Bool[Array, "N"]
) -> Float[Array, "P"]:
    losses = jax.vmap(lambda probe: _losses(probe_logits(probe, features), targets, probe.multi_label))(probes)
    return (losses * used[None]).sum(axis=1) / used.sum()


def _best_penalty(
    features: np.ndarray, targets: np.ndarray, training: np.ndarray, validation: np.ndarray, multi_label: bool
) -> float:
    probes = fit_penalties(features, targets, training, np.float32(PENALTIES), multi_label=multi_label)
    return PENALTIES[int(np.argmin(_penalty_losses(probes, features, targets, validation)))]


def _validation_part(groups: Int[np.ndarray, "N"], known: Bool[np.ndarray, "N"], seed: int) -> Bool[np.ndarray, "N"]:
    """A fixed share of the groups that have labels; nothing where they are fewer than five."""
    names = np.unique(groups[known])
    chosen = np.random.default_rng(seed).permutation(names)[: int(VALIDATION_SHARE * len(names))]
    return np.isin(groups, chosen)


def _check(features: Float[np.ndarray, "N F"], known: Bool[np.ndarray, "N"]) -> None:
    if not known.any():
        raise ValueError(f"a probe needs labels: none of {len(known)} samples has a known class")
    broken = features.size - np.isfinite(features).sum()
    if broken:
        raise ValueError(
            f"{broken} of {features.size} features are not finite; probe the parameters of an earlier checkpoint"
        )


HEAD_PENALTIES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
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
    losses = [_loss(task, _member(probes, i), val[0][judged], val[1][judged]) for i in range(len(HEAD_PENALTIES))]
    best = int(np.argmin(losses))
    return _as_head(_member(probes, best)), HEAD_PENALTIES[best], losses[best]


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
        features, jnp.asarray(targets, jnp.float32), everything, np.float32(HEAD_PENALTIES), multi_label=multi_label
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
    penalties = jnp.asarray(HEAD_PENALTIES, jnp.float32)
    kernels = moments[None] / (jnp.maximum(variances, 0)[None] + penalties[:, None])[..., None]
    kernels = jnp.einsum("gf,pfk->pgk", axes, kernels)
    copies = [jnp.broadcast_to(leaf[None], (len(HEAD_PENALTIES), *leaf.shape)) for leaf in (mean, scale, centre)]
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
