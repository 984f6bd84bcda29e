"""Report of a pretraining: linear probes of frozen features, beside those of the same network at its random start."""

import dataclasses
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
from anysat_jax.report.tables import Score, score_text
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.load import OpenDataset

METRICS: dict[str, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1"),
    "multi_label": ("weighted_f1", "macro_f1"),
    "dense": ("mean_iou", "accuracy"),
}
"""Reported scores of tile labels by kind, and of class maps; the first is the headline (the paper's for TreeSatAI)."""

METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1", "mean_iou": "mIoU"}
VALIDATION_FRACTION = 0.2  # of the training tiles, which choose a probe's penalty
STAGES = ("training tiles", "held-out tiles")

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
      settings: which datasets to probe, and sizes.
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
    """Returns means over the datasets' headline scores by task, and every score; None for what is missing.

    A dataset that lacks one of the two scores of a task is left out of both means.
    """
    found: dict[str, Any] = {}
    tree: dict[str, Any] = {}
    for level in ("tile", "dense"):
        pairs = [(one.random, one.pretrained) for one in scores if one.task == level and one.headline]
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
    networks = {name: jax.device_put(params) for name, params in networks.items()}
    with tqdm(total=len(names) * len(STAGES), desc="probes", unit="stage", dynamic_ncols=True) as bar:
        for done, name in enumerate(names, start=1):
            try:
                dataset = datasets.get(name) or open_dataset(name)
                yield _probe_open_dataset(dataset, settings, model, networks, seed, bar)
            except (ValueError, OSError) as error:
                logging.warning("no probe of %s: %s", name, error)
            bar.update(done * len(STAGES) - bar.n)


