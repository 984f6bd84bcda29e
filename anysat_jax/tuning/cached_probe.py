"""Probes on frozen features: the encoder runs once, and every epoch of the head takes seconds."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from anysat_jax.adapt import tally
from anysat_jax.adapt.knn import knn_predict
from anysat_jax.adapt.losses import LossConfig
from anysat_jax.adapt.network import NetworkConfig, Params, apply_head
from anysat_jax.adapt.tally import Tally, TallySum, tally_batch
from anysat_jax.adapt.tasks import Task
from anysat_jax.train.compiled import Compiled
from anysat_jax.train.mesh import replicated
from anysat_jax.train.share import batch_share, put_params
from anysat_jax.tuning.adaptation import Data, Start, fingerprint
from anysat_jax.tuning.evaluating import Evaluation, Totals, judge_logits
from anysat_jax.tuning.extraction import Extraction, frozen_features
from anysat_jax.tuning.feature_batches import FeatureBatch, FeatureSet
from anysat_jax.tuning.feature_cache import Features
from anysat_jax.tuning.fit import Problem
from anysat_jax.tuning.vitals import Vitals
from data_pipelines import load

VECTORS = 1024  # tiles of a validation batch, where a tile is one vector


def probe_problem(data: Data, start: Start, loss: LossConfig, vitals: Vitals | None = None) -> Problem:
    """The head on frozen features, which are extracted first unless they are in the cache.

    The features are those of an evaluation: of whole tiles, or of all windows of them, not augmented, and nothing
    drops.
    """
    train = features_of(data, start, "train", data.options.patch_sizes, vitals)
    val = features_of(data, start, "val", data.patch_sizes, vitals)

    def validate(params: Params) -> Mapping[str, float]:
        size = data.config.evaluate.batch_size
        return validate_features(start.network, params, val, loss, size, data.mesh, vitals).of_metrics

    return Problem(
        task=data.task,
        forward=functools.partial(head_forward, start.network),
        trainable={"head": start.params["head"]},
        frozen={},
        loss=loss,
        batches=functools.partial(train.training, data.options, data.config.seed, batch_share(data.mesh)),
        steps_per_epoch=-(-len(train) // data.options.batch_size),
        validate=validate,
        sample_ids=functools.partial(data.tile_ids, "train"),
        fingerprint=fingerprint(data, start),
    )


def features_of(
    data: Data, start: Start, split: str, patch_sizes: Sequence[float], vitals: Vitals | None = None
) -> FeatureSet:
    """Frozen features of a split; of the training split those of the tiles that training uses.

    With `data.skip_corrupt`, tiles that cannot be read are left out, at every patch size.
    """
    vitals = vitals or Vitals()
    wanted = Extraction(start.network, start.params["encoder"], start.source["digest"], data.config, data.mesh, vitals)
    tiles = None
    if split == "train" and data.options.fraction < 1:
        tiles = load.training_tiles(data.config.data, data.name)
    sizes = {float(size): frozen_features(wanted, split, size, tiles) for size in patch_sizes}
    vitals.leave_out(split, {tile for one in sizes.values() for tile in one.left_out})
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
    vitals: Vitals | None = None,
) -> Evaluation:
    """Scores of a head on frozen features; of several patch sizes, the mean of the logits answers.

    Where sub-patches were drawn, the drawn ones are scored.
    """
    judge = _program(network, loss, mesh)
    head = {"head": put_params(params["head"], mesh)}
    totals = Totals(network.task)
    in_order = kept.in_order(batch_size if network.task.level == "dense" else VECTORS, mesh)
    with (vitals or Vitals()).passing("evaluating", "val", len(kept), judge) as passing:
        for batches in passing.timed(in_order):
            passing.done(totals.add(*judge(head, batches)))
    return totals.result()


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, loss: LossConfig, mesh: Mesh) -> Compiled:
    def judge(params: Params, batches: list[FeatureBatch]) -> tuple[Tally, Float[Array, "3"]]:
        answers = [head_forward(network, params, batch) for batch in batches]
        return judge_logits(network.task, loss, sum(answers) / len(answers), batches[0].labels)

    return Compiled(judge, out_shardings=replicated(mesh))


def neighbour_scores(data: Data, start: Start, vitals: Vitals | None = None) -> dict[str, Any]:
    """What the nearest training tiles say of the last of the splits that are measured, by frozen features.

    Returns:
      {"neighbours": k, split: scores}.
    """
    task, k = data.task, data.config.knn.neighbours
    split, size = data.config.evaluate.splits[-1], data.patch_sizes[:1]
    (train,) = features_of(data, start, "train", size, vitals).sizes.values()
    (test,) = features_of(data, start, split, size, vitals).sizes.values()
    votes = knn_predict(train.features, np.asarray(train.labels), test.features, task.num_outputs, k=k)
    total = TallySum(task)
    total.add(jax.device_get(tally_batch(task, vote_logits(task, votes), np.asarray(test.labels))))
    return {"neighbours": k, split: tally.scores(task, total)}


def vote_logits(task: Task, votes: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Votes as a network's answers: the class with most of them, labels with more than half, numbers without unit."""
    if task.kind == "regression":
        return (votes - task.offset) / task.scale
    return votes - 0.5
