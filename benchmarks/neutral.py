"""Scores of frozen features by the protocol of torchgeo-bench, beside plain statistics of the same pixels.

    python benchmarks/neutral.py mini_flair --init runs/mini
    python benchmarks/neutral.py prepared,MY_TILES --root DIR --init AnySat.pth --init none

The name is one of configs/probe.py, with classes or labels of tiles; wants `pip install -e '.[test]'`. Values and dates
are those that a model is trained on: standardised bands, days of the year from 0, the ratio of radar as VV - VH in dB.

Protocol (github.com/torchgeo/torchgeo-bench, METHODOLOGY.md and the default config; features are taken as they are):
- the vote of the 5 nearest training samples, by Euclidean distance;
- logistic regression, with the C of 40 between 1e-6 and 1e4 that does best on val, fitted once more on train and val;
- accuracy, or with several labels for a sample the micro-averaged mean average precision, on test;
- intervals of 95 % from 200 draws of the test samples with replacement.
A dataset without a test split is tested on val; then every fifth training sample is held out to choose C by.
The control has no model: mean, standard deviation, minimum and maximum of each band over valid pixels and dates.
"""

import argparse
import functools
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from tabulate import tabulate

from anysat_jax.batch import Observation
from anysat_jax.configs import probe
from anysat_jax.downstream.data import Data, Start, open_data, start_network
from anysat_jax.downstream.features import features_of
from anysat_jax.downstream.linear_probe import known_rows
from anysat_jax.downstream.split_pass import split_batches
from anysat_jax.downstream.task import Task
from anysat_jax.errors import ConfigError, RunError, complain
from benchmarks.baselines import Samples, Study
from data_pipelines.prepare.report import read_report

NEIGHBOURS = 5
STRENGTHS = tuple(np.logspace(-6, 4, 40).tolist())  # scikit-learn's C, the inverse of the penalty
MAX_ITERATIONS, TOLERANCE = 2000, 1e-6
DRAWS, SEED = 200, 0
HELD_OUT = 5  # every so many training samples choose C where there is no test split


class Score(NamedTuple):
    """A score on the test samples, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * number for number in self))


class LabelRanking(OneVsRestClassifier):
    """A logistic regression for each of several labels, whose predictions are its logits (N, K)."""

    def predict(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N K"]:
        return self.decision_function(features)


def band_statistics(observation: Observation) -> Float[np.ndarray, "B 4*C"]:
    """Returns mean, deviation, minimum and maximum of each band over valid pixels and dates; 0 without any."""
    values = np.asarray(observation.values, np.float64)
    valid = np.ones(values.shape, bool)
    for mask in (observation.pixel_mask, observation.date_mask, observation.present):
        if mask is not None:
            valid &= np.reshape(mask, np.shape(mask) + (1,) * (values.ndim - np.ndim(mask)))
    axes = tuple(axis for axis in range(1, values.ndim) if axis != values.ndim - 3)
    masked = np.ma.masked_array(values, ~valid)
    numbers = (masked.mean(axes), masked.std(axes), masked.min(axes), masked.max(axes))
    return np.concatenate([np.ma.filled(one, 0.0) for one in numbers], axis=1)


def plain_samples(data: Data, split: str, patch_size: float) -> Samples:
    """Returns the control's features of a split's samples, and their labels."""
    features, labels = [], []
    for batch in split_batches(data, split, (patch_size,), _tiles(data, split)):
        kept = np.asarray(batch.labels["valid"])
        numbers = [band_statistics(batch.observations[name]) for name in batch.sensors]
        features.append(np.concatenate(numbers, axis=1)[kept])
        labels.append(np.asarray(batch.labels[data.task.level])[kept])
    return known_rows(data.task, split, (np.concatenate(features), np.concatenate(labels)))


def frozen_samples(data: Data, start: Start, split: str, patch_size: float) -> Samples:
    """Returns a model's features of a split's samples, and their labels."""
    (one,) = features_of(data, start, split, (patch_size,)).sizes.values()
    return known_rows(data.task, split, (one.features, np.asarray(one.labels)))


def _tiles(data: Data, split: str) -> Sequence[int] | None:
    return data.dataset.training_tiles if split == "train" and data.dataset.options.fraction < 1 else None


def make_study(title: str, task: Task, read: Callable[[str], Samples], splits: Sequence[str]) -> Study:
    """Returns train, val and test samples with the probe and the score of a task.

    Args:
      read: returns the samples of a split.
      splits: that the dataset has.
    """
    samples = {split: read(split) for split in ("train", "val", "test") if split in splits}
    if "test" not in samples:
        (features, labels), test = samples["train"], samples["val"]
        held = np.arange(len(labels)) % HELD_OUT == HELD_OUT - 1
        samples = {"train": (features[~held], labels[~held]), "val": (features[held], labels[held]), "test": test}
    # From strong penalties to weak ones, each fit starts at the solution of the one before.
    model, key = LogisticRegression(max_iter=MAX_ITERATIONS, tol=TOLERANCE, warm_start=True), "C"
    measures = {"accuracy": accuracy_score}
    if task.kind == "multi_label":
        model, key = LabelRanking(model), "estimator__C"
        measures = {"micro mAP": functools.partial(average_precision_score, average="micro")}
    return Study(title, samples, measures, lambda strength: model.set_params(**{key: strength}), STRENGTHS, blind=None)


def interval(study: Study, predicted: np.ndarray) -> Score:
    """Returns the score of predictions for the test samples, with the interval of a bootstrap."""
    (measure,), (_, truth) = study.measures.values(), study.samples["test"]
    draws = np.random.default_rng(SEED).integers(0, len(truth), (DRAWS, len(truth)))
    scores = [measure(truth[rows], predicted[rows]) for rows in draws if truth.ndim == 1 or truth[rows].any()]
    return Score(measure(truth, predicted), *np.percentile(scores, (2.5, 97.5)))


def scores(study: Study) -> tuple[Score, Score, float]:
    """Returns the scores of neighbours and of the linear probe, and the probe's C."""
    (train, labels), (test, _) = study.samples["train"], study.samples["test"]
    kind = KNeighborsClassifier if labels.ndim == 1 else KNeighborsRegressor  # its mean is the share of each label
    neighbours = kind(min(NEIGHBOURS, len(labels))).fit(train, labels)
    with warnings.catch_warnings():
        # The weakest penalties need more steps than the protocol gives them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        strength = study.chosen()
        linear = study.make(strength).fit(*study.together("train", "val"))
    return interval(study, neighbours.predict(test)), interval(study, linear.predict(test)), strength


