"""One dataset's probes: the same protocol on the features of each network, side by side."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Shaped

from anysat_jax.adapt.features import Extractor, FrozenFeatures
from anysat_jax.adapt.metrics import Counts, class_counts, confusion_matrix, label_counts
from anysat_jax.adapt.probe import LinearProbe, fit_probe
from anysat_jax.batch import Batch
from anysat_jax.report.pictures import Album, Picture
from anysat_jax.report.plan import Plan
from anysat_jax.report.samples import Networks, Samples, collect_samples, take_tiles, task_features, valid_tiles
from anysat_jax.report.settings import EvaluateSettings
from anysat_jax.report.tables import Score, Task

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
        (task, name): np.asarray(probe.predict(task_features(plan, task, features[name])))
        for (task, name), probe in probes.items()
    }


def _fit(plan: Plan, task: Task, samples: Samples, network: str, seed: int) -> LinearProbe:
    num_classes = len(plan.classes(task))
    return fit_probe(samples.features[network], samples.labels, num_classes, groups=samples.groups, seed=seed)


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
