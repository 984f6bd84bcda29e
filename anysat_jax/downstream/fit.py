"""Training of a downstream task: the shared step loop with evaluations in between, which choose the best parameters."""

import contextlib
import csv
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from anysat_jax.downstream.config import DownstreamConfig
from anysat_jax.downstream.selection import FitStart, FitStore, Memory, Rules, Selection, summarise
from anysat_jax.downstream.step import LOSSES, DownstreamState, Forward, make_train_step, with_rate_scale
from anysat_jax.downstream.task import METRICS, LossConfig, Task
from anysat_jax.downstream.trainable import merge
from anysat_jax.errors import Preempted
from anysat_jax.train.input import StepInput, name_samples
from anysat_jax.train.loop import StepLoop
from anysat_jax.train.metrics_log import MetricsLog, StepColumns, open_csv
from anysat_jax.train.monitor import Meter
from anysat_jax.train.optimizer import make_optimizer
from anysat_jax.train.sharding import on_host, put_batch, put_params, put_whole, replicated
from anysat_jax.train.status import JobStatus, training_fields

Params = dict[str, Any]


class Batches(Iterator[Any], Protocol):
    """Endless training batches, numpy: each has `labels`, `batch_size`, `dataset` and `patch_size`.

    Of the labels, the task's level and "index" (B,) are read, and "valid" (B,) bool if there is one.
    """

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position."""

    def close(self) -> None:
        """Stops background threads and processes."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task to train: parameters, batches, loss and validation.

    Attributes:
      task: of the labels; `task.metric` chooses the best parameters.
      forward: (whole parameters, batch, rng or None) -> logits float32, traceable.
      trainable: the parameters that train, float32, nested dicts.
      frozen: the others; the optimizer allocates nothing for them.
      loss: class weights and label smoothing.
      batches: makes the endless training batches of this process.
      steps_per_epoch: batches of an epoch.
      validate: scores of the whole parameters (on the devices) on the validation split: finite floats or nan, the same
        on every process, always the same keys: "loss" and the task's metrics. It has a watchdog of its own.
      sample_ids: names of samples by their label "index", for messages.
      fingerprint: JSON values that must not differ between a start and a resume: dataset, model, head, task, the
        weights' digest.
      count_flops: analytic FLOPs of a step by its `StepInput`; None: unknown, and there is no MFU.
      multipliers: of the learning rate, by leaf of `trainable`, scalars or arrays that can be broadcast to it; None: 1.
    """

    task: Task
    forward: Forward
    trainable: Params
    frozen: Params
    loss: LossConfig
    batches: Callable[[], Batches]
    steps_per_epoch: int
    validate: Callable[[Params], Mapping[str, float]]
    sample_ids: Callable[[Sequence[int]], list[str]]
    fingerprint: dict[str, Any]
    count_flops: Callable[[Any], float] | None = None
    multipliers: Any | None = None


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Result of `fit`.

    Attributes:
      params: the whole parameters of the best evaluation, numpy on every process.
      best: its epoch (from 1) and its value of the task's metric.
      record: JSON values: "steps", "epochs", "stopped_early", "best" {"epoch", "step", "metric", "value"},
        "evaluations" (count), "seconds" of training, "tiles_per_second", "programs", "resumed_from", "peak_memory_mb".
    """

    params: dict[str, Any]
    best: tuple[int, float]
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Schedule of evaluations and checkpoints; steps count from 1."""

    steps_per_epoch: int
    epochs: int
    evaluate_every: int  # epochs
    checkpoint_every: int  # steps
    rules: Rules
    evaluates_start: bool = False  # whether the parameters before the first step are evaluated too

    @property
    def total(self) -> int:
        """Steps without early stopping."""
        return self.epochs * self.steps_per_epoch

    def evaluates(self, step: int) -> bool:
        """Returns whether a step is followed by an evaluation, as the last always is."""
        return step > 0 and (step % (self.evaluate_every * self.steps_per_epoch) == 0 or step == self.total)

    def due(self, step: int, selection: Selection) -> bool:
        """Returns whether a step has yet to be evaluated."""
        if self.evaluates_start and not selection.evaluations:
            return True
        return self.evaluates(step) and selection.step < step

    def finished(self, step: int, selection: Selection) -> bool:
        """Returns whether no step and no evaluation is left."""
        return (step >= self.total or selection.stops(self.rules)) and not self.due(step, selection)


class EvaluationLog:
    """evaluation.csv and the validation curves in TensorBoard; the bar shows the task's metric.

    Attributes:
      line: of the latest evaluation, for the progress bar.
    """

    def __init__(self, workdir: pathlib.Path, task: Task, step: int):
        """Opens the table; rows of evaluations after `step`, which the run does not know of, are dropped."""
        self._task, self._scores, self.line = task, ("loss", *METRICS[task.kind]), ""
        self._file = None
        if jax.process_index() == 0:
            self._file = open_csv(workdir / "evaluation.csv", step, ("epoch", "step", *self._scores))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def step_columns(self, steps_per_epoch: int) -> StepColumns:
        """Returns what is logged of each step; the bar shows the latest evaluation too."""

        def bar(values: Mapping[str, float]) -> str:
            rate, speed = values["learning_rate"], values["tiles_per_second"]
            return f"loss {values['loss']:.4f}, {self.line}lr {rate:.1e}, {speed:.1f} tiles/s"

        return StepColumns(
            metrics=("loss", "learning_rate", "grad_norm", "tiles_per_second"),
            bar=bar,
            losses={"loss": "loss"},
            checked=LOSSES,
            steps_per_epoch=steps_per_epoch,
        )

    def write(self, epoch: int, step: int, scores: Mapping[str, float], best: float, log: MetricsLog) -> None:
        """Writes the scores of an evaluation.

        Args:
          epoch, step: after which it was made.
          scores: "loss" and the task's metrics.
          best: the best value of the task's metric so far.
        """
        metric = self._task.metric
        self.line = f"validation {metric} {scores[metric]:.4f} (best {best:.4f}), "
        if self._file is not None:
            csv.writer(self._file).writerow([epoch, step, *(repr(float(scores[name])) for name in self._scores)])
            self._file.flush()  # a row is on disk before the checkpoint of its step
        log.write_scalars(step, {f"validation/{name}": float(scores[name]) for name in self._scores})


def fit(
    problem: Problem,
    config: DownstreamConfig,
    mesh: Mesh,
    workdir: pathlib.Path,
    stored: dict[str, Any],
    status: JobStatus | None = None,
) -> FitResult:
    """Trains, or resumes training, in `workdir`; returns at once if that is finished.

    Writes metrics.csv, evaluation.csv, tensorboard/, checkpoints/ (the state, after every evaluation and every
    `config.checkpoint_every` steps), best/ (the best trainable parameters) and, for `config.profile.steps`, profile/.

    Args:
      workdir: an existing folder.
      stored: the whole config, JSON values, as checkpoints hold it.

    Raises:
      RunError: the checkpoints of the workdir do not fit or cannot be read, the data cannot be read, losses or
        gradients are not finite, or the run was asked to stop.
    """
    status, task, steps_per_epoch = status or JobStatus(), problem.task, problem.steps_per_epoch
    plan = Plan(
        steps_per_epoch,
        config.epochs,
        config.evaluate.every,
        config.checkpoint_every,
        Rules.from_config(config, task.metric, task.lower_is_better),
        evaluates_start=config.head_init == "probe",  # a head that is not random
    )
    optimizer = make_optimizer(
        config.optimizer,
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
        total_steps=plan.total,
        multipliers=problem.multipliers,
    )
    step = make_train_step(task, problem.loss, problem.forward, optimizer, config.average_decay)
    fixed = {**problem.fingerprint, "steps_per_epoch": steps_per_epoch}
    if config.average_decay:  # decides what a checkpoint holds
        fixed["average_decay"] = config.average_decay
    with FitStore(workdir, {"problem": fixed, "settings": stored}) as store:
        start = store.restore_or_init(problem.trainable, optimizer, mesh, averaged=config.average_decay > 0)
        record, selection = start.memory.record, start.memory.selection
        follow(status, start, store, Meter(), task.metric, total_steps=plan.total)
        if plan.finished(record.steps, selection):
            logging.info("already trained for %d steps, in %s", record.steps, workdir)
        else:
            if record.steps:
                record.resumed_from = record.steps
                logging.info("resuming from step %d", record.steps)
            train(problem, config, plan, step, mesh, start, store, workdir, status)
        params = store.read_best(problem.trainable, mesh, selection.best.step)
    return FitResult(
        merge(params, on_host(problem.frozen)),
        (selection.best.epoch, selection.best.value),
        summarise(start.memory, record.steps < plan.total, steps_per_epoch, task.metric),
    )


def train(
    problem: Problem,
    config: DownstreamConfig,
    plan: Plan,
    step: Callable[..., tuple[DownstreamState, dict[str, jax.Array]]],
    mesh: Mesh,
    start: FitStart,
    store: FitStore,
    workdir: pathlib.Path,
    status: JobStatus,
) -> None:
    """Steps and evaluates from `start` until the plan is finished; results are in `store` and `start.memory`.

    Raises:
      NonFiniteError: a loss or a gradient is not finite in too many steps in a row.
      DataError: a tile cannot be read.
      Preempted: the run was asked to stop, and is saved.
    """
    selection = start.memory.selection
    frozen = put_params(problem.frozen, mesh)
    with (
        contextlib.closing(EvaluationLog(workdir, problem.task, selection.step)) as evaluations,
        StepLoop(
            config,
            step,
            start.state,
            problem.batches(),
            make_inputs(problem.task.level, config.seed, mesh),
            mesh=mesh,
            total=plan.total,
            record=start.memory.record,
            position=start.position,
            columns=evaluations.step_columns(plan.steps_per_epoch),
            workdir=workdir,
            status=status,
            constants=(frozen,),
            describe_samples=functools.partial(describe_samples, problem.sample_ids),
            count_flops=problem.count_flops,
        ) as loop,
    ):
        follow(status, start, store, loop.meter, problem.task.metric)
        after_step = functools.partial(evaluate_and_save, problem, plan, frozen, loop, start.memory, store, evaluations)
        if plan.due(loop.step, selection):  # a run that was asked to stop saves before it evaluates
            after_step(status, evaluates=True, saves=True)
        steps, stopping = iter(loop), False
        while not (stopping or plan.finished(loop.step, selection)):
            number = next(steps)
            stopping, due = loop.should_stop(store.checkpoints), plan.due(number, selection)
            saves = due or stopping or number % plan.checkpoint_every == 0
            after_step(status, evaluates=due and not stopping, saves=saves)
        if stopping or loop.stop_requested:  # before or during the last evaluation
            raise Preempted(f"asked to stop: saved step {loop.step}; the same command continues from there")


def evaluate_and_save(
    problem: Problem,
    plan: Plan,
    frozen: Params,
    loop: StepLoop,
    memory: Memory,
    store: FitStore,
    evaluations: EvaluationLog,
    status: JobStatus,
    *,
    evaluates: bool,
    saves: bool,
) -> None:
    """Evaluates the parameters between two steps, keeps them if they are the best, and saves a checkpoint."""
    selection = memory.selection
    if evaluates:
        with loop.paused():
            scores = problem.validate(merge(loop.state.eval_params, frozen))
            epoch = loop.step // plan.steps_per_epoch
            improved = selection.update(plan.rules, epoch, loop.step, float(scores[plan.rules.metric]))
            evaluations.write(epoch, loop.step, scores, selection.best.value, loop.log)
            if improved:
                store.save_best(loop.state.eval_params, loop.step)
            loop.state = with_rate_scale(loop.state, selection.rate_scale)
    if saves:
        loop.monitor.flush()
        with status.during("saving"):
            store.save(loop.state, loop.position, memory)


def describe_samples(
    sample_ids: Callable[[Sequence[int]], list[str]], inputs: StepInput, metrics: Mapping[str, Any]
) -> str:
    """Names the samples whose loss is not finite, or the whole batch if there are none."""
    bad, index = metrics["nonfinite_samples"], metrics["index"]
    if bad.any():
        return f"samples whose loss is not finite: {name_samples(index[bad].tolist(), sample_ids)}"
    return f"samples of the batch: {name_samples(index.tolist(), sample_ids)}"


def make_inputs(level: str, seed: int, mesh: Mesh) -> Callable[[Any, int], tuple[Any, ...]]:
    """Returns (batch on the host, update) -> (batch, seed), what the step takes, on the devices.

    Args:
      level: of the labels of the task; of the others only "index" and "valid" are copied.
      seed: of dropout.
    """
    seed_on_devices = put_whole(np.uint32(seed), replicated(mesh))

    def to_inputs(batch: Any, update: int) -> tuple[Any, ...]:
        del update  # the step's own randomness depends on its state
        labels = {name: batch.labels[name] for name in (level, "index", "valid") if name in batch.labels}
        # In the dtype of the devices, so that programs do not depend on how a dataset stores its labels.
        labels = {name: np.asarray(one, jax.dtypes.canonicalize_dtype(one.dtype)) for name, one in labels.items()}
        return put_batch(batch.replace(labels=labels), mesh), seed_on_devices

    return to_inputs


def follow(status: JobStatus, start: FitStart, store: FitStore, meter: Meter, metric: str, **values: Any) -> None:
    """Lets status.json follow a run; "best" is None before the first evaluation, or where nothing could be scored."""

    def fields() -> dict[str, Any]:
        best, known = start.memory.selection.best, None
        if best is not None and not math.isnan(best.value):
            known = {"metric": metric, "value": best.value, "epoch": best.epoch}
        run = training_fields(start.memory.record, meter, store.checkpoints.steps)
        return {**run, "best": known, "left_out_tiles": status.left_out_tiles}

    status.follow(fields, step=start.memory.record.steps, **values)
