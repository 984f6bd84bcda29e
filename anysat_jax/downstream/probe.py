"""Probes on frozen features: the encoder runs once, and every epoch of the head takes seconds."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from anysat_jax.downstream.data import Data, Start, fingerprint
from anysat_jax.downstream.evaluate import Evaluation, Totals, judge_logits
from anysat_jax.downstream.feature_cache import Features
from anysat_jax.downstream.features import Extraction, FeatureBatch, FeatureSet, frozen_features
from anysat_jax.downstream.fit import Problem
from anysat_jax.downstream.linear_probe import fit_probe
from anysat_jax.downstream.metrics import EvalCounts, SplitSummary, count_batch
from anysat_jax.downstream.network import NetworkConfig, Params, apply_head
from anysat_jax.downstream.task import LossConfig, Task
from anysat_jax.errors import ConfigError
from anysat_jax.train.compile import Compiled
from anysat_jax.train.sharding import host_shard, put_params, replicated
from anysat_jax.train.status import JobStatus

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


VECTORS = 1024  # tiles of a validation batch, where a tile is one vector


def probe_problem(data: Data, start: Start, loss: LossConfig, status: JobStatus | None = None) -> Problem:
    """The head on frozen features, which are extracted first unless they are in the cache.

    The features are those of an evaluation: of whole tiles, or of all windows of them, not augmented, and nothing
    drops.
    """
    train = features_of(data, start, "train", data.dataset.options.patch_sizes, status)
    val = features_of(data, start, "val", data.patch_sizes, status)

    def validate(params: Params) -> Mapping[str, float]:
        size = data.config.evaluate.batch_size
        return validate_features(start.network, params, val, loss, size, data.mesh, status).of_metrics

    return Problem(
        task=data.task,
        forward=functools.partial(head_forward, start.network),
        trainable={"head": start.params["head"]},
        frozen={},
        loss=loss,
        batches=functools.partial(train.training, data.dataset.options, data.config.seed, host_shard(data.mesh)),
        steps_per_epoch=-(-len(train) // data.dataset.options.batch_size),
        validate=validate,
        sample_ids=functools.partial(data.dataset.tile_ids, "train"),
        fingerprint=fingerprint(data, start),
    )


def features_of(
    data: Data, start: Start, split: str, patch_sizes: Sequence[float], status: JobStatus | None = None
) -> FeatureSet:
    """Frozen features of a split; of the training split those of the tiles that training uses.

    With `data.skip_corrupt`, tiles that cannot be read are left out, at every patch size.
    """
    status = status or JobStatus()
    config = data.config
    extraction = Extraction(
        start.network,
        start.params["encoder"],
        start.source["digest"],
        data.dataset,
        config.cache,
        config.evaluate.batch_size,
        data.mesh,
        status,
    )
    tiles = None
    if split == "train" and data.dataset.options.fraction < 1:
        tiles = data.dataset.training_tiles
    sizes = {float(size): frozen_features(extraction, split, size, tiles) for size in patch_sizes}
    status.leave_out(split, {tile for one in sizes.values() for tile in one.left_out})
    return FeatureSet(data.name, data.task.level, same_samples(sizes))


def same_samples(sizes: dict[float, Features]) -> dict[float, Features]:
    """The features without the tiles that were read at some patch sizes only: a file was damaged in between."""
    first, *others = sizes.values()
    if all(np.array_equal(first.index, other.index) for other in others):
        return sizes
    lacking = {tile for one in sizes.values() for tile in one.left_out}
    return {size: one.without(lacking) for size, one in sizes.items()}


def head_forward(
    network: NetworkConfig, params: Params, batch: FeatureBatch, rng: jax.Array | None = None
) -> Float[Array, "B ... K"]:
    """Logits of the head; of the parameters only params["head"] is needed, and nothing drops."""
    del rng
    return apply_head(network, params["head"], batch.features.astype(np.float32))


def validate_features(
    network: NetworkConfig,
    params: Params,
    kept: FeatureSet,
    loss: LossConfig,
    batch_size: int,
    mesh: Mesh,
    status: JobStatus | None = None,
) -> Evaluation:
    """Scores of a head on frozen features; of several patch sizes, the mean of the logits answers.

    Where sub-patches were drawn, the drawn ones are scored.
    """
    judge = _program(network, loss, mesh)
    head = {"head": put_params(params["head"], mesh)}
    totals = Totals(network.task)
    in_order = kept.in_order(batch_size if network.task.level == "dense" else VECTORS, mesh)
    with (status or JobStatus()).over_split("evaluating", "val", len(kept), judge) as passing:
        for batches in passing.timed(in_order):
            passing.done(totals.add(*judge(head, batches)))
    return totals.result()


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, loss: LossConfig, mesh: Mesh) -> Compiled:
    def judge(params: Params, batches: list[FeatureBatch]) -> tuple[EvalCounts, Float[Array, "3"]]:
        answers = [head_forward(network, params, batch) for batch in batches]
        return judge_logits(network.task, loss, sum(answers) / len(answers), batches[0].labels)

    return Compiled(judge, out_shardings=replicated(mesh))


def neighbour_scores(data: Data, start: Start, status: JobStatus | None = None) -> dict[str, Any]:
    """What the nearest training tiles say of the last of the splits that are measured, by frozen features.

    Returns:
      {"neighbours": k, split: scores}.
    """
    task, k = data.task, data.config.knn.neighbours
    split, size = data.config.evaluate.splits[-1], data.patch_sizes[:1]
    (train,) = features_of(data, start, "train", size, status).sizes.values()
    (test,) = features_of(data, start, split, size, status).sizes.values()
    votes = knn_predict(train.features, np.asarray(train.labels), test.features, task.num_outputs, k=k)
    total = SplitSummary(task)
    total.add(jax.device_get(count_batch(task, vote_logits(task, votes), np.asarray(test.labels))))
    return {"neighbours": k, split: total.scores()}


def vote_logits(task: Task, votes: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Votes as a network's answers: the class with most of them, labels with more than half, numbers without unit."""
    if task.kind == "regression":
        return (votes - task.offset) / task.scale
    return votes - 0.5


