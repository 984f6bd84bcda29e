"""A network on a whole split: every sample once, several patch sizes at once if wanted, counts summed over everything.

Counts are summed over batches, devices and processes, so that scores do not depend on how a split was cut.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from anysat_jax.batch import Batch
from anysat_jax.downstream import config as task_settings
from anysat_jax.downstream import trainable as modes
from anysat_jax.downstream.data import (
    Data,
    Start,
    band_statistics,
    local_rows,
    one_ahead,
    only_labels,
    open_data,
    sample_bar,
    skipped_tiles,
    split_batches,
    start_network,
    whole_batch,
)
from anysat_jax.downstream.examples import ExampleChoice, write_examples
from anysat_jax.downstream.fit import FitResult
from anysat_jax.downstream.metrics import EvalCounts, SplitSummary, count_batch, json_values
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, Params, apply_network
from anysat_jax.downstream.task import LossConfig, Task, known_labels, task_loss
from anysat_jax.errors import ConfigError
from anysat_jax.model.init import count_parameters
from anysat_jax.train import config as settings
from anysat_jax.train.compile import Compiled
from anysat_jax.train.monitor import first_names
from anysat_jax.train.record import provenance, write_json
from anysat_jax.train.sharding import batch_sharding, put_batch, put_params, replicated
from anysat_jax.train.status import JobStatus
from anysat_jax.weights.exported import Exported, checksum, load_exported
from anysat_jax.weights.load import exported_file
from data_pipelines.load import OpenDataset

Watch = Callable[[Batch, Float[np.ndarray, "B ..."]], None]
"""Is shown each batch of this process, on the host, with the logits of its samples."""

Judged = tuple[Float[Array, "B ..."], EvalCounts, Float[Array, "3"], Int[Array, "B"] | None]
"""Logits, counts, [sum of the samples' losses, samples that have a label, samples], and the label "skipped"."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found.

    Attributes:
      scores: by name, as `adapt.tally.scores` gives them; nan where nothing can be said.
      per_class: by score, then by class.
      confusion: (K, K), truth in the rows, or (K, 2, 2) for a multi-label task; None for a regression.
      loss: mean over the samples that have a label, each sample's own mean counting once; nan without any.
      samples: how many there were: tiles, or windows of them.
      left_out: positions in the split of the tiles that could not be read, and that nothing here rests on.
    """

    scores: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion: Int[np.ndarray, "..."] | None
    loss: float
    samples: int
    left_out: tuple[int, ...] = ()

    @property
    def of_metrics(self) -> dict[str, float]:
        """The scores and the loss, without the count."""
        return {name: value for name, value in self.scores.items() if name != "count"} | {"loss": self.loss}


class Totals:
    """Sums over the batches of an evaluation."""

    def __init__(self, task: Task) -> None:
        self._task, self._counts, self._sums = task, SplitSummary(task), np.zeros(3)
        self._left_out: set[int] = set()

    def add(self, counts: EvalCounts, sums: Float[Array, "3"], skipped: Int[Array, "B"] | None = None) -> int:
        """Adds a batch, with its label "skipped" where it has one; returns how many samples it had."""
        self._counts.add(jax.device_get(counts))
        new = np.asarray(sums, np.float64)
        self._left_out.update(skipped_tiles(skipped))
        self._sums += new
        return int(new[2])

    def result(self) -> Evaluation:
        """What the sums say."""
        loss, labelled, samples = self._sums
        return Evaluation(
            scores=self._counts.scores(),
            per_class=self._counts.per_class(),
            confusion=self._counts.confusion,
            loss=float(loss / labelled) if labelled else float("nan"),
            samples=int(samples),
            left_out=tuple(sorted(self._left_out)),
        )


def evaluate_split(
    network: NetworkConfig,
    params: Params,
    dataset: OpenDataset,
    split: str,
    patch_sizes: Sequence[float],
    batch_size: int,
    mesh: Mesh,
    *,
    loss: LossConfig | None = None,
    watch: Watch | None = None,
    leave: bool = True,
    status: JobStatus | None = None,
) -> Evaluation:
    """Scores of a network on a split, with a progress bar.

    With `dataset.skip_corrupt`, tiles that cannot be read are left out: every other sample counts once.

    Args:
      network: what is evaluated; its task names the dataset.
      params: {"encoder", "head"}, on the mesh or on the host.
      dataset: with the split.
      split: name of the split.
      patch_sizes: in metres; of several, the mean of the logits answers.
      batch_size: samples of a batch over all processes; rounded up to a multiple of the mesh's devices.
      mesh: where to compute.
      loss: class weights and smoothing of the loss; None: without.
      watch: is shown what was predicted.
      leave: whether the progress bar stays.
      status: of the job.

    Raises:
      ValueError, OSError: the split is unknown, a patch size does not fit, or the data cannot be had.
      DataError: a tile cannot be read.
    """
    status = status or JobStatus()
    params = put_params(params, mesh)
    judge = _program(network, tuple(patch_sizes), loss or LossConfig(), mesh)
    totals = Totals(network.task)
    batches = split_batches(dataset, split, patch_sizes, batch_size, mesh)
    total = dataset.num_samples(split)
    with (
        sample_bar(f"{network.task.title}: {split}", total, leave) as bar,
        status.over_split("evaluating", split, total, judge) as passing,
    ):
        for batch, (logits, *judged) in one_ahead(
            passing.timed(batches), lambda batch: judge(params, put_batch(only_labels(batch, network.task), mesh))
        ):
            samples = totals.add(*judged)
            bar.update(samples)
            passing.done(samples)
            if watch is not None:
                watch(batch, local_rows(logits))
    found = totals.result()
    status.leave_out(split, found.left_out)
    return found


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, patch_sizes: tuple[float, ...], loss: LossConfig, mesh: Mesh) -> Compiled:
    """(params, batch) -> `Judged`: one program for all patch sizes, the same one for every evaluation of a run."""

    def judge(params: Params, batch: Batch) -> Judged:
        answers = [apply_network(network, params, batch.replace(patch_size=float(size))) for size in patch_sizes]
        logits = sum(answers) / len(answers)
        # Processes know which of their own tiles were skipped: through here, all know of all.
        return logits, *judge_logits(network.task, loss, logits, batch.labels), batch.labels.get("skipped")

    same = replicated(mesh)
    return Compiled(judge, out_shardings=(batch_sharding(mesh), same, same, same))


def judge_logits(
    task: Task, loss: LossConfig, logits: Float[Array, "B ..."], labels: dict[str, Array]
) -> tuple[EvalCounts, Float[Array, "3"]]:
    """Counts of a batch, and [sum of the samples' losses, samples that have a label, samples]. Traceable."""
    truth, valid = labels[task.level], labels["valid"]
    _, losses = task_loss(task, loss, logits, truth, valid)
    labelled = known_labels(task, truth, valid).reshape(len(valid), -1).any(axis=1)
    sums = jnp.stack([jnp.where(labelled, losses, 0.0).sum(), labelled.sum(), valid.sum()])
    return count_batch(task, logits, truth, valid), sums


def measure(
    data: Data,
    network: NetworkConfig,
    params: Params,
    loss: LossConfig,
    workdir: pathlib.Path,
    status: JobStatus | None = None,
) -> dict[str, Evaluation]:
    """Evaluates each split of `evaluate.splits`; panels.npz shows samples of the last one."""
    config, found = data.config, {}
    for split in config.evaluate.splits:
        book = ExampleChoice(network.task, config.evaluate.panels if split == config.evaluate.splits[-1] else 0)
        found[split] = evaluate_split(
            network,
            params,
            data.dataset,
            split,
            data.patch_sizes,
            config.evaluate.batch_size,
            data.mesh,
            loss=loss,
            watch=book if book.size else None,
            status=status,
        )
        logging.info("%s: %s", split, in_words(found[split], network.task.metric))
        if book.size and jax.process_index() == 0:
            records = data.dataset.records(split)
            write_examples(workdir, book.arrays(data.dataset.card, records, data.dataset.options.extent))
    return found


def in_words(evaluation: Evaluation, metric: str) -> str:
    """The scores on a line, the task's metric first."""
    names = (metric, *(name for name in evaluation.scores if name not in (metric, "count")))
    shown = ", ".join(f"{name} {evaluation.scores[name]:.4g}" for name in names)
    left_out = f"; tiles that cannot be read: {first_names([*map(str, evaluation.left_out)])}"
    return f"{shown}; {evaluation.samples} tiles{left_out if evaluation.left_out else ''}"


def finish(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    """Writes summary.json and the report, in the first process."""
    if jax.process_index() != 0:
        return
    from anysat_jax.report.page import write_results

    write_json(workdir / "summary.json", summary)
    page = write_results([workdir], workdir / "report")
    logging.info("results: %s", page)


TRAINING_SPLITS = ("train", "val")


def training_summary(
    data: Data,
    start: Start,
    result: FitResult,
    measured: Mapping[str, Evaluation],
    neighbours: Mapping[str, Any] | None,
    left_out: Mapping[str, Sequence[int]],
    seconds: float,
) -> dict[str, Any]:
    """The summary of a run that has trained.

    Args:
      data, start: what it started from.
      result: what fitting found.
      measured: by split.
      neighbours: scores of the nearest-neighbour probe, None where there was none.
      left_out: as for `common_summary`.
      seconds: this process took; "training" has those of the steps of all processes before it, too.
    """
    config = data.config
    trainable, _ = modes.split(start.params, config.mode, data.dataset.card.sensors, config.new_sensors)
    found = common_summary(data, start, measured, left_out, seconds)
    found["parameters"]["trainable"] = count_parameters(trainable)
    return found | {
        "epochs": result.record["epochs"],
        "steps": result.record["steps"],
        "best": json_values({"epoch": result.best[0], "metric": data.task.metric, "value": result.best[1]}),
        "training": json_values(result.record),
        "knn": json_values(neighbours),
    }


def common_summary(
    data: Data,
    start: Start,
    measured: Mapping[str, Evaluation],
    left_out: Mapping[str, Sequence[int]],
    seconds: float,
) -> dict[str, Any]:
    """What the summaries of all jobs hold; numbers that are not finite are None.

    Args:
      data, start: what was measured.
      measured: by split.
      left_out: positions of the tiles that could not be read and that evaluations or features do without, by split.
      seconds: this process took.
    """
    config, params = data.config, start.params
    counts = {"trainable": 0, "total": count_parameters(params), "head": count_parameters(params["head"])}
    return json_values(
        {
            "job": config.job,
            "name": config.name,
            "row": config.row,
            "mode": start.mode,
            "init": dict(start.source),
            "dataset": data.name,
            "task": start.network.task.to_json(),
            "head": start.network.head.to_json(),
            "patch_sizes": list(data.patch_sizes),
            "parameters": counts,
            "samples": _samples(data, measured),
            "left_out": {split: list(tiles) for split, tiles in left_out.items()},
            "epochs": 0,
            "steps": 0,
            "best": None,
            "scores": {split: {**one.scores, "loss": one.loss} for split, one in measured.items()},
            "per_class": {split: one.per_class for split, one in measured.items()},
            "confusion": {split: one.confusion for split, one in measured.items()},
            "knn": None,
            "fraction": data.dataset.options.fraction,
            "seed": config.seed,
            "provenance": provenance(seconds),
            "config": settings.as_json(config),
        }
    )


def _samples(data: Data, measured: Mapping[str, Evaluation]) -> dict[str, int]:
    """How many samples each split had, by split; of training the tiles that were used."""
    found = {split: one.samples for split, one in measured.items()}
    if data.config.job == "evaluate":
        return found
    val = found.get("val", data.dataset.num_samples("val"))
    return found | {"train": len(data.dataset.training_tiles), "val": val}


SAME = ("level", "kind", "classes", "metres", "unit")  # of the task of the weights and that of the config


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Measures what `config.init` names, on the splits and with the patch sizes of `config.evaluate`.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data or the weights; the data cannot be read.
    """
    task_settings.check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with JobStatus(workdir, config.name, watchdog_seconds=config.watchdog_seconds) as status:
        return run(config, workdir, status)


def run(config: ConfigDict, workdir: pathlib.Path, status: JobStatus) -> dict[str, Any]:
    """What `evaluate` does once there is a workdir; a step of its status is a batch."""
    began = time.monotonic()
    data = open_data(config, config.evaluate.splits)
    start = start_network(data) if config.init == "none" else finished_network(data)
    data = dataclasses.replace(data, task=start.network.task)
    status.follow(lambda: status.evaluation_fields() | {"step": status.batches}, total_steps=count_batches(data))
    measured = measure(data, start.network, start.params, LossConfig(), workdir, status)
    status.set_state("reporting")
    summary = common_summary(data, start, measured, status.left_out, time.monotonic() - began)
    finish(summary, workdir)
    return summary


def count_batches(data: Data) -> int:
    """Of all splits that are measured."""
    config = data.config
    samples = [data.dataset.num_samples(split) for split in config.evaluate.splits]
    return sum(-(-count // whole_batch(config.evaluate.batch_size, data.mesh)) for count in samples)


def finished_network(data: Data) -> Start:
    """The network of a finished fine-tuning or probing.

    Raises:
      ConfigError: `config.init` is none, or its task is not the config's, or a sensor of the data has no projector.
    """
    given = data.config.init
    path = exported_file(pathlib.Path(given))
    if path is None:
        raise ConfigError(f"init = {given!r} must be the workdir of a finished fine-tuning or probing, or its export")
    try:
        exported = load_exported(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    head, task = fitting_head(path, exported, data)
    model = dataclasses.replace(exported.model, dtype=data.config.dtype, remat="none")
    here = {name: getattr(data.task, name) for name in ("dataset", "title", "metric")}
    task = dataclasses.replace(task, **here)
    params = {"encoder": exported.encoder_params, "head": exported.head.params}
    kind = "run" if pathlib.Path(given).is_dir() else "export"
    source = {"source": given, "kind": kind, "digest": checksum(params)}
    mode = exported.source.get("mode", data.config.mode)
    return Start(NetworkConfig(model, head, task), params, source, mode)


def fitting_head(path: pathlib.Path, exported: Exported, data: Data) -> tuple[HeadConfig, Task]:
    """Returns head and task, unless they do not fit the data; warns of inputs that were standardised otherwise.

    Raises:
      ConfigError: see `finished_network`; the message names both sides.
    """
    if exported.head is None:
        raise ConfigError(f"{path} holds an encoder alone; give the weights of a finished fine-tuning or probing")
    try:
        head, task = HeadConfig.from_json(exported.head.config), Task.from_json(exported.head.task)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} has a head that cannot be read ({error}); export it again") from error
    _check_task(path, task, data.task)
    lacking = [name for name in data.dataset.card.sensors if name not in exported.model.sensors]
    if lacking:
        raise ConfigError(
            f"{path} has projectors for {', '.join(exported.model.sensors)}, and none for {', '.join(lacking)} of "
            f"dataset {data.name!r}"
        )
    for name, now in band_statistics(data.dataset.prepared).items():
        then = exported.statistics.get(name)
        if then is not None and not all(np.allclose(now[key], then[key], rtol=1e-3) for key in ("mean", "std")):
            logging.warning("%s was trained on inputs of %s that were standardised by other statistics", path, name)
    return head, task


def _check_task(path: pathlib.Path, there: Task, here: Task) -> None:
    for name in SAME:
        theirs, ours = getattr(there, name), getattr(here, name)
        if theirs != ours:
            raise ConfigError(
                f"{path} answers another task: its {name} is {theirs!r} (dataset {there.dataset!r}), and {ours!r} is "
                f"asked of {here.dataset!r}; give the config of the same dataset and task.level"
            )
