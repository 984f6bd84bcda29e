"""Probes on frozen features: the head of a `probe` job, the probe-initialised head, and nearest neighbours.

The encoder runs once over each split; then every epoch of the head takes seconds.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from anysat_jax.downstream.data import Data, Start, fingerprint
from anysat_jax.downstream.features import FeatureBatch, FeatureSet, features_of
from anysat_jax.downstream.fit import Problem
from anysat_jax.downstream.linear_probe import Rows, fit_probe, known_rows, make_targets
from anysat_jax.downstream.metrics import EvalCounts, SplitScores, count_batch
from anysat_jax.downstream.network import NetworkConfig, Params, apply_head
from anysat_jax.downstream.task import LossConfig, Task
from anysat_jax.errors import ConfigError
from anysat_jax.train.compile import Compiled
from anysat_jax.train.sharding import host_shard, put_params, replicated
from anysat_jax.train.status import JobStatus

MAX_ROWS = 100_000  # of each part, for the probe-initialised head
TILE_BATCH = 1024  # tiles of a validation batch, where a tile is one vector
NEIGHBOUR_BLOCK = 256  # test samples at a time
TEMPERATURE = 0.07  # of the neighbours' weights


# ---------------------------------------------------------------- the probe as a problem of `fit`


def probe_problem(data: Data, start: Start, loss: LossConfig, status: JobStatus | None = None) -> Problem:
    """Returns the problem of training the head on frozen features, which are extracted first."""
    train = features_of(data, start, "train", data.dataset.options.patch_sizes, status)
    val = features_of(data, start, "val", data.patch_sizes, status)

    def validate(params: Params) -> Mapping[str, float]:
        return validate_features(data, start.network, params, val, loss, status).metrics

    return Problem(
        task=data.task,
        forward=lambda params, batch, rng=None: apply_head(start.network, params["head"], batch.features),
        trainable={"head": start.params["head"]},
        frozen={},
        loss=loss,
        batches=functools.partial(train.training, data.dataset.options, data.config.seed, host_shard(data.mesh)),
        steps_per_epoch=-(-len(train) // data.dataset.options.batch_size),
        validate=validate,
        sample_ids=functools.partial(data.dataset.tile_ids, "train"),
        fingerprint=fingerprint(data, start),
    )


def validate_features(
    data: Data,
    network: NetworkConfig,
    params: Params,
    features: FeatureSet,
    loss: LossConfig,
    status: JobStatus | None = None,
) -> SplitScores:
    """Evaluates a head on frozen features, or on their sampled sub-patches; averages the logits of all patch sizes."""
    program, summary = _program(network, loss, data.mesh), SplitScores(network.task)
    head = {"head": put_params(params["head"], data.mesh)}
    batch_size = data.config.evaluate.batch_size if network.task.level == "dense" else TILE_BATCH
    with (status or JobStatus()).over_split("evaluating", "val", len(features), program) as progress:
        for each in progress.timed(features.in_order(batch_size, data.mesh)):
            counts = jax.device_get(program(head, each))
            summary.add(counts)
            progress.done(int(counts.samples))
    return summary


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, loss: LossConfig, mesh: Mesh) -> Compiled:
    def compute(params: Params, batches: list[FeatureBatch]) -> EvalCounts:
        logits = sum(apply_head(network, params["head"], batch.features) for batch in batches) / len(batches)
        labels = batches[0].labels
        return count_batch(network.task, logits, labels[network.task.level], labels["valid"], loss)

    return Compiled(jax.jit(compute, out_shardings=replicated(mesh)))


# ---------------------------------------------------------------- the probe-initialised head


def with_probe_head(data: Data, start: Start, status: JobStatus | None = None) -> Start:
    """Returns the start with the linear probe of frozen features as its head (LP-FT, Kumar et al. 2022).

    The probe is fitted on the training split; its penalty is chosen by the loss on the validation split.

    Raises:
      DataError: a tile cannot be read.
      ConfigError: the head is not linear or has several outputs a sub-patch, or no probe can be fitted.
    """
    pixels = data.task.pixels_per_subpatch
    if start.network.head.kind != "linear" or pixels > 1:
        raise ConfigError(
            f"head_init = 'probe' needs a linear head with one prediction for each sub-patch; head.kind is "
            f"{start.network.head.kind!r}, with {pixels} x {pixels} predictions: set head_init = 'random'"
        )
    sizes = {"train": data.dataset.options.patch_sizes[0], "val": data.patch_sizes[0]}
    train, val = (_probe_rows(data, start, split, size, status) for split, size in sizes.items())
    try:
        probe, penalty, loss = fit_probe(data.task, train, val)
    except ValueError as error:
        raise ConfigError(f"{data.task.title}: {error}; set head_init = 'random'") from error
    logging.info("probe of %d frozen features: loss %.4f on val, penalty %g", len(train[0]), loss, penalty)
    return dataclasses.replace(start, params={**start.params, "head": probe.head_params()})


def _probe_rows(data: Data, start: Start, split: str, patch_size: float, status: JobStatus | None) -> Rows:
    """Returns features and labels of tiles, or of the pixels of all maps: at most `MAX_ROWS`, sampled by the seed."""
    (one,) = features_of(data, start, split, (patch_size,), status).sizes.values()
    features, labels = np.asarray(one.features), np.asarray(one.labels)
    if data.task.level == "dense":
        features, labels = features.reshape(-1, features.shape[-1]), labels.reshape(-1)
    # Sorted, so that the memory-mapped file is read in order; more pixels change a linear layer little.
    if len(features) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(data.config.seed).choice(len(features), MAX_ROWS, replace=False))
        features, labels = features[chosen], labels[chosen]
    return features.astype(np.float32), labels


# ---------------------------------------------------------------- nearest neighbours


def neighbour_scores(data: Data, start: Start, status: JobStatus | None = None) -> dict[str, Any]:
    """Returns {"neighbours": k, split: scores} of a nearest-neighbour probe on the last of the evaluated splits."""
    task, k = data.task, data.config.knn.neighbours
    split, size = data.config.evaluate.splits[-1], data.patch_sizes[:1]
    (train,) = features_of(data, start, "train", size, status).sizes.values()
    (test,) = features_of(data, start, split, size, status).sizes.values()
    logits = neighbour_logits(task, (train.features, np.asarray(train.labels)), test.features, k)
    summary = SplitScores(task)
    summary.add(jax.device_get(count_batch(task, logits, np.asarray(test.labels))))
    return {"neighbours": k, split: summary.scores}


def neighbour_logits(
    task: Task, train: Rows, test_features: Float[np.ndarray, "M F"], k: int = 20
) -> Float[np.ndarray, "M K"]:
    """Returns logits from the mean label of the k nearest training rows, weighted by exp(cosine / `TEMPERATURE`).

    The vote is that of Wu et al. 2018 (Unsupervised Feature Learning via Non-Parametric Instance Discrimination).

    Args:
      train: features of any float dtype, and labels; rows without a label are left out.
      k: neighbours; all rows if there are fewer.

    Returns:
      Votes of the classes or labels, in [0, 1], minus 0.5; or standardised numbers of a regression. float32.

    Raises:
      ValueError: no training row has a label, or features are not finite.
    """
    features, labels = known_rows(task, "training", train)
    if not np.isfinite(test_features).all():
        raise ValueError("features of the test part are not finite; take the parameters of an earlier checkpoint")
    # In blocks of one size, so that one program serves all, and not all similarities are in memory.
    bank, targets = _unit(features), jnp.asarray(make_targets(task, labels))
    vote = functools.partial(_vote, k=min(k, len(targets)))
    padded = np.pad(test_features, ((0, -len(test_features) % NEIGHBOUR_BLOCK), (0, 0)))
    starts = range(0, len(padded), NEIGHBOUR_BLOCK)
    # The empty one gives the shape where there is nothing to predict.
    votes = [np.zeros((0, targets.shape[1]), np.float32)]
    votes += [vote(bank, targets, padded[start : start + NEIGHBOUR_BLOCK]) for start in starts]
    return np.concatenate(votes)[: len(test_features)] - np.float32(0 if task.kind == "regression" else 0.5)


def _unit(features: Shaped[Array, "n F"]) -> Float[jax.Array, "n F"]:
    features = jnp.asarray(features, jnp.float32)
    # A feature of zeros stays zero: its similarity to all others is 0.
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="k")
def _vote(
    bank: Float[Array, "N F"], targets: Float[Array, "N K"], features: Float[Array, "M F"], k: int
) -> Float[Array, "M K"]:
    # In full precision: the default of accelerators is coarse enough to swap close neighbours.
    similarity, nearest = jax.lax.top_k(jnp.matmul(_unit(features), bank.T, precision="highest"), k)
    return jnp.einsum("mk,mkc->mc", jax.nn.softmax(similarity / TEMPERATURE, axis=1), targets[nearest])
