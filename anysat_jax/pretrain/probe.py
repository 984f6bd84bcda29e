"""The report of a pretraining run: what the frozen features know, next to the same network before any training."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

from anysat_jax.batch import Batch
from anysat_jax.downstream import metrics
from anysat_jax.downstream.features import Extractor, FrozenFeatures, make_extractor
from anysat_jax.downstream.linear_probe import DEFAULT_PENALTY, LinearProbe, fit_probe
from anysat_jax.downstream.metrics import Counts, class_counts, confusion_matrix, label_counts
from anysat_jax.downstream.task import make_task, prediction
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.config import EvaluateSettings
from anysat_jax.report import figures
from anysat_jax.report.maps import Album, Picture, valid_tiles
from anysat_jax.report.page import write_page
from anysat_jax.report.tables import Score, Task, score_tree, task_means, text_table
from anysat_jax.sensors import get_sensor
from data_pipelines import load
from data_pipelines.card import DatasetCard
from data_pipelines.load import OpenDataset

METRICS: dict[str, dict[str, Callable[[metrics.Counts], float]]] = {
    "class": {"accuracy": metrics.accuracy, "macro F1": metrics.macro_f1},
    "multi_label": {"weighted F1": metrics.weighted_f1, "macro F1": metrics.macro_f1},
    "dense": {"mIoU": metrics.mean_iou, "accuracy": metrics.accuracy},
}
"""Scores of each kind of task; the first is the headline (for several labels a tile, the paper's on TreeSatAI)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What can be probed and shown of a dataset.

    Attributes:
      card: the dataset.
      tasks: "tile", "dense", both or none.
      dense_sensor: the sensor whose sub-patches are the pixels of the dense label; None where dense is not probed.
      picture_sensor: the sensor with the finest sub-patches, whose dense features the picture shows.
    """

    card: DatasetCard
    tasks: tuple[Task, ...]
    dense_sensor: str | None
    picture_sensor: str

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors whose dense maps are needed."""
        return tuple(sorted({name for name in (self.dense_sensor, self.picture_sensor) if name is not None}))

    @property
    def held_out(self) -> str:
        """The split that scores are from: "test", or "val" where there is no test split."""
        return "test" if "test" in self.card.splits else "val"

    def metrics(self, task: Task) -> dict[str, Callable[[metrics.Counts], float]]:
        """Scores of a task by name, the headline first."""
        return METRICS[self.card.tile_label if task == "tile" else "dense"]

    def classes(self, task: Task) -> tuple[str, ...]:
        return self.card.tile_classes if task == "tile" else self.card.dense_classes


def make_plan(card: DatasetCard) -> Plan:
    """A tile probe where tiles have classes, a dense one where some sensor's sub-patches are the label's pixels.

    Sentinel-2 is preferred for the dense probe: the mini datasets, TreeSatAI-TS and PASTIS-HD all have it.
    """
    spatial = [name for name in card.sensors if get_sensor(name).kind != "context"]
    fitting = [name for name in spatial if np.isclose(get_sensor(name).subpatch_metres, card.dense_metres)]
    dense_sensor = "s2" if "s2" in fitting else next(iter(fitting), None)
    dense_sensor = dense_sensor if card.dense_label in ("segmentation", "change") else None
    finest = min(spatial, key=lambda name: (get_sensor(name).subpatch_metres, name != dense_sensor))
    tasks = [task for task, there in (("tile", card.tile_label in METRICS), ("dense", dense_sensor)) if there]
    return Plan(card, tuple(tasks), dense_sensor, finest)


Params = dict[str, Any]


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


ProbeKey = tuple[Task, str]
"""A probe's task and network."""


def probe_dataset(
    plan: Plan,
    batches: Callable[[str], Iterable[Batch]],
    extract: Extractor,
    networks: Networks,
    settings: EvaluateSettings,
    seed: int = 0,
) -> tuple[list[Score], list[Picture]]:
    """Fits probes on the training split and scores them on the held-out one.

    Args:
      plan: what to probe.
      batches: the batches of a split, each tile once; `labels["valid"]` is False for padding.
      extract: frozen features of (parameters, batch).
      networks: parameters of "random" and "pretrained".
      settings: sizes.
      seed: of the choice of pixels and of the probe's validation part.

    Returns:
      A score for each task and metric, and pictures of held-out tiles.

    Raises:
      ValueError: a split has no tiles or no labels, or features are not finite.
    """
    train = take_tiles(batches("train"), settings.max_tiles)
    samples = collect_samples(plan, train, extract, networks, settings.pixels_per_tile, seed)
    probes = {(task, name): _fit(plan, task, samples[task], name, seed) for task in plan.tasks for name in networks}
    counts: dict[ProbeKey, Counts] = {}
    album = Album(plan, settings.pictures)
    for batch in take_tiles(batches(plan.held_out), settings.max_tiles):
        features = {name: extract(params, batch) for name, params in networks.items()}
        predicted = predict(plan, probes, features)
        for (task, name), values in predicted.items():
            new = _count(plan, task, batch, values)
            counts[task, name] = counts[task, name] + new if (task, name) in counts else new
        album.add(batch, features, {name: values for (task, name), values in predicted.items() if task == "dense"})
    if not counts:
        raise ValueError(f"{plan.card.name}: the split {plan.held_out!r} has no tiles, so that nothing is held out")
    return _scores(plan, counts), album.pictures


def predict(
    plan: Plan, probes: dict[ProbeKey, LinearProbe], features: dict[str, FrozenFeatures]
) -> dict[ProbeKey, Shaped[np.ndarray, "B ..."]]:
    """What each probe says about a batch."""
    return {
        (task, name): prediction(
            make_task(plan.card, task), np.asarray(_logits(probe, task_features(plan, task, features[name])))
        )
        for (task, name), probe in probes.items()
    }


@jax.jit
def _logits(probe: LinearProbe, features: Float[jax.Array, "*shape F"]) -> Float[jax.Array, "*shape K"]:
    return probe.logits(features)


VALIDATION_FRACTION = 0.2  # of the training tiles, by which a probe's penalty is chosen


def _fit(plan: Plan, task: Task, samples: Samples, network: str, seed: int) -> LinearProbe:
    """Fits a probe on all rows, with the penalty that does best on those of a fifth of the tiles."""
    question, features, labels = make_task(plan.card, task), samples.features[network], samples.labels
    validation = validation_rows(samples.groups, seed)
    penalty = DEFAULT_PENALTY
    if validation.any():
        parts = ((features[part], labels[part]) for part in (~validation, validation))
        _, penalty, _ = fit_probe(question, *parts)
    probe, _, _ = fit_probe(question, (features, labels), penalties=(penalty,))
    return probe.replace(bias=np.where(seen_classes(labels, len(plan.classes(task))), probe.bias, -np.inf))


def validation_rows(groups: Int[np.ndarray, "N"], seed: int) -> Bool[np.ndarray, "N"]:
    """Returns the rows of a fifth of the groups, which are drawn with the seed; none of fewer than five groups."""
    names = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(names)[: int(VALIDATION_FRACTION * len(names))]
    return np.isin(groups, chosen)


def seen_classes(labels: Shaped[np.ndarray, "N *K"], num_classes: int) -> Bool[np.ndarray, "K"]:
    """Returns which classes at least one row has: the others are never predicted."""
    return labels.any(axis=0) if labels.ndim == 2 else np.isin(np.arange(num_classes), labels)


def _count(plan: Plan, task: Task, batch: Batch, predicted: Shaped[np.ndarray, "B ..."]) -> Counts:
    """Counts of one batch; padding and unknown labels are counted nowhere."""
    truth, valid = np.asarray(batch.labels[task]), valid_tiles(batch)
    if predicted.dtype == bool:
        return label_counts(truth > 0, predicted, valid)
    known = valid.reshape(-1, *[1] * (truth.ndim - 1)) & (truth != plan.card.ignore_label)
    return class_counts(confusion_matrix(np.where(known, truth, -1), predicted, len(plan.classes(task))))


def _scores(plan: Plan, counts: dict[ProbeKey, Counts]) -> list[Score]:
    return [
        Score(
            plan.card.title,
            task,
            metric,
            score(counts[task, "random"]),
            score(counts[task, "pretrained"]),
            headline=index == 0,
        )
        for task in plan.tasks
        for index, (metric, score) in enumerate(plan.metrics(task).items())
    ]


STAGES = ("training tiles", "held-out tiles")


@dataclasses.dataclass
class Findings:
    """What the probes found.

    Attributes:
      scores: of every dataset that was probed.
      pictures: held-out tiles by dataset.
    """

    scores: list[Score] = dataclasses.field(default_factory=list)
    pictures: list[tuple[Plan, list[Picture]]] = dataclasses.field(default_factory=list)


def report_pretraining(
    config: ConfigDict,
    datasets: Mapping[str, OpenDataset],
    workdir: pathlib.Path,
    pretrained_params: Any,
    random_params: Any,
) -> dict[str, Any]:
    """Probes frozen features, prints a table, and writes figures and a page to `<workdir>/report`.

    A dataset that cannot be probed (no labels, nothing held out) is passed over with a word about why.

    Args:
      config: the run's config; `config.evaluate` says what to probe.
      datasets: those of the run, by name; others that `config.evaluate.datasets` names are opened.
      workdir: the run's folder; the curves come from its metrics.csv.
      pretrained_params: parameters of the pretrained encoder (the teacher).
      random_params: parameters of the same encoder at its random start.

    Returns:
      {"probe": {"tile": {"random", "pretrained"}, "dense": {...}, "datasets": ...}}: means over the datasets of each
      task's headline score in [0, 1], None where no dataset has the task; then every score.

    Raises:
      ValueError: a value of `config.evaluate` is out of range.
    """
    settings = EvaluateSettings.from_section(config.evaluate)
    networks = {"random": jax.device_put(random_params), "pretrained": jax.device_put(pretrained_params)}
    findings = probe_all(config, datasets, settings, networks) if settings.probe else Findings()
    if findings.scores:
        print(f"\nLinear probes of frozen features, on held-out tiles\n{text_table(findings.scores)}\n", flush=True)
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{config.name or 'run'}, {config.total_steps} steps, seed {config.seed}"
    written = figures.draw_all(folder, name, workdir / "metrics.csv", findings.scores, findings.pictures)
    page = write_page(folder, name, findings.scores, written)
    logging.info("report: %s, with %d figures beside it", page, len(written))
    return {"probe": {**task_means(findings.scores), "datasets": score_tree(findings.scores)}}


def probe_all(
    config: ConfigDict, datasets: Mapping[str, OpenDataset], settings: EvaluateSettings, networks: Networks
) -> Findings:
    """Probes each dataset in turn, with a progress bar."""
    names = settings.datasets or tuple(sorted(datasets))
    findings = Findings()
    with tqdm(total=len(names) * len(STAGES), desc="probes", unit="stage", dynamic_ncols=True) as bar:
        for done, name in enumerate(names, start=1):
            try:
                dataset = datasets.get(name) or load.open_dataset(
                    name, config.data.root, config.data.get("skip_corrupt", False)
                )
                _probe_one(config, dataset, settings, networks, findings, bar)
            except (ValueError, OSError) as error:
                logging.warning("no probe of %s: %s", name, error)
            bar.update(done * len(STAGES) - bar.n)
    return findings


def _probe_one(
    config: ConfigDict,
    dataset: OpenDataset,
    settings: EvaluateSettings,
    networks: Networks,
    findings: Findings,
    bar: tqdm,
) -> None:
    plan = make_plan(dataset.card)
    if not plan.tasks:
        raise ValueError("it has no labels that a linear probe could learn")
    patch_size = settings.patch_size or min(dataset.options.patch_sizes)
    stages = iter(STAGES)

    def batches(split: str) -> Iterator[Batch]:
        tiles = dataset.evaluation_batches(split, patch_size=patch_size, batch_size=settings.batch_size)
        return _shown(tiles, bar, f"{plan.card.title}: {next(stages)}")

    model = ModelConfig.from_section(config.model.to_dict(), dtype=config.dtype)
    extract = make_extractor(model, plan.sensors)
    scores, pictures = probe_dataset(plan, batches, extract, networks, settings, config.seed)
    findings.scores.extend(scores)
    if pictures:
        findings.pictures.append((plan, pictures))


def _shown(batches: Iterable[Batch], bar: tqdm, stage: str) -> Iterator[Batch]:
    """The batches, with the stage and the number of tiles so far on the bar."""
    bar.set_description(stage)
    tiles = 0
    for batch in batches:
        yield batch
        tiles += batch.batch_size
        bar.set_postfix_str(f"{tiles} tiles")
    bar.update()
