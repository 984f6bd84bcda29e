"""Scores of pretraining objectives on the embedded landscape against steps, beside a random start and raw values.

    python benchmarks/learning.py runs/learning --steps 300 1000 --seeds 0 1 2 --try ours --try paper:PAPER
    python benchmarks/learning.py runs/learning --try "slow:pretrain.ema_start=0.996,optimizer.learning_rate=2e-4"

Pretrains the tiny model of configs/pretrain.py on thousands of unlabelled tiles, made once, and probes its frozen
features with the labels of a few of them: a linear layer and the five nearest neighbours, of tiles and of label pixels,
scored on hundreds of held-out tiles, for one or several disjoint draws of labelled tiles. Each run has its own schedule
over its number of steps. A try is a name and keys of the config; PAPER stands for those of the paper's objective.
Controls: the network at its random start, and the summaries of raw values that the reconstruction predicts. Finished
scores are kept in OUT/scores.csv; the table is printed after each run, and the curves are in OUT/learning.png. A step
takes about 0.2 s on two cores. Wants `pip install -e '.[test]'`.
"""

import argparse
import collections
import csv
import functools
import itertools
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from anysat_jax.configs.common import dataset
from jaxtyping import Float
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsRegressor
from tabulate import tabulate

from anysat_jax.batch import Batch
from anysat_jax.configs import pretrain as configs
from anysat_jax.downstream.features import FrozenFeatures, make_extractor
from anysat_jax.downstream.linear_probe import make_targets
from anysat_jax.downstream.metrics import SplitScores, count_batch
from anysat_jax.downstream.task import Task
from anysat_jax.errors import ConfigError
from anysat_jax.model.encoder import grid_sensors
from anysat_jax.model.init import init_encoder
from anysat_jax.model.projectors import merge_patches
from anysat_jax.pretrain import probe
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.reconstruction import moments, summarise
from anysat_jax.pretrain.train import pretrain
from anysat_jax.sensors import get_sensor
from anysat_jax.train.workdir import lock_workdir, run_command
from anysat_jax.weights.load import load_encoder
from data_pipelines.load import OpenDataset, open_dataset
from data_pipelines.mini.datasets import MiniReader
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.registry import get_entry

DATASETS = {"mini_pastis_hd": dataset(8, (20,), 16), "mini_flair": dataset(8, (10,), 12)}
PAPER = "pretrain.objective=paper,pretrain.contrastive_weight=1.0,optimizer.learning_rate=5e-4"
NEIGHBOURS = 5
PIXELS = 48  # of a labelled tile that fit the probes, as in the report of a pretraining
KINDS = [("tile", "linear"), ("tile", "neighbours"), ("dense", "linear"), ("dense", "neighbours")]


class Score(NamedTuple):
    """A row of scores.csv."""

    name: str
    steps: int
    seed: int
    labels: int
    draw: int
    dataset: str
    level: str
    probe: str
    score: float


