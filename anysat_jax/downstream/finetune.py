"""Fine-tuning and probing from a config to a report, top to bottom."""

import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from anysat_jax.batch import Batch
from anysat_jax.downstream import config as settings
from anysat_jax.downstream import trainable as modes
from anysat_jax.downstream.data import Data, Start, band_statistics, fingerprint, loss_config, open_data, start_network
from anysat_jax.downstream.evaluate import evaluate_split, finish, measure, training_summary
from anysat_jax.downstream.fit import FitFed, Problem, fit
from anysat_jax.downstream.network import NetworkConfig, Params, apply_network
from anysat_jax.downstream.probe import neighbour_scores, probe_problem, with_solved_head
from anysat_jax.downstream.task import LossConfig
from anysat_jax.downstream.trainable import layer_multipliers
from anysat_jax.errors import ConfigError
from anysat_jax.flops import finetune_flops
from anysat_jax.train.sharding import host_shard
from anysat_jax.train.status import JobStatus
from anysat_jax.weights.exported import FILE_NAME, ExportedHead, save_exported
from data_pipelines import load


def finetune(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a head, and what `config.mode` says of the encoder, or goes on with that, in `workdir`; then measures it.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data, the weights or the workdir; the data cannot be read; a
        loss or a gradient is not finite; the run was asked to stop.
    """
    settings.check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with JobStatus(workdir, config.name, watchdog_seconds=config.watchdog_seconds) as status:
        status.follow(status.evaluation_fields)
        return run(config, workdir, status)


def run(config: ConfigDict, workdir: pathlib.Path, status: JobStatus) -> dict[str, Any]:
    """What `finetune` does once there is a workdir."""
    began = time.monotonic()

    # ---------------------------------------------------------------- devices, data, labels, weights
    data = open_data(config, tuple(dict.fromkeys(("train", "val", *config.evaluate.splits))))
    start = with_solved_head(data, start_network(data), status)
    loss = loss_config(data)
    logging.info("%s on %d x %s, in %s", config.name, data.mesh.size, jax.devices()[0].device_kind, workdir)

    # ---------------------------------------------------------------- training
    make_problem = probe_problem if config.mode == "probe" else network_problem
    result = fit(make_problem(data, start, loss, status), data.config, data.mesh, workdir, status)
    params = start.params | result.params

    # ---------------------------------------------------------------- scores, weights, report
    measured = measure(data, start.network, params, loss, workdir, status)
    neighbours = neighbour_scores(data, start, status) if config.knn.neighbours else None
    status.set_state("reporting")
    if jax.process_index() == 0:
        export(data, start, params, workdir)
    seconds = time.monotonic() - began
    summary = training_summary(data, start, result, measured, neighbours, status.left_out, seconds)
    finish(summary, workdir)
    return summary


def network_problem(data: Data, start: Start, loss: LossConfig, status: JobStatus) -> Problem:
    """The whole network on observations: every mode but the probe on kept features."""
    config, sensors = data.config, data.dataset.card.sensors
    try:
        trainable, frozen = modes.split(start.params, config.mode, sensors, config.new_sensors)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    tiles = len(data.dataset.training_tiles)
    decay = config.optimizer.layer_decay
    return Problem(
        task=data.task,
        forward=functools.partial(
            training_forward,
            start.network,
            modes.dropping_sensors(config.mode, sensors, config.new_sensors),
            modes.drop_path_rate(config.mode, config.model.drop_path),
        ),
        trainable=trainable,
        frozen=frozen,
        loss=loss,
        batches=functools.partial(
            load.train_iterator,
            {data.name: data.dataset},
            seed=config.seed,
            num_workers=config.data.num_workers,
            shard=host_shard(data.mesh),
        ),
        steps_per_epoch=-(-tiles // data.dataset.options.batch_size),
        validate=functools.partial(validate, data, start.network, loss, status),
        sample_ids=functools.partial(data.dataset.tile_ids, "train"),
        fingerprint=fingerprint(data, start),
        # Probes and modes that freeze a part spare products that flops.py does not tell apart.
        count_flops=functools.partial(flops_of, start.network) if config.mode in modes.WHOLE else None,
        multipliers=None if decay == 1 else layer_multipliers(trainable, decay, start.network.model.depth),
    )


def flops_of(network: NetworkConfig, fed: FitFed) -> float:
    """FLOPs of a step that trains the whole network."""
    return finetune_flops(network, fed.batch)


def training_forward(
    network: NetworkConfig,
    dropping: tuple[str, ...],
    drop_path: float,
    params: Params,
    batch: Batch,
    rng: jax.Array | None,
) -> Float[Array, "B ... K"]:
    """Logits; with an rng, the projectors of some sensors drop, and blocks at the rate `drop_path`."""
    return apply_network(network, params, batch, rng, dropping, drop_path)


def validate(
    data: Data, network: NetworkConfig, loss: LossConfig, status: JobStatus, params: Params
) -> Mapping[str, float]:
    """Scores and loss on the validation split."""
    what = (data.dataset, "val", data.patch_sizes, data.config.evaluate.batch_size)
    found = evaluate_split(network, params, *what, data.mesh, loss=loss, leave=False, status=status)
    return found.of_metrics


def export(data: Data, start: Start, params: Params, workdir: pathlib.Path) -> None:
    """Writes the weights of the best evaluation."""
    network = start.network
    save_exported(
        workdir / FILE_NAME,
        network.model,
        params["encoder"],
        head=ExportedHead(network.head.to_json(), network.task.to_json(), params["head"]),
        statistics=band_statistics(data.dataset.prepared),
        source={"name": data.config.name, "mode": data.config.mode, "init": start.source, "dataset": data.name},
    )