def studies(configs: Sequence[ConfigDict]) -> list[Study]:
    """Returns the control, and a study of the features of each config's weights; the configs are of one dataset.

    Raises:
      ConfigError: a config does not fit the machine, the data or the weights; or the labels are not classes or labels
        of tiles.
    """
    opened = [open_data(config, ("train", "val")) for config in configs]
    task, size, prepared = opened[0].task, opened[0].patch_sizes[0], opened[0].dataset.prepared
    if task.level != "tile" or task.kind == "regression":
        raise ConfigError(
            f"{task.title}: the protocol compares classes or labels of tiles; these labels are of level "
            f"{task.level!r} and kind {task.kind!r}; choose a config whose task.level is 'tile'"
        )
    splits = [split for split, there in read_report(prepared.folder)["splits"].items() if there["examples"]]
    found = [make_study("statistics of the bands", task, lambda split: plain_samples(opened[0], split, size), splits)]
    for data in opened:
        read = functools.partial(frozen_samples, data, start_network(data), patch_size=size)
        found.append(make_study(f"features of {data.config.init}", task, read, splits))
    return found


def as_markdown(title: str, found: Sequence[Study]) -> str:
    """Returns a table of all studies of a dataset."""
    (measure,) = found[0].measures
    counts = ", ".join(f"{split} {len(labels):,}" for split, (_, labels) in found[0].samples.items())
    rows = []
    for study in found:
        neighbours, linear, strength = scores(study)
        rows.append([study.title, study.samples["train"][0].shape[1], str(neighbours), str(linear), f"{strength:.2g}"])
    names = ["features", "numbers", f"{NEIGHBOURS} neighbours", "linear probe", "C"]
    return f"**{title}**, {measure} in % [95 %] ({counts})\n\n" + tabulate(rows, names, "github", disable_numparse=True)


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--init", action="append", default=[], metavar="WEIGHTS", help="as --config.init; again for more"
    )
    parser.add_argument("--root", metavar="DIR", help="as --config.data.root")
    options = parser.parse_args(argv)
    configs = []
    try:
        for init in options.init or ["none"]:
            config = probe.get_config(f"{options.name},random" if init == "none" else options.name)
            config.init, config.data.root = init, options.root or config.data.root
            configs.append(config)
        found = studies(configs)
    except (RunError, ValueError) as error:
        return complain(error, "neutral.py")
    print(as_markdown(options.name, found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