class Bench:
    """The datasets and the scores so far."""

    def __init__(self, out: pathlib.Path, tiles: int, labels: Sequence[int], held_out: int, draws: int = 1) -> None:
        if (needed := max(labels) * draws) > tiles:
            raise ConfigError(
                f"{draws} draws of {max(labels)} labelled tiles need {needed} tiles, but there are {tiles}"
            )
        self.out, self.labels, self.held_out, self.draws = out, sorted(labels), held_out, draws
        self.root = out / f"tiles-{tiles}-{held_out}"
        for name in DATASETS:
            reader = MiniReader(name, sizes={"train": tiles, "val": held_out})
            # Processes take seconds to start, as long as a hundred tiles.
            prepare_dataset(reader, self.root, get_entry(name).version, workers=2 if tiles > 500 else 0)
        self.datasets = {name: open_dataset(name, str(self.root)) for name in DATASETS}
        self.file = out / "scores.csv"
        self.scores: list[Score] = []
        if self.file.exists():
            with self.file.open(newline="") as lines:
                rows = csv.DictReader(lines)
                if rows.fieldnames != list(Score._fields):
                    raise ConfigError(
                        f"{self.file} has the columns {rows.fieldnames}, expected {list(Score._fields)}, as another "
                        "version wrote it; delete it, and the runs beside it are scored again without training"
                    )
                self.scores = [Score(*(kind(row[key]) for key, kind in Score.__annotations__.items())) for row in rows]
        cards = [one.card for one in self.datasets.values()]
        self.model = PretrainConfig.read(self.config("", 1, 0)).with_sensors(None, cards).model

    def config(self, overrides: str, steps: int, seed: int) -> ConfigDict:
        """Returns the config of a run, with `overrides` KEY=VALUE,..."""
        config = configs.small_run("learning")
        config.data.update(datasets=ConfigDict(DATASETS), root=str(self.root))
        config.update(total_steps=steps, seed=seed, checkpoint_every=steps)
        config.evaluate.probe = False
        for pair in filter(None, overrides.replace("PAPER", PAPER).split(",")):
            key, _, value = pair.partition("=")
            kind = type(_value_at(config, key))
            config.update_from_flattened_dict({key: value == "True" if kind is bool else kind(value)})
        return config

    def random(self, seed: int, sensors: tuple[str, ...]) -> Callable[[Batch], FrozenFeatures]:
        """Returns the features of the network at its random start."""
        return functools.partial(make_extractor(self.model, sensors), init_encoder(self.model, seed))

    def pretrained(self, text: str, steps: int, seed: int) -> None:
        """Pretrains and scores a try, NAME or NAME:KEY=VALUE,..."""
        name, _, overrides = text.partition(":")
        folder = self.out / "runs" / f"{name}-{steps}-{seed}"

        def extractor(sensors: tuple[str, ...]) -> Callable[[Batch], FrozenFeatures]:
            with lock_workdir(folder):
                pretrain(self.config(overrides, steps, seed), folder)  # returns at once where it is finished
            return functools.partial(make_extractor(self.model, sensors), load_encoder(folder).params)

        self.add(name, steps, seed, extractor)

    def add(
        self,
        name: str,
        steps: int,
        seed: int,
        extractor: Callable[[tuple[str, ...]], Callable[[Batch], FrozenFeatures]],
    ) -> None:
        """Adds the scores of features, unless they are known; `extractor` is of the sensors with dense maps."""
        known = {(one.labels, one.draw) for one in self.scores if one[:3] == (name, steps, seed)}
        if known >= set(itertools.product(self.labels, range(self.draws))):
            return
        self.scores = [one for one in self.scores if one[:3] != (name, steps, seed)]  # of other labels or fewer draws
        for key, one in self.datasets.items():
            plan = probe.make_plan(one.card)
            for labels, draw, level, kind, score in score_features(plan, one, extractor(plan.sensors), self):
                self.scores.append(Score(name, steps, seed, labels, draw, key, level, kind, score))
        with self.file.open("w", newline="") as file:
            csv.writer(file).writerows([Score._fields, *self.scores])
        print(self.table(name), flush=True)

    def means(self) -> Mapping[tuple[str, int, int], Mapping[tuple[str, str], list[float]]]:
        """Returns scores in percent by (name, labels, steps) and kind: of a seed the mean over datasets and draws."""
        found: dict[Any, Any] = collections.defaultdict(lambda: collections.defaultdict(dict))
        for one in self.scores:
            kinds = found[one.name, one.labels, one.steps]
            kinds[one.level, one.probe].setdefault(one.seed, []).append(100 * one.score)
        return {
            key: {kind: [statistics.mean(scores) for scores in seeds.values()] for kind, seeds in kinds.items()}
            for key, kinds in found.items()
        }

    def table(self, only: str | None = None) -> str:
        """Returns the means over the seeds, with their standard deviation."""
        rows = []
        for (name, labels, steps), kinds in sorted(self.means().items()):
            if only in (None, name):
                cells = [f"{statistics.mean(s):.1f}" + (f" ± {statistics.stdev(s):.1f}" if s[1:] else "") for s in
                         (kinds[kind] for kind in KINDS)]  # fmt: skip
                rows.append((name, labels, steps, len(kinds[KINDS[0]]), *cells))
        columns = ["features", "labelled tiles", "steps", "seeds", *(", ".join(kind) for kind in KINDS)]
        return tabulate(rows, columns, "github", disable_numparse=True)

    def draw(self) -> pathlib.Path:
        """Draws the scores of linear probes against steps, and against labelled tiles after the most steps."""
        figure = matplotlib.figure.Figure((10, 7), layout="constrained")
        means, most = self.means(), self.labels[-1]
        names = list(dict.fromkeys(key[0] for key in means))
        last = {name: max(key[2] for key in means if key[0] == name) for name in names}
        for row, level in zip(figure.subplots(2, 2).T, ("tile", "dense"), strict=True):
            for number, name in enumerate(names):
                scores = {
                    key[1:]: statistics.mean(kinds[level, "linear"]) for key, kinds in means.items() if key[0] == name
                }
                line = dict(color=f"C{number}", label=name, marker="o", linestyle="-" if last[name] else "--")
                steps = {at: score for (labels, at), score in sorted(scores.items()) if labels == most}
                if last[name]:
                    row[0].plot(*zip(*steps.items(), strict=True), **line)
                else:  # features without training
                    row[0].axhline(steps[0], **line | {"marker": None})
                labelled = {labels: score for (labels, at), score in sorted(scores.items()) if at == last[name]}
                row[1].plot(*zip(*labelled.items(), strict=True), **line)
            ticks = sorted({key[2] for key in means} - {0}), self.labels
            for axes, label, values in zip(row, ("steps", "labelled tiles"), ticks, strict=True):
                axes.set(xscale="log", xlabel=label, ylabel=f"linear probe, {level} (%)")
                axes.set_xticks(values, [f"{value:,}" for value in values])
                axes.minorticks_off()
            row[0].set_title(f"{most} labelled tiles")
            row[1].set_title("after the most steps")
        row[1].legend()
        path = self.out / "learning.png"
        figure.savefig(path, dpi=110)
        return path


def _value_at(config: ConfigDict, key: str) -> Any:
    return functools.reduce(lambda section, name: section[name], key.split("."), config)


