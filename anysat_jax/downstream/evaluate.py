"""Evaluation of a network on whole splits, and the job that evaluates finished weights."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped
from ml_collections import ConfigDict

from anysat_jax.batch import Batch
from anysat_jax.downstream.config import check
from anysat_jax.downstream.data import Data, Start, open_data, start_network
from anysat_jax.downstream.examples import ExampleChoice
from anysat_jax.downstream.features import with_labels
from anysat_jax.downstream.metrics import EvalCounts, SplitScores, count_batch, json_values
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, Params, apply_network, head_shapes
from anysat_jax.downstream.split_pass import pass_over_split, skipped_tiles, whole_batch
from anysat_jax.downstream.task import LossConfig, Task
from anysat_jax.errors import ConfigError
from anysat_jax.model.init import count_parameters
from anysat_jax.report.page import write_results
from anysat_jax.train.compile import Compiled
from anysat_jax.train.monitor import first_names
from anysat_jax.train.record import provenance, write_json
from anysat_jax.train.sharding import batch_sharding, put_params, replicated
from anysat_jax.train.status import JobStatus
from anysat_jax.weights.exported import FILE_NAME, Exported, ExportedHead, checksum, load_exported, save_exported
from anysat_jax.weights.hub import locate
from anysat_jax.weights.load import exported_file


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates the weights of `config.init` on the splits and with the patch sizes of `config.evaluate`.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data or the weights; the data cannot be read.
    """
    check(config)  # a wrong value leaves no workdir behind
    workdir.mkdir(parents=True, exist_ok=True)
    with JobStatus(workdir, config.name, watchdog_seconds=config.watchdog_seconds) as status:
        began = time.monotonic()
        data = open_data(config, config.evaluate.splits)
        start = start_network(data) if config.init == "none" else finished_network(data)
        data = dataclasses.replace(data, task=start.network.task)
        samples = [data.dataset.num_samples(split) for split in config.evaluate.splits]
        batch_size = whole_batch(config.evaluate.batch_size, data.mesh)
        # A step of this job is a batch.
        status.follow(
            lambda: status.evaluation_fields() | {"step": status.batches},
            total_steps=sum(-(-count // batch_size) for count in samples),
        )
        found = evaluate_splits(data, start.network, start.params, LossConfig(), workdir, status)
        status.set_state("reporting")
        summary = make_summary(data, start, found, status.left_out, time.monotonic() - began)
        write_summary(summary, workdir)
        return summary


def finished_network(data: Data) -> Start:
    """Loads the network of a finished fine-tuning or probing.

    Raises:
      ConfigError: `config.init` is not one, or its task is not the config's, or a sensor of the data has no projector.
    """
    given = data.config.init
    try:
        if (path := exported_file(locate(given))) is None:
            expected = "the workdir of a finished fine-tuning or probing, or its export"
            raise ConfigError(f"init = {given!r} must be {expected}")
        exported = load_exported(path)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    head, task = _check_head(path, exported, data)
    # Without gradients there is nothing to recompute.
    model = dataclasses.replace(exported.model, dtype=data.config.dtype, remat="none")
    # Offset and scale of a regression stay those of training: the weights predict in these units.
    here = {name: getattr(data.task, name) for name in ("dataset", "title", "metric")}
    task = dataclasses.replace(task, **here)
    params = {"encoder": exported.encoder_params, "head": exported.head.params}
    kind = "run" if pathlib.Path(given).is_dir() else "export"
    source = {"source": given, "kind": kind, "digest": checksum(params)}
    mode = exported.source.get("mode", data.config.mode)
    return Start(NetworkConfig(model, head, task), params, source, mode)


def export(data: Data, start: Start, params: Params, workdir: pathlib.Path) -> None:
    """Writes the weights of the best evaluation, which `finished_network` loads."""
    network, config = start.network, data.config
    save_exported(
        workdir / FILE_NAME,
        network.model,
        params["encoder"],
        head=ExportedHead(dataclasses.asdict(network.head), dataclasses.asdict(network.task), params["head"]),
        statistics=data.dataset.prepared.mean_and_std,
        source={"name": config.name, "mode": config.mode, "init": start.source, "dataset": data.name},
    )


def _check_head(path: pathlib.Path, exported: Exported, data: Data) -> tuple[HeadConfig, Task]:
    """Returns head and task if they fit the data; warns of inputs that were standardised by other statistics."""
    if exported.head is None:
        raise ConfigError(f"{path} holds an encoder alone; give the weights of a finished fine-tuning or probing")
    try:
        head, task = HeadConfig(**exported.head.config), Task.from_json(exported.head.task)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} has a head that cannot be read ({error}); export it again") from error
    wanted = jax.tree.map(lambda leaf: leaf.shape, head_shapes(NetworkConfig(exported.model, head, task)))
    if jax.tree.map(np.shape, exported.head.params) != wanted:
        raise ConfigError(f"{path} has a head whose tensors are not those of its description; export it again")
    # What decides the meaning of an output. Another dataset of the same classes may be evaluated.
    for name in ("level", "kind", "classes", "metres", "unit"):
        theirs, ours = getattr(task, name), getattr(data.task, name)
        if theirs != ours:
            raise ConfigError(
                f"{path} is of another task: its {name} is {theirs!r} (dataset {task.dataset!r}), and that of "
                f"{data.name!r} is {ours!r}; give the config of the same dataset and task.level"
            )
    lacking = [name for name in data.dataset.card.sensors if name not in exported.model.sensors]
    if lacking:
        raise ConfigError(
            f"{path} has projectors for {', '.join(exported.model.sensors)}, and none for {', '.join(lacking)} of "
            f"dataset {data.name!r}"
        )
    for name, now in data.dataset.prepared.mean_and_std.items():
        # A warning only: another part of the same archive has slightly other statistics, and the weights still fit.
        then = exported.statistics.get(name)
        if then is not None and not all(np.allclose(now[key], then[key], rtol=1e-3) for key in ("mean", "std")):
            logging.warning("%s was trained on inputs of %s that were standardised by other statistics", path, name)
    return head, task


# ---------------------------------------------------------------- splits


def evaluate_splits(
    data: Data,
    network: NetworkConfig,
    params: Params,
    loss: LossConfig,
    workdir: pathlib.Path,
    status: JobStatus | None = None,
) -> dict[str, SplitScores]:
    """Evaluates each split of `evaluate.splits`; writes examples of the last one to panels.npz."""
    config, dataset, found = data.config.evaluate, data.dataset, {}
    for split in config.splits:
        examples = None
        # Of the last split, which is the test split where there is one.
        if config.panels and split == config.splits[-1]:
            examples = ExampleChoice(network.task, config.panels)
        found[split] = evaluate_split(data, network, params, split, loss=loss, watch=examples, status=status)
        logging.info("%s: %s", split, summary_line(found[split], network.task.metric))
        if examples and jax.process_index() == 0:
            arrays = examples.arrays(dataset.card, dataset.records(split), dataset.options.extent)
            np.savez_compressed(workdir / "panels.npz", **arrays)
    return found


def evaluate_split(
    data: Data,
    network: NetworkConfig,
    params: Params,
    split: str,
    *,
    loss: LossConfig | None = None,
    watch: Callable[[Batch, Float[np.ndarray, "B ..."]], None] | None = None,
    leave: bool = True,
    status: JobStatus | None = None,
) -> SplitScores:
    """Evaluates a network on a split at `data.patch_sizes`, whose logits are averaged, with a progress bar.

    With `skip_corrupt`, tiles that cannot be read are left out: every other counts once. Raises as `split_batches`.

    Args:
      params: {"encoder", "head"}, on the mesh or on the host.
      loss: class weights and smoothing of the loss; None: without.
      watch: is called with each batch of this process, on the host, and the logits of its samples.
    """
    status, summary = status or JobStatus(), SplitScores(network.task)
    for batch, (logits, counts, skipped) in pass_over_split(
        data,
        split,
        data.patch_sizes,
        _program(network, data.patch_sizes, loss or LossConfig(), data.mesh),
        put_params(params, data.mesh),
        lambda batch: with_labels(batch, network.task),
        lambda outputs: int(outputs[1].samples),
        status,
        state="evaluating",
        title=split,
        leave=leave,
    ):
        # Counts of the batch on all devices and processes: scores do not depend on how the split was cut into them.
        summary.add(jax.device_get(counts), skipped_tiles(skipped))
        if watch is not None:
            watch(batch, local_rows(logits))
    status.leave_out(split, summary.left_out)
    return summary


# Cached, so that the evaluations of all epochs share their compiled programs.
@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, patch_sizes: tuple[float, ...], loss: LossConfig, mesh: Mesh) -> Compiled:
    """Returns (params, batch) -> (logits, counts, "skipped"): one program for all patch sizes and evaluations."""

    def compute(params: Params, batch: Batch) -> tuple[Float[Array, "B ..."], EvalCounts, Int[Array, "B"] | None]:
        each = [apply_network(network, params, batch.replace(patch_size=float(size))) for size in patch_sizes]
        logits, labels = sum(each) / len(each), batch.labels
        counts = count_batch(network.task, logits, labels[network.task.level], labels["valid"], loss)
        # On the host a process has the skipped tiles of its own rows; as an output, those of all reach every process.
        return logits, counts, labels.get("skipped")

    same = replicated(mesh)
    return Compiled(jax.jit(compute, out_shardings=(batch_sharding(mesh), same, same)))


