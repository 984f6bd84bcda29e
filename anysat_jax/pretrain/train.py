"""The job that pretrains, from a config to a report, top to bottom."""

import functools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.errors import Preempted
from anysat_jax.pretrain.collapse import CollapseMonitor
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.probe import report_pretraining
from anysat_jax.pretrain.step import (
    COLUMNS,
    TrainState,
    abstract_state,
    make_flops_counter,
    make_inputs,
    make_train_step,
    pretraining_optimizer,
    random_teacher,
    state_from_params,
)
from anysat_jax.train.checkpoints import Checkpoints, understood
from anysat_jax.train.config import as_json, warn_config_changes
from anysat_jax.train.input import StepInput, describe_bad_samples, open_same_datasets
from anysat_jax.train.loop import StepLoop
from anysat_jax.train.record import RunRecord, peak_memory_mb, provenance, write_json
from anysat_jax.train.sharding import check_batch_sizes, check_heads, host_shard, make_mesh, on_host
from anysat_jax.train.status import JobStatus, training_fields
from anysat_jax.weights.load import initial_student, save_statistics
from data_pipelines import load

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
"""Prefixes of config keys that may change on resume without a warning."""


def pretrain(given: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Pretrains, or resumes pretraining, in `workdir`; then probes and reports.

    Returns:
      The content of summary.json.

    Raises:
      RunError: the config does not fit the machine, the data or the workdir; a loss or a gradient is not finite; the
        run received a stop signal.
    """
    began, config = time.monotonic(), PretrainConfig.read(given)
    mesh = make_mesh(config.mesh)
    # Before the datasets, which may take hours to prepare.
    check_batch_sizes(given.data.datasets, mesh, config.accumulate)
    check_heads(config.model, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    logging.info("%s on %d x %s, in %s", config.name, mesh.size, mesh.devices.flat[0].device_kind, workdir)
    with JobStatus(workdir, config.name, config.total_steps, config.watchdog_seconds) as status:
        with_sensors = functools.partial(config.with_sensors, given.model.sensors)

        def check(cards: list[Any]) -> None:
            for name in config.evaluate.datasets or ():  # those of the report, which comes last
                load.find_card(name, given.data.root)
            with_sensors(cards)

        datasets = open_same_datasets(given.data, check)
        config = with_sensors([one.card for one in datasets.values()])
        for problem in (text for one in datasets.values() for text in config.problems_of(one.options)):
            logging.warning("%s", problem)
        save_statistics(workdir, {name: one.prepared.mean_and_std for name, one in datasets.items()})
        state, record = train(config, given, datasets, mesh, workdir, status)
        status.set_state("reporting", step=record.steps)
        teacher, scores = on_host(state.teacher), {}  # by all processes: each holds a part
        if jax.process_index() == 0:
            scores = report_pretraining(
                config.evaluate,
                datasets,
                lambda name: load.open_dataset(name, given.data.root, given.data.skip_corrupt),
                config.model,
                {"random": random_teacher(config), "pretrained": teacher},
                workdir,
                title=f"{config.name or 'run'}, {config.total_steps} steps, seed {config.seed}",
                seed=config.seed,
            )
        summary = make_summary(record, scores) | {"provenance": provenance(time.monotonic() - began)}
        if jax.process_index() == 0:
            write_json(workdir / "summary.json", summary)
        return summary


def make_summary(record: RunRecord, probe: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of summary.json; `probe` has the scores of `report_pretraining`; None for what is unknown."""
    nothing = {"random": None, "pretrained": None}
    return {
        "steps": record.steps,
        "batches": dict(sorted(record.batches.items())),
        "loss": {name: edges.means() for name, edges in record.losses.items()},
        "probe": {task: probe.get(task, nothing) for task in ("tile", "dense")},
        "compiled_programs": record.programs,
        "tiles_per_second": record.tiles_per_second,
        "peak_memory_mb": max(record.peak_memory_mb, peak_memory_mb()),
        "resumed_from": record.resumed_from,
        "nonfinite_steps": record.nonfinite_steps,
        "skipped_records": dict(sorted(record.skipped.items())),
        "health_warnings": record.warnings,
    }


class Start(NamedTuple):
    """Start of the steps: at random or given weights, or at a checkpoint with its position in the data."""

    state: TrainState
    record: RunRecord
    position: dict[str, Any] | None = None


def restore_or_init(
    config: PretrainConfig,
    stored: dict[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> Start:
    """Restores the newest checkpoint; if there is none, starts from `config.init` or at random.

    Args:
      stored: the whole config, JSON values, as checkpoints hold it.
    """
    abstract = abstract_state(config.model, optimizer, mesh)
    restored = checkpoints.restore(abstract, stored)
    if restored is None:
        wanted = {"params": abstract.params, "teacher": abstract.teacher}
        params, teacher = initial_student(config.init, config.model, config.seed, wanted, stored)
        return Start(state_from_params(params, teacher, optimizer, mesh), RunRecord.of(COLUMNS.losses))
    # Warned of, not refused: a learning rate that is lowered half-way is a use of a restart.
    warn_config_changes(restored.meta["config"], stored, FREE_TO_CHANGE)
    with understood(checkpoints.folder):
        record = RunRecord.from_json(restored.meta["record"])
    if record.steps < config.total_steps:  # else the summary keeps where the last steps were resumed from
        record.resumed_from = record.steps
        logging.info("resuming from step %d", record.steps)
    return Start(restored.state, record, restored.data)


def train(
    config: PretrainConfig,
    given: ConfigDict,
    datasets: Mapping[str, load.OpenDataset],
    mesh: Mesh,
    workdir: pathlib.Path,
    status: JobStatus,
) -> tuple[TrainState, RunRecord]:
    """Trains from the newest checkpoint, or from the first weights, to `config.total_steps`; saves on the way.

    Args:
      given: the config file's values.

    Raises:
      Preempted: the run received a stop signal, and is saved.
    """
    optimizer, total = pretraining_optimizer(config), config.total_steps
    stored = as_json(given)
    stored["model"]["sensors"] = list(config.model.sensors)  # of the checkpoint, even if the datasets change
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        start = restore_or_init(config, stored, optimizer, mesh, checkpoints)
        record = start.record
        if record.steps >= total:
            logging.info("already trained for %d steps: only the report is made again", record.steps)
            return start.state, record
        with make_loop(config, datasets, given.data.num_workers, optimizer, mesh, start, workdir, status) as loop:
            status.follow(lambda: training_fields(record, loop.meter, checkpoints.steps))
            for step in loop:
                stopping = loop.should_stop(checkpoints)
                if step % config.checkpoint_every == 0 or step == total or stopping:
                    loop.monitor.flush()  # the record must hold the step that is saved
                    meta = {"step": step, "config": stored, "record": record.to_json()}
                    with status.during("saving"):
                        checkpoints.save(loop.state, loop.position, meta)
                if stopping and step < total:
                    saved = f"saved step {step} in {workdir}"
                    raise Preempted(f"asked to stop: {saved}; the same command continues from there")
        return loop.state, record


def make_loop(
    config: PretrainConfig,
    datasets: Mapping[str, load.OpenDataset],
    num_workers: int,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    start: Start,
    workdir: pathlib.Path,
    status: JobStatus,
) -> StepLoop:
    """Returns the loop of the steps from `start` to `config.total_steps`."""
    # A program for each static size of the dates, the context and the targets.
    programs = {
        (name, size): max(1, len(one.options.sampling.date_buckets)) * math.prod(config.pretrain.mask_buckets)
        for name, one in datasets.items()
        for size in one.options.patch_sizes
    }

    def describe(inputs: StepInput, metrics: Mapping[str, Any]) -> str:
        return describe_bad_samples(inputs, functools.partial(datasets[inputs.batch.dataset].tile_ids, "train"))

    return StepLoop(
        config,
        make_train_step(config, optimizer, mesh),
        start.state,
        load.train_iterator(datasets, seed=config.seed, shard=host_shard(mesh), num_workers=num_workers),
        make_inputs(config, mesh),
        mesh=mesh,
        total=config.total_steps,
        record=start.record,
        position=start.position,
        columns=COLUMNS,
        workdir=workdir,
        status=status,
        hooks=(CollapseMonitor(config.health, start.record),),
        describe_samples=describe,
        count_flops=make_flops_counter(config, mesh),
        expected_programs=programs,
    )
