"""The job that fine-tunes or probes, from a config to a report, top to bottom."""

import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from anysat_jax.downstream.config import check
from anysat_jax.downstream.data import Data, Start, fingerprint, loss_config, open_data, start_network
from anysat_jax.downstream.evaluate import evaluate_split, evaluate_splits, export, make_summary, write_summary
from anysat_jax.downstream.fit import Problem, fit
from anysat_jax.downstream.metrics import json_values
from anysat_jax.downstream.network import Params, apply_network
from anysat_jax.downstream.probe import neighbour_scores, probe_problem, with_probe_head
from anysat_jax.downstream.task import LossConfig
from anysat_jax.downstream.trainable import WHOLE, dropping_sensors, layer_multipliers, split
from anysat_jax.flops import finetune_flops
from anysat_jax.model.init import count_parameters
from anysat_jax.train.sharding import host_shard
from anysat_jax.train.status import JobStatus
from data_pipelines import load


def finetune(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a head and the part of the encoder that `config.mode` names, or resumes that; then evaluates.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data, the weights or the workdir; the data cannot be read; a
        loss or a gradient is not finite; a stop was requested.
    """
    check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with JobStatus(workdir, config.name, watchdog_seconds=config.watchdog_seconds) as status:
        status.follow(status.evaluation_fields)
        # Each split once: val may be among the evaluated ones.
        data = open_data(config, tuple(dict.fromkeys(("train", "val", *config.evaluate.splits))))
        return run(data, workdir, status, began)


def run(data: Data, workdir: pathlib.Path, status: JobStatus, began: float) -> dict[str, Any]:
    """Runs the job of `finetune`, which began at that time, on its opened data."""
    config = data.config

    # ---------------------------------------------------------------- weights, classes' weights
    start = start_network(data)
    if config.head_init == "probe":
        start = with_probe_head(data, start, status)
    loss = loss_config(data)
    logging.info("%s on %d x %s, in %s", config.name, data.mesh.size, jax.devices()[0].device_kind, workdir)

    # ---------------------------------------------------------------- training
    make_problem = probe_problem if config.mode == "probe" else network_problem
    problem = make_problem(data, start, loss, status)
    best, record = fit(problem, config, data.mesh, workdir, data.values, status)
    params = start.params | best

    # ---------------------------------------------------------------- scores, weights, report
    found = evaluate_splits(data, start.network, params, loss, workdir, status)
    neighbours = neighbour_scores(data, start, status) if config.knn.neighbours else None
    status.set_state("reporting")
    # Before the report, which may fail: the weights are what took the time.
    if jax.process_index() == 0:
        export(data, start, params, workdir)
    summary = make_summary(data, start, found, status.left_out, time.monotonic() - began)
    summary["parameters"]["trainable"] = count_parameters(problem.trainable)
    summary |= {
        "epochs": record["epochs"],
        "steps": record["steps"],
        "best": {name: record["best"][name] for name in ("epoch", "metric", "value")},
        "training": json_values(record),  # "seconds": of all processes that worked on this run
        "knn": json_values(neighbours),
    }
    write_summary(summary, workdir)
    return summary


def network_problem(data: Data, start: Start, loss: LossConfig, status: JobStatus) -> Problem:
    """Returns the problem of training the network on observations: every mode but "probe"."""
    config, dataset = data.config, data.dataset
    sensors, decay = dataset.card.sensors, config.optimizer.layer_decay
    trainable, frozen = split(start.params, config.mode, sensors, config.new_sensors)

    def validate(params: Params) -> Mapping[str, float]:
        return evaluate_split(data, start.network, params, "val", loss=loss, leave=False, status=status).metrics

    return Problem(
        task=data.task,
        forward=functools.partial(
            apply_network,
            start.network,
            training=dropping_sensors(config.mode, sensors, config.new_sensors),
            drop_path=config.model.drop_path if config.mode in WHOLE else 0.0,
        ),
        trainable=trainable,
        frozen=frozen,
        loss=loss,
        batches=functools.partial(
            load.train_iterator,
            {data.name: dataset},
            seed=config.seed,
            num_workers=data.values["data"]["num_workers"],
            shard=host_shard(data.mesh),
        ),
        steps_per_epoch=-(-len(dataset.training_tiles) // dataset.options.batch_size),
        validate=validate,
        sample_ids=functools.partial(dataset.tile_ids, "train"),
        fingerprint=fingerprint(data, start),
        # Modes that freeze a part save products that flops.py counts.
        count_flops=(lambda inputs: finetune_flops(start.network, inputs.batch)) if config.mode in WHOLE else None,
        # Without decay no multipliers, which would be part of every program.
        multipliers=None if decay == 1 else layer_multipliers(trainable, decay, start.network.model.depth),
    )
