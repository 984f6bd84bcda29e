"""Training samples of the probes: tiles and pixels with their labels, and the features of each network."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from anysat_jax.adapt.features import Extractor, FrozenFeatures
from anysat_jax.batch import Batch
from anysat_jax.report.plan import Plan
from anysat_jax.report.tables import Task

Networks = Mapping[str, Any]
"""Encoder parameters by the network's name: "random" and "pretrained"."""


@dataclasses.dataclass
class Samples:
    """Rows for a probe.

    Attributes:
      features: by network, (N, F) float32.
      labels: (N,) classes, or (N, K) multi-hot.
      groups: (N,) number of the tile that each row is from.
    """

    features: dict[str, Float[np.ndarray, "N F"]]
    labels: Shaped[np.ndarray, "N ..."]
    groups: Int[np.ndarray, "N"]


def valid_tiles(batch: Batch) -> Bool[np.ndarray, "B"]:
    """Which tiles of a batch are not padding."""
    valid = batch.labels.get("valid")
    return np.ones(batch.batch_size, bool) if valid is None else np.asarray(valid, bool)


def take_tiles(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """The first `most` tiles of the batches; those of the last batch that are too many become padding."""
    seen = 0
    for batch in batches:
        valid = valid_tiles(batch)
        valid = valid & (seen + np.cumsum(valid) <= most)
        if valid.any():
            yield batch.replace(labels={**batch.labels, "valid": valid})
        seen += int(valid.sum())
        if seen >= most:
            return


def task_features(plan: Plan, task: Task, features: FrozenFeatures) -> jax.Array:
    """The features that a task's probe reads: (B, D) or (B, h, w, 2 D)."""
    return features.tile if task == "tile" else features.dense[plan.dense_sensor]


def collect_samples(
    plan: Plan, batches: Iterable[Batch], extract: Extractor, networks: Networks, pixels_per_tile: int, seed: int
) -> dict[Task, Samples]:
    """Samples of each of the plan's tasks from a pass over the training tiles.

    Raises:
      ValueError: there are no tiles, or none has a label for a task.
    """
    rng = np.random.default_rng(seed)
    parts: dict[Task, list[Samples]] = {task: [] for task in plan.tasks}
    tiles = 0
    for batch in batches:
        features = {name: extract(params, batch) for name, params in networks.items()}
        for task in plan.tasks:
            limit = pixels_per_tile if task == "dense" else 1
            rows = _labelled_rows(batch, task, limit, plan.card.ignore_label, rng)
            parts[task].append(_take_rows(plan, task, batch, features, rows, tiles))
        tiles += batch.batch_size
    if not tiles:
        raise ValueError(f"{plan.card.name}: the split 'train' has no tiles")
    return {task: _join(plan, task, some) for task, some in parts.items()}


def _labelled_rows(
    batch: Batch, task: Task, limit: int, ignore: int, rng: np.random.Generator
) -> Int[np.ndarray, "rows"]:
    """Flat numbers of labelled places in the batch's label map, at most `limit` of each tile, drawn at random."""
    if task == "tile":
        return np.flatnonzero(valid_tiles(batch))
    labels = np.asarray(batch.labels["dense"])
    known = ((labels != ignore) & valid_tiles(batch)[:, None, None]).reshape(len(labels), -1)
    order = np.where(known, rng.random(known.shape), np.inf).argsort(axis=1)[:, :limit]
    chosen = np.take_along_axis(known, order, axis=1)
    return (order + known.shape[1] * np.arange(len(known))[:, None])[chosen]


def _take_rows(
    plan: Plan,
    task: Task,
    batch: Batch,
    features: Mapping[str, FrozenFeatures],
    rows: Int[np.ndarray, "rows"],
    first_tile: int,
) -> Samples:
    labels = np.asarray(batch.labels[task])
    per_tile = 1 if task == "tile" else labels[0].size
    taken = {}
    for name, one in features.items():
        values = np.asarray(task_features(plan, task, one), np.float32)
        if task == "dense":
            check_same_map(plan, labels, values)
        taken[name] = values.reshape(-1, values.shape[-1])[rows]
    flat = labels if task == "tile" else labels.reshape(-1)
    return Samples(taken, flat[rows], first_tile + rows // per_tile)


def check_same_map(plan: Plan, labels: Int[np.ndarray, "B h w"], features: Float[np.ndarray, "B h w F"]) -> None:
    """Refuses a label map of another size than the features'.

    Raises:
      ValueError: they differ.
    """
    if labels.shape != features.shape[:3]:
        raise ValueError(
            f"{plan.card.name}: the dense label is {labels.shape[1]} x {labels.shape[2]} pixels, but "
            f"{plan.dense_sensor!r} has {features.shape[1]} x {features.shape[2]} sub-patches; the card's dense_metres "
            "or extent is wrong"
        )


def _join(plan: Plan, task: Task, parts: list[Samples]) -> Samples:
    labels = np.concatenate([part.labels for part in parts])
    if not len(labels):
        raise ValueError(f"{plan.card.name}: no label {task!r} in the split 'train'")
    features = {name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features}
    return Samples(features, labels, np.concatenate([part.groups for part in parts]))
