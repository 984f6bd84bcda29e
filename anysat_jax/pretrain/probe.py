"""Report of a pretraining: linear probes of frozen features, beside those of the same network at its random start."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Shaped
from tqdm import tqdm

from anysat_jax.batch import Batch, Observation, tile_extent
from anysat_jax.downstream.examples import Highest, class_entropy
from anysat_jax.downstream.features import Extractor, FrozenFeatures, make_extractor
from anysat_jax.downstream.linear_probe import DEFAULT_PENALTY, LinearProbe, fit_probe
from anysat_jax.downstream.metrics import SplitScores, count_batch
from anysat_jax.downstream.task import Level, Task, known_labels, make_task, prediction
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.config import EvaluateConfig
from anysat_jax.report.maps import Mosaic, Picture
from anysat_jax.report.page import write_pretraining
from anysat_jax.report.tables import METRIC_WORDS, Score, score_text
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.load import OpenDataset

METRICS: dict[str, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1"),
    "multi_label": ("weighted_f1", "macro_f1"),
    "dense": ("mean_iou", "accuracy"),
}
"""Reported scores of tile labels by kind, and of class maps; the first is the headline (the paper's for TreeSatAI)."""

VALIDATION_FRACTION = 0.2  # of the training tiles, which choose a probe's penalty

Params = dict[str, Any]
Networks = Mapping[str, Params]
"""Encoder parameters by the network's name: "random" and "pretrained"."""


def report_pretraining(
    settings: EvaluateConfig,
    datasets: Mapping[str, OpenDataset],
    open_dataset: Callable[[str], OpenDataset],
    model: ModelConfig,
    networks: Networks,
    workdir: pathlib.Path,
    *,
    title: str,
    seed: int,
) -> dict[str, Any]:
    """Probes frozen features, prints a table, and writes figures and a page to `<workdir>/report`.

    Datasets that cannot be probed (without labels, nothing held out) are left out with a warning.

    Args:
      datasets: those of the run, by name.
      open_dataset: opens others that `settings.datasets` names.
      networks: parameters of "random" and "pretrained" (the teacher).
      workdir: of the run; the curves come from its metrics.csv.
      seed: of the choice of pixels and of the probes' validation tiles.

    Returns:
      {"tile": {"random", "pretrained"}, "dense": {...}, "datasets": ...}: means over the datasets of each task's
      headline score in [0, 1], None where no dataset has the task; then every score.
    """
    found = []
    if settings.probe:
        names = settings.datasets or tuple(sorted(datasets))
        found = list(_probe_each(names, datasets, open_dataset, settings, model, networks, seed))
    scores = [score for some, _ in found for score in some]
    mosaics = [mosaic for _, mosaic in found if mosaic.pictures]
    if scores:
        print(f"\nLinear probes of frozen features, on held-out tiles\n{score_text(scores)}\n", flush=True)
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    page = write_pretraining(folder, title, workdir / "metrics.csv", scores, mosaics)
    logging.info("report: %s, with its figures beside it", page)
    return summarise(scores)


def summarise(scores: Iterable[Score]) -> dict[str, Any]:
    """Returns means over the datasets' headline scores by task, and every score; None for what is missing."""
    found: dict[str, Any] = {}
    tree: dict[str, Any] = {}
    for level in ("tile", "dense"):
        pairs = [(one.random, one.pretrained) for one in scores if one.task == level and one.headline]
        # A dataset that lacks one of the two is left out of both means: else they would be of different datasets.
        whole = [pair for pair in pairs if np.isfinite(pair).all()]
        found[level] = dict(zip(("random", "pretrained"), [sum(v) / len(v) for v in zip(*whole)] or (None, None)))
    for one in scores:
        values = {"random": one.random, "pretrained": one.pretrained}
        known = {name: value if np.isfinite(value) else None for name, value in values.items()}
        tree.setdefault(one.dataset, {}).setdefault(one.task, {})[one.metric] = known
    return {**found, "datasets": tree}


def _probe_each(
    names: Sequence[str],
    datasets: Mapping[str, OpenDataset],
    open_dataset: Callable[[str], OpenDataset],
    settings: EvaluateConfig,
    model: ModelConfig,
    networks: Networks,
    seed: int,
) -> Iterator[tuple[list[Score], Mosaic]]:
    # Once, not with every batch of every dataset.
    networks = {name: jax.device_put(params) for name, params in networks.items()}
    with tqdm(total=len(names), desc="probes", unit="dataset", dynamic_ncols=True) as bar:
        for name in names:
            try:
                dataset = datasets.get(name) or open_dataset(name)
                plan, batches = make_plan(dataset.card), functools.partial(_split_batches, dataset, settings, bar)
                yield probe_dataset(plan, batches, make_extractor(model, plan.sensors), networks, settings, seed)
            except (ValueError, OSError) as error:
                # A report comes after hours of training: one dataset less is better than none.
                logging.warning("no probe of %s: %s", name, error)
            bar.update()


def _split_batches(dataset: OpenDataset, settings: EvaluateConfig, bar: tqdm, split: str) -> Iterator[Batch]:
    bar.set_description(f"{dataset.card.title}: {split}")
    patch_size, tiles = settings.patch_size or min(dataset.options.patch_sizes), 0
    for batch in dataset.evaluation_batches(split, patch_size=patch_size, batch_size=settings.batch_size):
        yield batch
        tiles += batch.batch_size
        bar.set_postfix_str(f"{tiles} tiles")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tasks of a dataset that are probed, and the sensors of its pictures."""

    card: DatasetCard  # of the dataset
    # By level; "dense" where the sub-patches of `Task.sensor` are the pixels of the label map.
    tasks: Mapping[Level, Task]
    picture_sensor: str  # the sensor with the finest sub-patches, whose dense features the pictures show
    natural_sensor: str | None  # the sensor with the finest pixels that has natural colours; None: none has
    sensors: tuple[str, ...]  # those whose dense maps are needed
    held_out: str  # the split of the scores: "test", or "val" where there is no test split


def make_plan(card: DatasetCard) -> Plan:
    """Returns the plan of a dataset; regressions are not probed."""
    tasks: dict[Level, Task] = {}
    if card.tile_label in METRICS:
        tasks["tile"] = make_task(card, "tile")
    if card.dense_label in ("segmentation", "change"):
        try:
            task = make_task(card, "dense")
        except ValueError:  # no sensor's sub-patches fit the label map
            task = None
        # A coarser sub-patch covers several label pixels: its features have no label of their own.
        if task is not None and task.pixels_per_subpatch == 1:
            tasks["dense"] = task
    spatial = [name for name in card.sensors if get_sensor(name).kind != "context"]
    dense_sensor = tasks["dense"].sensor if "dense" in tasks else ""
    natural = [name for name in card.natural_colour if get_sensor(name).kind != "context"]
    finest = min(spatial, key=lambda name: (get_sensor(name).subpatch_metres, name != dense_sensor))
    return Plan(
        card,
        tasks,
        picture_sensor=finest,
        natural_sensor=min(natural, key=lambda name: get_sensor(name).metres_per_pixel, default=None),
        sensors=tuple(sorted({finest, dense_sensor} - {""})),
        held_out="test" if "test" in card.splits else "val",
    )


def probe_dataset(
    plan: Plan,
    batches: Callable[[str], Iterable[Batch]],
    extract: Extractor,
    networks: Networks,
    settings: EvaluateConfig,
    seed: int = 0,
) -> tuple[list[Score], Mosaic]:
    """Fits probes on the training split and scores them on the held-out one.

    Args:
      batches: the batches of a split, each tile once; `labels["valid"]` is False for padding.
      seed: of the choice of pixels and of the validation tiles.

    Returns:
      A score for each task and metric, and pictures of held-out tiles.

    Raises:
      ValueError: the dataset, or a split, has no tiles or no labels, or features are not finite.
    """
    if not plan.tasks:
        raise ValueError("it has no labels that a linear probe could learn")
    train = take_tiles(batches("train"), settings.max_tiles)
    rows = collect_rows(plan, train, extract, networks, settings.pixels_per_tile, seed)
    probes = {
        (level, name): fit_rows(plan.tasks[level], rows[level], name, seed) for level in rows for name in networks
    }
    found = {(level, name): SplitScores(plan.tasks[level]) for level, name in probes}
    pictures, tiles = Highest(settings.pictures), 0
    for batch in take_tiles(batches(plan.held_out), settings.max_tiles):
        features, maps = {name: extract(params, batch) for name, params in networks.items()}, {}
        tiles += int(batch.labels["valid"].sum())
        for (level, name), probe in probes.items():
            task = plan.tasks[level]
            logits = np.asarray(_logits(probe, task_features(task, features[name])))
            found[level, name].add(count_batch(task, logits, batch.labels[level], batch.labels["valid"]))
            if level == "dense":
                maps[name] = prediction(task, logits)
        add_pictures(pictures, plan, batch, features, maps)
    if not tiles:
        raise ValueError(f"{plan.card.name}: the split {plan.held_out!r} has no tiles, so that nothing is held out")
    return _scores(plan, found), Mosaic(plan.card, plan.picture_sensor, pictures.items)


# Compiled once for all datasets of the same shapes.
_logits = jax.jit(LinearProbe.logits)


def _scores(plan: Plan, found: Mapping[tuple[Level, str], SplitScores]) -> list[Score]:
    scores = []
    for level, task in plan.tasks.items():
        random, pretrained = (found[level, name].scores for name in ("random", "pretrained"))
        headline, *_ = metrics = METRICS["dense" if level == "dense" else task.kind]
        for name in metrics:
            title = plan.card.title, level, METRIC_WORDS[name]
            scores.append(Score(*title, random[name], pretrained[name], headline=name == headline))
    return scores


# ---------------------------------------------------------------- rows of the training tiles


class ProbeRows(NamedTuple):
    """Rows of a task: tiles, or pixels of their label maps."""

    features: dict[str, Float[np.ndarray, "N F"]]  # by network, (N, F) float32
    labels: Shaped[np.ndarray, "N *K"]  # (N,) classes, or (N, K) multi-hot
    tiles: Int[np.ndarray, "N"]  # (N,) number of each row's tile


def take_tiles(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Yields the first `most` tiles of the batches; the excess of the last batch becomes padding."""
    seen = 0
    for batch in batches:
        valid = batch.labels["valid"]
        # Masked, not cut off: another shape would be another program.
        valid = valid & (seen + np.cumsum(valid) <= most)
        if valid.any():
            yield batch.replace(labels={**batch.labels, "valid": valid})
        seen += int(valid.sum())
        if seen >= most:
            return


def task_features(task: Task, features: FrozenFeatures) -> jax.Array:
    """Returns the features that a task's probe reads: (B, D) or (B, h, w, 2 D)."""
    return features.tile if task.level == "tile" else features.dense[task.sensor]


def collect_rows(
    plan: Plan, batches: Iterable[Batch], extract: Extractor, networks: Networks, pixels_per_tile: int, seed: int
) -> dict[Level, ProbeRows]:
    """Collects rows of each of the plan's tasks in a pass over the training tiles.

    Raises:
      ValueError: there are no tiles, none has a label for a task, or label map and features differ in size.
    """
    rng = np.random.default_rng(seed)
    parts: dict[Level, list[ProbeRows]] = {level: [] for level in plan.tasks}
    tiles = 0
    for batch in batches:
        features = {name: extract(params, batch) for name, params in networks.items()}
        for level, task in plan.tasks.items():
            rows = batch_rows(task, batch, features, pixels_per_tile, rng)
            parts[level].append(rows._replace(tiles=tiles + rows.tiles))
        tiles += batch.batch_size  # padding included: the numbers of tiles need not be consecutive
    if not tiles:
        raise ValueError(f"{plan.card.name}: the split 'train' has no tiles")
    for level, some in parts.items():
        if not sum(len(part.labels) for part in some):
            raise ValueError(f"{plan.card.name}: no label {level!r} in the split 'train'")
    return {level: jax.tree.map(lambda *arrays: np.concatenate(arrays), *some) for level, some in parts.items()}


def batch_rows(
    task: Task, batch: Batch, features: Mapping[str, FrozenFeatures], pixels_per_tile: int, rng: np.random.Generator
) -> ProbeRows:
    """Returns the rows of a batch: its tiles, or at most `pixels_per_tile` labelled pixels of each, at random.

    Raises:
      ValueError: label map and features differ in size.
    """
    labels, valid, per_tile = np.asarray(batch.labels[task.level]), batch.labels["valid"], 1
    values = {name: np.asarray(task_features(task, one), np.float32) for name, one in features.items()}
    rows = np.flatnonzero(valid)
    if task.level == "dense":
        _, *grid, _ = next(iter(values.values())).shape
        if [*labels.shape[1:]] != grid:
            raise ValueError(
                f"{task.dataset}: the dense label is {labels.shape[1]} x {labels.shape[2]} pixels, but {task.sensor!r} "
                f"has {grid[0]} x {grid[1]} sub-patches; the card's dense_metres or extent is wrong"
            )
        # Random numbers for all pixels, so that the choice in a tile does not depend on the labels of those before it.
        known = np.asarray(known_labels(task, labels, valid)).reshape(len(labels), -1)
        order = np.where(known, rng.random(known.shape), np.inf).argsort(axis=1)[:, :pixels_per_tile]
        # A tile with fewer labelled pixels has others at the end of its order.
        chosen = np.take_along_axis(known, order, axis=1)
        per_tile, labels = known.shape[1], labels.reshape(-1)
        rows = (order + per_tile * np.arange(len(known))[:, None])[chosen]
    taken = {name: value.reshape(-1, value.shape[-1])[rows] for name, value in values.items()}
    return ProbeRows(taken, labels[rows], rows // per_tile)


def fit_rows(task: Task, rows: ProbeRows, network: str, seed: int) -> LinearProbe:
    """Fits a probe on all rows, with the penalty that does best on the rows of the validation tiles."""
    features, labels, penalty = rows.features[network], rows.labels, DEFAULT_PENALTY
    # Whole tiles, since pixels of one tile are alike: with some in both parts the weakest penalty would win.
    validation = validation_rows(rows.tiles, seed)
    if validation.any():
        parts = ((features[part], labels[part]) for part in (~validation, validation))
        _, penalty, _ = fit_probe(task, *parts)
    probe, _, _ = fit_probe(task, (features, labels), penalties=(penalty,))
    seen = labels.any(axis=0) if labels.ndim == 2 else np.isin(np.arange(task.num_outputs), labels)
    # Of a class without a row the bias is low but finite: a held-out tile far from all others could still get it.
    return probe.replace(bias=np.where(seen, probe.bias, -np.inf))


def validation_rows(tiles: Int[np.ndarray, "N"], seed: int) -> Bool[np.ndarray, "N"]:
    """Returns True for the rows of a fifth of the tiles, sampled with the seed; none of fewer than five tiles."""
    names = np.unique(tiles)
    chosen = np.random.default_rng(seed).permutation(names)[: int(VALIDATION_FRACTION * len(names))]
    return np.isin(tiles, chosen)


# ---------------------------------------------------------------- pictures of held-out tiles


def add_pictures(
    pictures: Highest,
    plan: Plan,
    batch: Batch,
    features: Mapping[str, FrozenFeatures],
    predicted: Mapping[str, Int[np.ndarray, "B h w"]],
) -> None:
    """Adds the tiles of a batch to the pictures, which keep those with the most varied label maps."""
    if not pictures.size or plan.natural_sensor is None or "dense" not in batch.labels:
        return

    def make(row: int) -> Picture:
        # `np.array` copies: a view would keep the whole batch in memory.
        channels = plan.card.natural_colour[plan.natural_sensor]
        return Picture(
            extent=tile_extent(batch.observations),
            natural=natural_colour(batch.observations[plan.natural_sensor], row, channels),
            natural_sensor=plan.natural_sensor,
            features={name: np.array(one.dense[plan.picture_sensor][row]) for name, one in features.items()},
            land_cover={name: np.array(values[row]) for name, values in predicted.items()}
            | {"label": np.array(batch.labels["dense"][row])},
        )

    for row in np.flatnonzero(batch.labels["valid"]):
        pictures.add(class_entropy(np.asarray(batch.labels["dense"][row])), lambda row=row: make(row))


def natural_colour(observation: Observation, row: int, channels: tuple[int, int, int]) -> Float[np.ndarray, "H W 3"]:
    """Returns one tile's red, green and blue; of a series the median of its real dates, without most clouds."""
    values = np.asarray(observation.values[row], np.float32)[..., list(channels), :, :]
    if values.ndim == 4:
        dates = slice(None) if observation.date_mask is None else np.asarray(observation.date_mask[row])
        values = np.median(values[dates], axis=0)
    return np.moveaxis(values, 0, -1)
