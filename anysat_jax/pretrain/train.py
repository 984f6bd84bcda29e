"""Pretraining from a config to a report, top to bottom."""

import collections
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.errors import ConfigError, Preempted
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.pretrain.collapse import HealthWatch
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.objective import LOSSES
from anysat_jax.pretrain.probe import report_pretraining
from anysat_jax.pretrain.step import (
    TrainState,
    abstract_state,
    make_train_step,
    pretraining_optimizer,
    state_from_params,
)
from anysat_jax.sensors import SENSORS
from anysat_jax.train import config as settings
from anysat_jax.train.checkpoints import Checkpoints, understood
from anysat_jax.train.compile import LOOKAHEAD, StepPrograms, look_ahead
from anysat_jax.train.config import warn_config_changes
from anysat_jax.train.distributed import agree
from anysat_jax.train.input import Fed, Feed, check_same_datasets, make_blame
from anysat_jax.train.metrics_log import RunLog
from anysat_jax.train.monitor import Ledger, count_skipped, make_meter
from anysat_jax.train.optimizer import leaf_names
from anysat_jax.train.profiling import Profiler
from anysat_jax.train.record import RunRecord, make_summary, write_json
from anysat_jax.train.sharding import check_batch_sizes, check_heads, host_shard, make_mesh, on_host, replicated
from anysat_jax.train.status import JobStatus, training_fields
from anysat_jax.train.workdir import StopRequest
from anysat_jax.weights.load import initial_student
from data_pipelines import load
from data_pipelines.load import OpenDataset

FREE_TO_CHANGE = (
    "checkpoint_every",
    "log_every",
    "evaluate.",
    "mesh.",
    "name",
    "job",
    "init",
    "data.root",
    "data.num_",
    "model.remat",
    "data.skip_corrupt",
    "health.",
    "max_nonfinite_steps",
    "profile.",
    "watchdog_seconds",
)
"""Beginnings of names that may differ when a run goes on, without a word about it."""


@dataclasses.dataclass
class Start:
    """Where a process begins: at the beginning, or where another ended."""

    state: TrainState
    record: RunRecord
    position: dict[str, Any] | None = None


