"""Evaluation of a finished run, on any split and with any patch sizes, from a config to a report."""

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from anysat_jax.adapt.losses import LossConfig
from anysat_jax.adapt.network import NetworkConfig
from anysat_jax.adapt.tasks import Task
from anysat_jax.train.errors import ConfigError
from anysat_jax.train.status import StatusFile
from anysat_jax.tuning import settings
from anysat_jax.tuning.adaptation import Data, Start, band_statistics, open_data, start_network
from anysat_jax.tuning.evaluating import whole_batch
from anysat_jax.tuning.measure import finish, measure
from anysat_jax.tuning.summary import common_summary
from anysat_jax.tuning.vitals import Vitals
from anysat_jax.weights.exported import Exported, ExportedHead, checksum, load_exported
from anysat_jax.weights.source import exported_file
from data_pipelines import load

SAME = ("level", "kind", "classes", "metres", "unit")  # of the task of the weights and that of the config


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Measures what `config.init` names, on the splits and with the patch sizes of `config.evaluate`.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data or the weights; the data cannot be read.
    """
    settings.check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with StatusFile(workdir, config.name, 0) as status:
        return run(config, workdir, Vitals(workdir, config.watchdog_seconds, status))


def run(config: ConfigDict, workdir: pathlib.Path, vitals: Vitals) -> dict[str, Any]:
    """What `evaluate` does once there is a workdir; a step of its status is a batch."""
    began = time.monotonic()
    data = open_data(config, config.evaluate.splits)
    start = start_network(data) if config.init == "none" else finished_network(data)
    data = dataclasses.replace(data, task=start.network.task)
    vitals.follow(lambda: vitals.values() | {"step": vitals.batches}, total_steps=count_batches(data))
    measured = measure(data, start.network, start.params, LossConfig(), workdir, vitals)
    vitals.state("reporting")
    summary = common_summary(data, start, measured, vitals.left_out, time.monotonic() - began)
    finish(summary, workdir)
    return summary


def count_batches(data: Data) -> int:
    """Of all splits that are measured."""
    config = data.config
    samples = [load.num_samples(config.data, data.name, split) for split in config.evaluate.splits]
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
    head = fitting_head(path, exported, data)
    model = dataclasses.replace(exported.model, dtype=data.config.dtype, remat="none")
    here = {name: getattr(data.task, name) for name in ("dataset", "title", "metric")}
    task = dataclasses.replace(head.task, **here)
    params = {"encoder": exported.encoder_params, "head": head.params}
    kind = "run" if pathlib.Path(given).is_dir() else "export"
    source = {"source": given, "kind": kind, "digest": checksum(params)}
    mode = exported.source.get("mode", data.config.mode)
    return Start(NetworkConfig(model, head.config, task), params, source, mode)


def fitting_head(path: pathlib.Path, exported: Exported, data: Data) -> ExportedHead:
    """The head, unless the weights are of another task; warns of inputs that were standardised otherwise.

    Raises:
      ConfigError: see `finished_network`; the message names both sides.
    """
    if exported.head is None:
        raise ConfigError(f"{path} holds an encoder alone; give the weights of a finished fine-tuning or probing")
    _check_task(path, exported.head.task, data.task)
    lacking = [name for name in data.prepared.card.sensors if name not in exported.model.sensors]
    if lacking:
        raise ConfigError(
            f"{path} has projectors for {', '.join(exported.model.sensors)}, and none for {', '.join(lacking)} of "
            f"dataset {data.name!r}"
        )
    for name, now in band_statistics(data.prepared).items():
        then = exported.statistics.get(name)
        if then is not None and not all(np.allclose(now[key], then[key], rtol=1e-3) for key in ("mean", "std")):
            logging.warning("%s was trained on inputs of %s that were standardised by other statistics", path, name)
    return exported.head


def _check_task(path: pathlib.Path, there: Task, here: Task) -> None:
    for name in SAME:
        theirs, ours = getattr(there, name), getattr(here, name)
        if theirs != ours:
            raise ConfigError(
                f"{path} answers another task: its {name} is {theirs!r} (dataset {there.dataset!r}), and {ours!r} is "
                f"asked of {here.dataset!r}; give the config of the same dataset and task.level"
            )
