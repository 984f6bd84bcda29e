"""Linear probes of frozen features: LayerNorm, standardisation and one linear layer (the paper's probe, section 4)."""

import functools
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from anysat_jax.downstream.network import NORM_EPSILON
from anysat_jax.downstream.task import Kind, LossConfig, Task, known_labels, standardised, task_loss

PENALTIES: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""Grid of the weight of |kernel|^2 / 2 beside the mean loss of a row, for features of unit variance."""

DEFAULT_PENALTY = 1e-2  # where there are no validation rows to choose by
SOLVER_STEPS = 200

Rows = tuple[Float[np.ndarray, "N F"], Shaped[np.ndarray, "N *K"]]
"""Features and labels: class numbers (N,), multi-hot labels (N, K), or numbers (N,) in the task's unit."""


@flax.struct.dataclass
class LinearProbe:
    """A fitted probe; an axis in front of every leaf for several penalties."""

    mean: Float[Array, "*P F"]  # of the LayerNormed training features
    scale: Float[Array, "*P F"]  # their standard deviation
    # Of the linear layer, as the bias. LayerNorm has no affine map: the linear layer contains it.
    kernel: Float[Array, "*P F K"]
    bias: Float[Array, "*P K"]

    def logits(self, features: Float[Array, "*shape F"]) -> Float[Array, "*shape K"]:
        """Returns logits, or standardised numbers of a regression; float32. Traceable."""
        rows = layer_norm(features).reshape(-1, features.shape[-1])
        logits = (rows - self.mean[None]) / self.scale[None] @ self.kernel + self.bias[None]
        return logits.reshape(*features.shape[:-1], -1)

    def head_params(self) -> Mapping[str, Mapping[str, Float[np.ndarray, "..."]]]:
        """Returns the parameters of a linear `Head` that computes the same, float32."""
        # The standardisation goes into the head's LayerNorm, whose affine map the probe does not use.
        norm = {"scale": 1 / self.scale, "bias": -self.mean / self.scale}
        return jax.tree.map(np.asarray, {"norm": norm, "out": {"kernel": self.kernel, "bias": self.bias}})


def fit_probe(
    task: Task, rows: Rows, validation: Rows | None = None, penalties: Sequence[float] = PENALTIES
) -> tuple[LinearProbe, float, float]:
    """Fits a probe for each penalty, and chooses the one with the lowest loss on the validation rows.

    Args:
      task: kind and number of outputs; a regression's labels are standardised by its offset and scale.
      rows: to fit; those with an unknown label are left out (see `known_labels`).
      validation: to choose the penalty by; None: the first penalty is taken.

    Returns:
      The probe, its penalty, and its validation loss (nan without validation rows). A class without a training row has
      a low but finite bias.

    Raises:
      ValueError: no row of a part has a label, or features are not finite.
    """
    features, labels = known_rows(task, "training", rows)
    # A convex problem, solved on all rows at once: the result depends on neither a learning rate nor the order of rows.
    probes = fit_penalties(task.kind, features, make_targets(task, labels), np.float32(penalties))
    losses = [float("nan")]
    if validation is not None:
        losses = _losses(task, probes, *known_rows(task, "validation", validation))
    # The loss and not the task's metric decides: on few labels the metric is so noisy that it picks penalties by luck.
    best = int(np.argmin(losses))
    return jax.tree.map(lambda leaf: leaf[best], probes), float(penalties[best]), float(losses[best])


def known_rows(task: Task, part: str, rows: Rows) -> Rows:
    """Returns the rows with a label, features in float32.

    Raises:
      ValueError: no row of the part has a label, or features are not finite.
    """
    features, labels = rows
    # Of a multi-label task a row counts if all of its labels are known.
    known = np.asarray(known_labels(task, labels)).reshape(len(labels), -1).all(axis=1)
    if not known.any():
        raise ValueError(f"no row of the {part} part has a label ({len(known)} rows), so that no probe can be fitted")
    features, labels = np.asarray(features, np.float32)[known], np.asarray(labels)[known]
    broken = features.size - int(np.isfinite(features).sum())
    if broken:
        raise ValueError(
            f"{broken} of {features.size} features of the {part} part are not finite, so that no probe can be fitted; "
            "take the parameters of an earlier checkpoint"
        )
    return features, labels


def make_targets(task: Task, labels: Shaped[np.ndarray, "N *K"]) -> Float[np.ndarray, "N K"]:
    """Returns one-hot classes, multi-hot labels, or standardised numbers, float32."""
    if task.kind == "regression":
        return np.asarray(standardised(task, labels), np.float32).reshape(-1, 1)
    targets = labels if task.kind == "multi_label" else labels[:, None] == np.arange(task.num_outputs)[None]
    return targets.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    task: Task, probes: LinearProbe, features: Float[Array, "N F"], labels: Shaped[Array, "N *K"]
) -> Float[Array, "P"]:
    # One probe after the other: the logits of all penalties at once may not fit the memory.
    return jax.lax.map(lambda probe: task_loss(task, LossConfig(), probe.logits(features), labels)[0], probes)