def begin(
    config: ConfigDict,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> Start:
    """Restores the newest checkpoint; where there is none, starts from `config.init` or at random."""
    as_json = settings.as_json(config)
    restored = checkpoints.restore(abstract_state(model, optimizer, mesh), as_json)
    if restored is None:
        return Start(first_state(config, model, optimizer, mesh), RunRecord())
    warn_config_changes(restored.meta["config"], as_json, FREE_TO_CHANGE)
    with understood(checkpoints.folder):
        record = RunRecord.from_json(restored.meta["record"])
    if record.steps < config.total_steps:
        record.resumed_from = record.steps
        logging.info("resuming from step %d", record.steps)
    return Start(restored.state, record, restored.data)


def first_state(
    config: ConfigDict, model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step: random, or with the weights of another run, of an exported or published file."""
    abstract = abstract_state(model, optimizer, mesh)
    wanted = {"params": abstract.params, "teacher": abstract.teacher}
    params, teacher = initial_student(config.init, model, config.seed, wanted, settings.as_json(config))
    return state_from_params(params, teacher, optimizer, mesh)


def open_data(config: ConfigDict) -> tuple[ConfigDict, ModelConfig, dict[str, OpenDataset]]:
    """Opens every dataset, and checks that the model has a projector for each of its sensors.

    Returns:
      The config, its `model.sensors` filled in where it names none: those of the datasets. Its model. The datasets.

    Raises:
      ConfigError: a dataset is unknown, missing or unreadable, in this process or in another, or has a sensor that
        `model.sensors` lacks.
    """
    config = config.copy_and_resolve_references()
    datasets = agree(lambda: _open(config))
    check_same_datasets(datasets)
    return config, settings.model_config(config), datasets


def _open(config: ConfigDict) -> dict[str, OpenDataset]:
    try:
        cards = [options.card for options in load.read_options(config.data).values()]
        wanted = {sensor for card in cards for sensor in card.sensors}
        if config.model.sensors is None:
            config.model.sensors = tuple(name for name in SENSORS if name in wanted)
        for card in cards:
            missing = [sensor for sensor in card.sensors if sensor not in config.model.sensors]
            if missing:
                raise ConfigError(f"dataset {card.name!r} has sensors that model.sensors lacks: {', '.join(missing)}")
        return load.open_datasets(config.data)
    except (ValueError, OSError) as error:  # its message is one sentence, for the user
        raise ConfigError(str(error)) from error


def pretrain(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Pretrains, or goes on pretraining, in `workdir`; then reports.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data or the workdir; a loss or a gradient is not finite; the
        run was asked to stop.
    """
    # ---------------------------------------------------------------- config, devices, mesh
    described = PretrainConfig.read(config).model
    mesh = make_mesh(config.mesh)
    check_batch_sizes(config.data.datasets, mesh, config.accumulate)
    check_heads(described, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    logging.info("%s on %d x %s, in %s", config.name, mesh.size, mesh.devices.flat[0].device_kind, workdir)
    with JobStatus(workdir, config.name, config.total_steps, config.watchdog_seconds) as status:
        return run(config, mesh, workdir, status)


def run(config: ConfigDict, mesh: Mesh, workdir: pathlib.Path, status: JobStatus) -> dict[str, Any]:
    """What `pretrain` does once there are a mesh and a workdir."""
    # ---------------------------------------------------------------- data
    config, model, datasets = open_data(config)

    # ---------------------------------------------------------------- state, loop
    optimizer = pretraining_optimizer(PretrainConfig.read(config))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        start = begin(config, model, optimizer, mesh, checkpoints)
        if start.record.steps >= config.total_steps:
            logging.info("already trained for %d steps: only the report is made again", start.record.steps)
            state, record = start.state, start.record
        else:
            state, record = train(config, datasets, optimizer, mesh, start, checkpoints, workdir, status)

    # ---------------------------------------------------------------- report
    status.set_state("reporting", step=record.steps)
    probe = report(config, datasets, model, workdir, state)
    summary = make_summary(record, probe)
    if jax.process_index() == 0:
        write_json(workdir / "summary.json", summary)
    return summary


def train(
    config: ConfigDict,
    datasets: dict[str, OpenDataset],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    start: Start,
    checkpoints: Checkpoints,
    workdir: pathlib.Path,
    status: JobStatus,
) -> tuple[TrainState, RunRecord]:
    """Steps from `start` to `config.total_steps`, with checkpoints on the way and at the end."""
    state, record, first, total = start.state, start.record, start.record.steps, config.total_steps
    is_first = jax.process_index() == 0
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_on_mesh = jax.jit(
        make_train_step(PretrainConfig.read(config), optimizer, mesh),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    as_json = settings.as_json(config)
    batches = load.train_iterator(
        datasets, seed=config.seed, shard=host_shard(mesh), num_workers=config.data.num_workers
    )
    with (
        contextlib.closing(Feed(batches, config, mesh, first, start.position)) as feed,
        RunLog(workdir, step=first, total_steps=total, log_every=config.log_every, enabled=is_first) as log,
        StopRequest(enabled=jax.process_count() == 1) as stop,
        StepPrograms(step_on_mesh, state, date_buckets=date_buckets(datasets)) as programs,
        Profiler(workdir, config.profile.steps, enabled=is_first) as profiler,
        status.watchdog("step", lambda: programs.compiling) as watchdog,
    ):
        meter = make_meter(config, settings.model_config(config), mesh)
        status.follow(lambda: training_fields(record, meter, checkpoints.steps))
        status.set_state("running", step=first)
        ledger = Ledger(
            record,
            log,
            leaf_names(LOSSES, state.params),
            max_nonfinite=config.max_nonfinite_steps,
            blame=make_blame(datasets),
            watchers=(meter, HealthWatch.of(config, record), count_skipped(record), watchdog, status),
        )
        ahead: collections.deque[Fed] = collections.deque()
        look_ahead(ahead, feed, programs, min(LOOKAHEAD, total - first))
        for step in range(first + 1, total + 1):
            fed = ahead.popleft()
            ledger.before_step(programs.count.total, programs.compiling or profiler.disturbs(step))
            with profiler.step(step, state), jax.transfer_guard_host_to_device("disallow"):
                state, metrics = programs.run(state, fed)
            look_ahead(ahead, feed, programs, min(LOOKAHEAD, total - step))
            ledger.after_step(step, fed, metrics)
            stopping = stop.requested or (jax.process_count() > 1 and checkpoints.preempted(step))
            if step % config.checkpoint_every == 0 or step == total or stopping:
                ledger.finish()
                meta = {"step": step, "config": as_json, "record": record.to_json()}
                with status.during("saving"):
                    checkpoints.save(state, fed.position, meta)
            if stopping and step < total:
                raise Preempted(f"asked to stop: saved step {step} in {workdir}; the same command goes on from there")
    return state, record


def date_buckets(datasets: dict[str, OpenDataset]) -> dict[str, int]:
    """Returns the number of lengths that the dates of each dataset's batches are padded to."""
    return {name: max(1, len(one.options.sampling.date_buckets)) for name, one in datasets.items()}


def report(
    config: ConfigDict, datasets: dict[str, OpenDataset], model: ModelConfig, workdir: pathlib.Path, state: TrainState
) -> dict[str, Any]:
    """The probes and the figures, by the first process: frozen teacher against the same network at its random start."""
    teacher = on_host(state.teacher)
    if jax.process_index() != 0:
        return {}
    return report_pretraining(
        PretrainConfig.read(config).evaluate,
        datasets,
        lambda name: load.open_dataset(name, config.data.root, config.data.skip_corrupt),
        model,
        {"random": init_encoder(model, config.seed), "pretrained": teacher},
        workdir,
        title=f"{config.name or 'run'}, {config.total_steps} steps, seed {config.seed}",
        seed=config.seed,
    )
