"""Scores of linear models of raw bands on the two sets of real data, by scikit-learn: the figures to beat.

    python benchmarks/baselines.py --fuel-moisture presto/data/fuel_moisture --sen1floods11 Sen1Floods11

Give one folder or both: Presto's data/fuel_moisture, and the git repository of Sen1Floods11 with its sample. Takes a
minute on two CPU cores; wants `pip install -e '.[test]'`. Samples and splits are those of `data_pipelines`.

Every model standardises its features by the samples that it is fitted on. Pixels have 12 bands of three dates, 36
numbers: ten of Sentinel-2, VV and VH. No coordinates, dates or weather.
Where a penalty is chosen, it is the one that does best on val, fitted on train; "train + val" is fitted once more on
both. The macro-F1 of the land cover is over the classes that the test or the predictions have.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from sklearn import metrics
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_pipelines.prepare.shards import read_tile
from data_pipelines.reader import Reader
from data_pipelines.registry import get_entry

# Of Sentinel-2's ten and Sentinel-1's three: VV - VH would add nothing to a linear model.
BANDS = slice(0, 12)
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, the inverse of the penalty
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # its alpha
MAX_ITERATIONS = 1000

Samples = tuple[np.ndarray, np.ndarray]
"""Features (N, F) and labels (N,)."""
Scores = dict[str, float]
Measures = Mapping[str, Callable[[np.ndarray, np.ndarray], float]]


@dataclasses.dataclass(frozen=True)
class Study:
    """The samples of a task, its models and its scores."""

    title: str
    samples: Mapping[str, Samples]  # of each split
    measures: Measures  # scores of (truth, prediction) by name; the first decides which penalty is chosen
    make: Callable[[float], Any]  # a model of a strength
    strengths: Sequence[float]  # those tried; 1 is the one that is not chosen
    blind: Any  # a model that does not look at the features

    def together(self, *splits: str) -> Samples:
        features, labels = zip(*(self.samples[split] for split in splits))
        return np.concatenate(features), np.concatenate(labels)

    def scores(self, model: Any, fitted_on: Samples, tested_on: str = "test") -> Scores:
        features, truth = self.samples[tested_on]
        predicted = model.fit(*fitted_on).predict(features)
        return {name: measure(truth, predicted) for name, measure in self.measures.items()}

    def chosen(self) -> float:
        """Returns the strength that does best on val."""
        train = self.samples["train"]
        return max(self.strengths, key=lambda s: next(iter(self.scores(self.make(s), train, "val").values())))

    def only(self, columns: slice, title: str) -> "Study":
        """Returns the same study of some columns of the features."""
        samples = {split: (features[:, columns], labels) for split, (features, labels) in self.samples.items()}
        return dataclasses.replace(self, title=title, samples=samples)


def logistic(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS))


def ridge(penalty: float) -> Any:
    return make_pipeline(StandardScaler(), Ridge(penalty))


CLASS_SCORES: Measures = {
    "accuracy": metrics.accuracy_score,
    "macro-F1": functools.partial(metrics.f1_score, average="macro"),
    "weighted F1": functools.partial(metrics.f1_score, average="weighted"),
}
MAP_SCORES: Measures = {
    "mIoU": functools.partial(metrics.jaccard_score, average="macro"),
    "accuracy": metrics.accuracy_score,
    "IoU of water": metrics.jaccard_score,
}
NUMBER_SCORES: Measures = {
    "R2": metrics.r2_score,
    "RMSE": metrics.root_mean_squared_error,
    "MAE": metrics.mean_absolute_error,
}


def read_pixels(reader: Reader, split: str) -> Samples:
    """Returns series of one pixel, all dates side by side."""
    examples = [read_tile(reader, split, key) for key in reader.keys(split)]
    bands = np.stack([np.concatenate([e["s2"], e["s1"]], axis=1)[:, BANDS, 0, 0] for e in examples])
    return bands.reshape(len(examples), -1), np.asarray([e["tile"] for e in examples])


def read_map(reader: Reader, split: str) -> Samples:
    """Returns the pixels of all windows that have a label and that both sensors have seen."""
    examples = (read_tile(reader, split, key) for key in reader.keys(split))
    examples = [e for e in examples if e["s2_present"] and e["s1_present"]]
    bands = np.stack([np.concatenate([e["s2"][0], e["s1"][0]])[BANDS] for e in examples])
    labels = np.stack([e["dense"] for e in examples])
    # Radar and clouds leave gaps of their own; a linear model cannot do without a band.
    kept = np.stack([(e["s2_mask"] & e["s1_mask"])[0, 0] for e in examples]) & (labels >= 0)
    return np.moveaxis(bands, 1, -1)[kept], labels[kept]


def study_of(name: str, folder: pathlib.Path) -> Study:
    """Returns the study of a dataset that is read from a folder."""
    entry = get_entry(name)
    reader = entry.reader(folder)
    dense, number = entry.card.dense_label != "none", entry.card.tile_label == "regression"
    read = functools.partial(read_map if dense else read_pixels, reader)
    return Study(
        title=entry.card.title,
        samples={split: read(split) for split in reader.splits()},
        measures=NUMBER_SCORES if number else MAP_SCORES if dense else CLASS_SCORES,
        make=ridge if number else logistic,
        strengths=PENALTIES if number else STRENGTHS,
        blind=DummyRegressor() if number else DummyClassifier(),
    )


def rows(study: Study) -> list[tuple[str, int, Scores]]:
    """Returns name, samples that it is fitted on, and test scores of each baseline."""
    model, letter = ("ridge", "alpha") if study.make is ridge else ("logistic regression", "C")
    best, train, both = study.chosen(), study.samples["train"], study.together("train", "val")
    blind = "always the mean" if study.make is ridge else "always the most frequent class"
    table = [
        (f"{blind} of train + val", both, study.blind),
        (f"{model}, {letter} = 1, train + val", both, study.make(1.0)),
        (f"{model}, {letter} = {best:g} chosen on val, train", train, study.make(best)),
        (f"{model}, {letter} = {best:g} chosen on val, train + val", both, study.make(best)),
    ]
    return [(name, len(samples[1]), study.scores(one, samples)) for name, samples, one in table]


def more_of_the_map(study: Study) -> list[tuple[str, int, Scores]]:
    """Returns rows as `rows` of each sensor alone, and of few pixels."""
    found = []
    for sensor, columns in (("Sentinel-2", slice(0, 10)), ("Sentinel-1", slice(10, 12))):
        both = (part := study.only(columns, sensor)).together("train", "val")
        found.append((f"{sensor} alone, C = 1, train + val", len(both[1]), part.scores(logistic(1.0), both)))
    few = tuple(array[::50] for array in study.together("train", "val"))
    name = "logistic regression, C = 1, every 50th pixel of train + val"
    return [*found, (name, len(few[1]), study.scores(logistic(1.0), few))]


def as_markdown(study: Study, table: Sequence[tuple[str, int, Scores]]) -> str:
    """Returns a study's table."""
    names = list(table[0][2])
    lines = [["baseline", "fitted on", *names], ["---"] * (2 + len(names))]
    digits = {name: 1 if name in ("RMSE", "MAE") else 3 for name in names}
    lines += [[name, f"{count:,}", *(f"{scores[n]:.{digits[n]}f}" for n in names)] for name, count, scores in table]
    counts = ", ".join(f"{split} {len(labels):,}" for split, (_, labels) in study.samples.items())
    return "\n".join([f"**{study.title}** ({counts})", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuel-moisture", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--sen1floods11", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    for name in ("fuel_moisture_land_cover", "fuel_moisture") if arguments.fuel_moisture else ():
        study = study_of(name, arguments.fuel_moisture)
        print(as_markdown(study, rows(study)), end="\n\n", flush=True)
    if arguments.sen1floods11:
        study = study_of("sen1floods11_chip", arguments.sen1floods11)
        print(as_markdown(study, rows(study) + more_of_the_map(study)))


if __name__ == "__main__":
    main()