@functools.partial(jax.jit, static_argnames=("kind", "steps"))
def fit_penalties(
    kind: Kind,
    features: Float[Array, "N F"],
    targets: Float[Array, "N K"],
    penalties: Float[Array, "P"],
    *,
    steps: int = SOLVER_STEPS,
) -> LinearProbe:
    """Fits one probe for each penalty: leaves have a leading axis P.

    Args:
      kind: "class" (softmax), "multi_label" (sigmoid, summed over the labels) or "regression" (squared error / 2).
      targets: one-hot classes, multi-hot labels, or standardised numbers.
      penalties: weights of |kernel|^2 / 2.
      steps: of the logistic losses.
    """
    normed = layer_norm(features)
    mean = normed.mean(axis=0)
    variance = normed.var(axis=0)
    # A feature that does not vary stays about zero: dividing by its own deviation would amplify rounding.
    scale = jnp.sqrt(variance + 1e-6 * variance.mean() + 1e-12)
    inputs = (normed - mean[None]) / scale[None]
    # In the principal axes, ridge regression has a closed form, and for the two logistic losses an upper bound of the
    # curvature is diagonal (Böhning 1992), which gives each coordinate a step size of its own.
    variances, axes = jnp.linalg.eigh(inputs.T @ inputs / len(inputs))
    variances, inputs = jnp.maximum(variances, 0), inputs @ axes  # rounding makes small eigenvalues negative
    if kind == "regression":
        offset = targets.mean(axis=0)
        moments = inputs.T @ (targets - offset[None]) / len(inputs)
        kernels = moments[None] / (variances[None] + penalties[:, None])[..., None]
        biases = jnp.broadcast_to(offset[None], (len(penalties), *offset.shape))
    else:
        kernels, biases = _fit_logistic(kind, inputs, variances, targets, penalties, steps)
    mean, scale = (jnp.broadcast_to(leaf[None], (len(penalties), *leaf.shape)) for leaf in (mean, scale))
    return LinearProbe(mean, scale, jnp.einsum("gf,pfk->pgk", axes, kernels), biases)


Layers = tuple[Float[Array, "P F K"], Float[Array, "P K"]]


def _fit_logistic(
    kind: Kind,
    inputs: Float[Array, "N F"],
    variances: Float[Array, "F"],
    targets: Float[Array, "N K"],
    penalties: Float[Array, "P"],
    steps: int,
) -> Layers:
    """Descends by Nesterov's accelerated gradient. `inputs` are uncorrelated, of mean 0 and the given variances."""

    def objective(layers: Layers) -> Float[Array, ""]:
        kernels, biases = layers
        logits = jnp.einsum("nf,pfk->npk", inputs, kernels) + biases[None]
        wanted = jnp.broadcast_to(targets[:, None], logits.shape)
        if kind == "multi_label":
            losses = optax.sigmoid_binary_cross_entropy(logits, wanted).sum(axis=-1)
        else:
            losses = optax.softmax_cross_entropy(logits, wanted)
        return losses.mean(axis=0).sum() + 0.5 * (kernels**2 * penalties[:, None, None]).sum()

    bound = 0.25 if kind == "multi_label" else 0.5  # of the second derivative by the logits
    sizes = 1 / (bound * variances[None] + penalties[:, None])[..., None], 1 / bound

    def step(carry: tuple[Layers, Layers, Array], _: None) -> tuple[tuple[Layers, Layers, Array], None]:
        point, ahead, momentum = carry
        slopes = jax.grad(objective)(ahead)
        new = jax.tree.map(lambda x, slope, size: x - size * slope, ahead, slopes, sizes)
        moved = jax.tree.map(jnp.subtract, new, point)
        # Momentum restarts where it points uphill, for each penalty by itself (O'Donoghue and Candès 2015).
        uphill = (slopes[0] * moved[0]).sum(axis=(1, 2)) + (slopes[1] * moved[1]).sum(axis=1) > 0
        momentum = jnp.where(uphill, 1.0, momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        rate = (momentum - 1) / following
        ahead = new[0] + rate[:, None, None] * moved[0], new[1] + rate[:, None] * moved[1]
        return (new, ahead, following), None

    count, outputs = len(penalties), targets.shape[-1]
    start = jnp.zeros((count, inputs.shape[-1], outputs)), jnp.zeros((count, outputs))
    return jax.lax.scan(step, (start, start, jnp.ones(count)), None, length=steps)[0][0]


def layer_norm(features: Float[Array, "*shape F"]) -> Float[Array, "*shape F"]:
    """Returns features after LayerNorm over the last axis, without parameters, in float32."""
    features = jnp.asarray(features, jnp.float32)
    centred = features - features.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPSILON)