MAX_ROWS = 100_000  # of each part; more pixels change a linear layer little


def with_solved_head(data: Data, start: Start, status: JobStatus | None = None) -> Start:
    """The start with the head that does best on frozen features, if `config.head_start` asks for that.

    Raises:
      DataError: a tile cannot be read.
      ConfigError: the head is not linear, answers several pixels at once, or cannot be solved.
    """
    if data.config.head_start != "solved":
        return start
    pixels = data.task.pixels_per_subpatch if data.task.level == "dense" else 1
    if start.network.head.kind != "linear" or pixels > 1:
        raise ConfigError(
            f"head_start = 'solved' needs a linear head with one answer a sub-patch; head.kind is "
            f"{start.network.head.kind!r}, with {pixels} x {pixels} answers: set head_start = 'random'"
        )
    sizes = {"train": data.dataset.options.patch_sizes[0], "val": data.patch_sizes[0]}
    parts = [_rows(data, start, split, size, status) for split, size in sizes.items()]
    try:
        probe, penalty, loss = fit_probe(data.task, *parts)
    except ValueError as error:
        raise ConfigError(f"{data.task.title}: {error}; set head_start = 'random'") from error
    logging.info("head solved on %d frozen features: loss %.4f on val, penalty %g", len(parts[0][0]), loss, penalty)
    return dataclasses.replace(start, params={**start.params, "head": probe.head_params()})


def _rows(
    data: Data, start: Start, split: str, patch_size: float, status: JobStatus | None
) -> tuple[Float[np.ndarray, "N F"], Shaped[np.ndarray, "N *K"]]:
    """Features and labels of tiles, or of the pixels of all maps, at most `MAX_ROWS`, chosen by the seed."""
    (kept,) = features_of(data, start, split, (patch_size,), status).sizes.values()
    features, labels = np.asarray(kept.features), np.asarray(kept.labels)
    if data.task.level == "dense":
        features, labels = features.reshape(-1, features.shape[-1]), labels.reshape(-1)
    if len(features) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(data.config.seed).choice(len(features), MAX_ROWS, replace=False))
        features, labels = features[chosen], labels[chosen]
    return features.astype(np.float32), labels
