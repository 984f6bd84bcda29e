"""A quick look at features: what the nearest training samples say, with nothing to fit and nothing to choose."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

Array = Any  # numpy on the host, jax on the device

BLOCK = 256  # test samples at a time; memory is about BLOCK * N floats beside the features


def knn_predict(
    train_features: Float[np.ndarray, "N F"],
    train_labels: Int[np.ndarray, "N"] | Shaped[np.ndarray, "N K"] | Float[np.ndarray, "N"],
    test_features: Float[np.ndarray, "M F"],
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "M K"]:
    """Means of the labels of the k nearest training samples, weighted by exp(cosine similarity / temperature).

    The vote and its temperature are those of Wu et al. 2018 (Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination).

    Args:
      train_features: any float dtype; compared in float32.
      train_labels: class numbers, of which those outside [0, num_classes) are unknown; multi-hot labels (N, K); or
        numbers (N,) of a float dtype, NaN where unknown. Samples without a label are no neighbours.
      test_features: what to say something about.
      num_classes: K; 1 for numbers.
      k: neighbours; all samples where there are fewer.
      temperature: of the weights; small values listen to the nearest few.

    Returns:
      Each class's share of the votes, which sum to 1; the weighted share of neighbours that carry each label; or the
      weighted mean of their numbers, with K = 1. float32.

    Raises:
      ValueError: no training sample has a label, or features hold values that are not finite.
    """
    targets, known = _targets(np.asarray(train_labels), num_classes)
    if not known.any():
        raise ValueError(f"nearest neighbours need labels: none of {len(known)} training samples has one")
    for name, features in (("training", train_features), ("test", test_features)):
        if not np.isfinite(features).all():
            raise ValueError(f"nearest neighbours: {name} features are not finite; take an earlier checkpoint")
    bank, targets = _unit(train_features[known]), jnp.asarray(targets[known])
    vote = functools.partial(_vote, k=min(k, len(targets)), temperature=temperature)
    padded = np.pad(test_features, ((0, -len(test_features) % BLOCK), (0, 0)))
    blocks = [vote(bank, targets, padded[start : start + BLOCK]) for start in range(0, len(padded), BLOCK)]
    return np.concatenate([np.zeros((0, targets.shape[1]), np.float32), *blocks])[: len(test_features)]


def _targets(labels: np.ndarray, num_classes: int) -> tuple[Float[np.ndarray, "N K"], np.ndarray]:
    """What is averaged, and which samples have it."""
    if labels.ndim == 2:
        return labels.astype(np.float32), ((labels == 0) | (labels == 1)).all(axis=1)
    if np.issubdtype(labels.dtype, np.floating):
        return labels[:, None].astype(np.float32), np.isfinite(labels)
    one_hot = labels[:, None] == np.arange(num_classes)[None]
    return one_hot.astype(np.float32), one_hot.any(axis=1)


def _unit(features: Float[Array, "n F"]) -> Float[jax.Array, "n F"]:
    features = jnp.asarray(features, jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("k", "temperature"))
def _vote(
    bank: Float[Array, "N F"], targets: Float[Array, "N K"], features: Float[Array, "M F"], k: int, temperature: float
) -> Float[Array, "M K"]:
    similarity, nearest = jax.lax.top_k(jnp.matmul(_unit(features), bank.T, precision="highest"), k)
    return jnp.einsum("mk,mkc->mc", jax.nn.softmax(similarity / temperature, axis=1), targets[nearest])