def local_rows(array: Shaped[jax.Array, "B ..."]) -> Shaped[np.ndarray, "b ..."]:
    """Returns this process' rows of an array that is cut over all devices."""
    # By the first row of each, since an array that is cut over some axes only is repeated along the others.
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


# ---------------------------------------------------------------- summary


def summary_line(summary: SplitScores, metric: str) -> str:
    """Returns the scores on a line, the task's metric first."""
    scores = summary.scores
    names = (metric, *(name for name in scores if name not in (metric, "count")))
    shown = ", ".join(f"{name} {scores[name]:.4g}" for name in names)
    tiles = first_names([str(tile) for tile in sorted(summary.left_out)])
    left_out = f"; tiles that cannot be read: {tiles}" if summary.left_out else ""
    return f"{shown}; {summary.samples} tiles{left_out}"


def make_summary(
    data: Data, start: Start, found: Mapping[str, SplitScores], left_out: Mapping[str, Sequence[int]], seconds: float
) -> dict[str, Any]:
    """Returns the part of summary.json that all jobs have, JSON values; numbers that are not finite are None.

    `left_out` has the positions of the tiles that could not be read, by split; `seconds` are those of this process.
    """
    config, network, params = data.config, start.network, start.params
    samples = {split: one.samples for split, one in found.items()}
    if config.job != "evaluate":
        val = samples.get("val", data.dataset.num_samples("val"))
        samples |= {"train": len(data.dataset.training_tiles), "val": val}
    return json_values(
        {
            **{name: getattr(config, name) for name in ("job", "name", "row", "seed")},
            "mode": start.mode,
            "init": dict(start.source),
            "dataset": data.name,
            "task": dataclasses.asdict(network.task),
            "head": dataclasses.asdict(network.head),
            "patch_sizes": list(data.patch_sizes),
            "parameters": {"trainable": 0, "total": count_parameters(params), "head": count_parameters(params["head"])},
            "samples": samples,
            "left_out": {split: list(tiles) for split, tiles in left_out.items()},
            "epochs": 0,
            "steps": 0,
            "best": None,
            "scores": {split: {**one.scores, "loss": one.loss} for split, one in found.items()},
            "per_class": {split: one.per_class for split, one in found.items()},
            "confusion": {split: one.confusion for split, one in found.items()},
            "knn": None,
            "fraction": data.dataset.options.fraction,
            "provenance": provenance(seconds),
            "config": data.values,
        }
    )


def write_summary(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    """Writes summary.json and the report, in the first process."""
    if jax.process_index() == 0:
        write_json(workdir / "summary.json", summary)
        logging.info("results: %s", write_results([workdir], workdir / "report"))