def _probe_open_dataset(
    dataset: OpenDataset, settings: EvaluateConfig, model: ModelConfig, networks: Networks, seed: int, bar: tqdm
) -> tuple[list[Score], Mosaic]:
    plan = make_plan(dataset.card)
    if not plan.tasks:
        raise ValueError("it has no labels that a linear probe could learn")
    patch_size = settings.patch_size or min(dataset.options.patch_sizes)
    stages = iter(STAGES)

    def batches(split: str) -> Iterator[Batch]:
        bar.set_description(f"{dataset.card.title}: {next(stages)}")
        tiles = 0
        for batch in dataset.evaluation_batches(split, patch_size=patch_size, batch_size=settings.batch_size):
            yield batch
            tiles += batch.batch_size
            bar.set_postfix_str(f"{tiles} tiles")
        bar.update()

    return probe_dataset(plan, batches, make_extractor(model, plan.sensors), networks, settings, seed)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tasks of a dataset that are probed, and the sensors of its pictures.

    Attributes:
      card: of the dataset.
      tasks: by level; "dense" where the sub-patches of `Task.sensor` are the pixels of the label map.
      picture_sensor: the sensor with the finest sub-patches, whose dense features the pictures show.
      natural_sensor: the sensor with the finest pixels that has natural colours; None: none has.
    """

    card: DatasetCard
    tasks: Mapping[Level, Task]
    picture_sensor: str
    natural_sensor: str | None

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors whose dense maps are needed."""
        return tuple(sorted({task.sensor for task in self.tasks.values() if task.sensor} | {self.picture_sensor}))

    @property
    def held_out(self) -> str:
        """The split of the scores: "test", or "val" where there is no test split."""
        return "test" if "test" in self.card.splits else "val"


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
        if task is not None and task.pixels_per_subpatch == 1:
            tasks["dense"] = task
    spatial = [name for name in card.sensors if get_sensor(name).kind != "context"]
    dense_sensor = tasks["dense"].sensor if "dense" in tasks else ""
    natural = [name for name in card.natural_colour if get_sensor(name).kind != "context"]
    return Plan(
        card,
        tasks,
        min(spatial, key=lambda name: (get_sensor(name).subpatch_metres, name != dense_sensor)),
        min(natural, key=lambda name: get_sensor(name).metres_per_pixel, default=None),
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
      extract: frozen features of (parameters, batch).
      networks: parameters of "random" and "pretrained".
      seed: of the choice of pixels and of the validation tiles.

    Returns:
      A score for each task and metric, and pictures of held-out tiles.

    Raises:
      ValueError: a split has no tiles or no labels, or features are not finite.
    """
    train = take_tiles(batches("train"), settings.max_tiles)
    rows = collect_rows(plan, train, extract, networks, settings.pixels_per_tile, seed)
    probes = {
        (level, name): _fit(task, rows[level], name, seed) for level, task in plan.tasks.items() for name in networks
    }
    found = {(level, name): SplitScores(plan.tasks[level]) for level, name in probes}
    pictures, tiles = Highest(settings.pictures), 0
    for batch in take_tiles(batches(plan.held_out), settings.max_tiles):
        features = {name: extract(params, batch) for name, params in networks.items()}
        valid, maps = valid_tiles(batch), {}
        tiles += int(valid.sum())
        for (level, name), probe in probes.items():
            task = plan.tasks[level]
            logits = np.asarray(_logits(probe, task_features(task, features[name])))
            found[level, name].add(count_batch(task, logits, batch.labels[level], valid))
            if level == "dense":
                maps[name] = prediction(task, logits)
        add_pictures(pictures, plan, batch, features, maps)
    if not tiles:
        raise ValueError(f"{plan.card.name}: the split {plan.held_out!r} has no tiles, so that nothing is held out")
    return _scores(plan, found), Mosaic(plan.card, plan.picture_sensor, pictures.items)


_logits = jax.jit(LinearProbe.logits)


def _scores(plan: Plan, found: Mapping[tuple[Level, str], SplitScores]) -> list[Score]:
    scores = []
    for level, task in plan.tasks.items():
        random, pretrained = (found[level, name].scores for name in ("random", "pretrained"))
        for metric in METRICS["dense" if level == "dense" else task.kind]:
            headline = metric == METRICS["dense" if level == "dense" else task.kind][0]
            values = random[metric], pretrained[metric]
            scores.append(Score(plan.card.title, level, METRIC_NAMES[metric], *values, headline=headline))
    return scores


# ---------------------------------------------------------------- rows of the training tiles


class ProbeRows(NamedTuple):
    """Rows of a task: tiles, or pixels of their label maps.

    Attributes:
      features: by network, (N, F) float32.
      labels: (N,) classes, or (N, K) multi-hot.
      tiles: (N,) number of each row's tile.
    """

    features: dict[str, Float[np.ndarray, "N F"]]
    labels: Shaped[np.ndarray, "N *K"]
    tiles: Int[np.ndarray, "N"]


def valid_tiles(batch: Batch) -> Bool[np.ndarray, "B"]:
    """Returns True for the tiles that are not padding."""
    return np.asarray(batch.labels.get("valid", np.ones(batch.batch_size)), bool)


def take_tiles(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Yields the first `most` tiles of the batches; the excess of the last batch becomes padding."""
    seen = 0
    for batch in batches:
        valid = valid_tiles(batch)
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
            labels, per_tile = np.asarray(batch.labels[level]), 1
            rows = np.flatnonzero(valid_tiles(batch))
            values = {name: np.asarray(task_features(task, one), np.float32) for name, one in features.items()}
            if level == "dense":
                _check_same_map(task, labels, next(iter(values.values())))
                rows = _choose_pixels(task, batch, pixels_per_tile, rng)
                labels, per_tile = labels.reshape(-1), labels[0].size
            taken = {name: value.reshape(-1, value.shape[-1])[rows] for name, value in values.items()}
            parts[level].append(ProbeRows(taken, labels[rows], tiles + rows // per_tile))
        tiles += batch.batch_size
    if not tiles:
        raise ValueError(f"{plan.card.name}: the split 'train' has no tiles")
    for level, some in parts.items():
        if not sum(len(part.labels) for part in some):
            raise ValueError(f"{plan.card.name}: no label {level!r} in the split 'train'")
    return {level: jax.tree.map(lambda *arrays: np.concatenate(arrays), *some) for level, some in parts.items()}


def _choose_pixels(task: Task, batch: Batch, limit: int, rng: np.random.Generator) -> Int[np.ndarray, "rows"]:
    """Returns flat positions of labelled pixels in the batch's label map, at most `limit` of each tile, at random."""
    labels = batch.labels["dense"]
    known = np.asarray(known_labels(task, labels, valid_tiles(batch))).reshape(len(labels), -1)
    order = np.where(known, rng.random(known.shape), np.inf).argsort(axis=1)[:, :limit]
    chosen = np.take_along_axis(known, order, axis=1)
    return (order + known.shape[1] * np.arange(len(known))[:, None])[chosen]


def _check_same_map(task: Task, labels: Int[np.ndarray, "B h w"], features: Float[np.ndarray, "B h w F"]) -> None:
    if labels.shape != features.shape[:3]:
        raise ValueError(
            f"{task.dataset}: the dense label is {labels.shape[1]} x {labels.shape[2]} pixels, but {task.sensor!r} has "
            f"{features.shape[1]} x {features.shape[2]} sub-patches; the card's dense_metres or extent is wrong"
        )


def _fit(task: Task, rows: ProbeRows, network: str, seed: int) -> LinearProbe:
    """Fits a probe on all rows, with the penalty that does best on the rows of the validation tiles."""
    features, labels, penalty = rows.features[network], rows.labels, DEFAULT_PENALTY
    validation = validation_rows(rows.tiles, seed)
    if validation.any():
        parts = ((features[part], labels[part]) for part in (~validation, validation))
        _, penalty, _ = fit_probe(task, *parts)
    probe, _, _ = fit_probe(task, (features, labels), penalties=(penalty,))
    seen = labels.any(axis=0) if labels.ndim == 2 else np.isin(np.arange(task.num_outputs), labels)
    return probe.replace(bias=np.where(seen, probe.bias, -np.inf))  # a class without a row is never predicted


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
        channels = plan.card.natural_colour[plan.natural_sensor]
        return Picture(
            extent=tile_extent(batch.observations),
            natural=natural_colour(batch.observations[plan.natural_sensor], row, channels),
            natural_sensor=plan.natural_sensor,
            features={name: np.array(one.dense[plan.picture_sensor][row]) for name, one in features.items()},
            land_cover={name: np.array(values[row]) for name, values in predicted.items()}
            | {"label": np.array(batch.labels["dense"][row])},
        )

    for row in np.flatnonzero(valid_tiles(batch)):
        pictures.add(class_entropy(np.asarray(batch.labels["dense"][row])), lambda row=row: make(row))


def natural_colour(observation: Observation, row: int, channels: tuple[int, int, int]) -> Float[np.ndarray, "H W 3"]:
    """Returns one tile's red, green and blue; of a series the median of its real dates, without most clouds."""
    values = np.asarray(observation.values[row], np.float32)[..., list(channels), :, :]
    if values.ndim == 4:
        dates = slice(None) if observation.date_mask is None else np.asarray(observation.date_mask[row])
        values = np.median(values[dates], axis=0)
    return np.moveaxis(values, 0, -1)