def score_features(
    plan: probe.Plan, one: OpenDataset, extract: Callable[[Batch], FrozenFeatures], bench: Bench
) -> Iterator[tuple[int, int, str, str, float]]:
    """Yields number of labelled tiles, their draw, level, probe and score of each task of a dataset."""
    batches = functools.partial(one.evaluation_batches, patch_size=min(DATASETS[one.name].patch_sizes), batch_size=16)
    most = bench.labels[-1]
    found = probe.collect_rows(
        plan, batches("train", tiles=range(most * bench.draws)), lambda _, batch: extract(batch), {"": {}}, PIXELS, 0
    )
    models = {}
    for level, rows in found.items():
        for labels, draw in itertools.product(bench.labels, range(bench.draws)):
            kept = (rows.tiles >= draw * most) & (rows.tiles < draw * most + labels)
            few = probe.ProbeRows({"": rows.features[""][kept]}, rows.labels[kept], rows.tiles[kept])
            models[labels, draw, level, "linear"] = probe.fit_rows(plan.tasks[level], few, "", 0).logits
            models[labels, draw, level, "neighbours"] = neighbours(plan.tasks[level], few.features[""], few.labels)
    counts = {key: SplitScores(plan.tasks[key[2]]) for key in models}
    ranked: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = collections.defaultdict(list)
    for batch in batches("val", tiles=range(bench.held_out)):
        features, valid = extract(batch), batch.labels["valid"]
        for key, model in models.items():
            task, labels = plan.tasks[key[2]], batch.labels[key[2]]
            logits = np.asarray(model(probe.task_features(task, features)))
            if task.kind == "multi_label":
                ranked[key].append((labels[valid], logits[valid]))
            else:
                counts[key].add(count_batch(task, logits, labels, valid))
    for key, one_count in counts.items():
        kind = "dense" if key[2] == "dense" else plan.tasks[key[2]].kind
        yield *key, precision(ranked[key]) if key in ranked else one_count.scores[probe.METRICS[kind][0]]


def precision(ranked: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the average precision of all pairs of tile and label, of batches of labels and logits (B, K).

    Not F1: a probe of a few tiles ranks rare labels well before it gives any of them more than a half.
    """
    labels, logits = map(np.concatenate, zip(*ranked, strict=True))
    # Logits of labels that the probe has not seen are -inf.
    return float(average_precision_score(labels, np.maximum(logits, -1e9), average="micro"))


def neighbours(task: Task, features: Float[np.ndarray, "N F"], labels: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Returns the votes of the nearest rows, by cosine of standardised features, less a half, as logits."""
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    model = KNeighborsRegressor(min(NEIGHBOURS, len(labels)), metric="cosine")
    model.fit((features - mean) / std, make_targets(task, labels))

    def logits(values: Any) -> np.ndarray:
        rows = (np.asarray(values, np.float32).reshape(-1, features.shape[1]) - mean) / std
        return (model.predict(rows) - 0.5).reshape(*np.shape(values)[:-1], -1)

    return logits


def raw_summaries(batch: Batch, sensors: tuple[str, ...]) -> FrozenFeatures:
    """Returns the summaries of all sensors' raw values as features: of the tile, and at sub-patches of `sensors`."""
    tile, maps = [], {}
    for name in grid_sensors(batch):
        found = summarise(batch.observations[name], get_sensor(name), batch.grid)
        mean, spread = moments(found, (1, 2))
        tile += [mean.values, spread]
        maps[name] = merge_patches(found.values, batch.grid)

    def resized(x: Float[jax.Array, "B h w F"], size: int) -> jax.Array:
        return jax.image.resize(x, (x.shape[0], size, size, x.shape[-1]), "linear")

    dense = {one: jnp.concatenate([resized(x, maps[one].shape[1]) for x in maps.values()], axis=-1) for one in sensors}
    return FrozenFeatures(tile=jnp.concatenate(tile, axis=-1), dense=dense)


def main(argv: Sequence[str]) -> str:
    """Runs the command line; returns what it prints at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder of the tiles, the runs and the scores")
    parser.add_argument("--try", dest="tries", action="append", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--steps", type=int, nargs="+", default=[300])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiles", type=int, default=2048, help="unlabelled tiles of each dataset")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[128], help="tiles of them with labels, for the probes"
    )
    parser.add_argument("--draws", type=int, default=1, help="disjoint sets of labelled tiles; the mean is shown")
    parser.add_argument("--held-out", type=int, default=512, help="tiles that score the probes")
    options = parser.parse_args(argv)
    bench = Bench(options.out, options.tiles, options.labels, options.held_out, options.draws)
    bench.add("raw values", 0, 0, lambda sensors: jax.jit(functools.partial(raw_summaries, sensors=sensors)))
    for seed in options.seeds:
        bench.add("random start", 0, seed, functools.partial(bench.random, seed))
    for steps in options.steps:
        for seed in options.seeds:
            for text in options.tries or ["default"]:
                bench.pretrained(text, steps, seed)
    return f"{bench.table()}\n\n{bench.file}\n{bench.draw()}"


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), "learning.py"))
