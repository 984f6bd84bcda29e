"""Fitting a head, and what of the encoder is to train with it, to a task: one loop for fine-tuning and for probes."""

import collections
import contextlib
import csv
import dataclasses
import math
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.downstream.selection import FitStart, FitStore, Memory, Rules, Selection, summarise
from anysat_jax.downstream.step import LOSSES, DownstreamState, Forward, make_train_step, with_rate_scale
from anysat_jax.downstream.task import METRICS, LossConfig, Task
from anysat_jax.downstream.trainable import merge
from anysat_jax.errors import Preempted
from anysat_jax.train import config as settings
from anysat_jax.train.compile import LOOKAHEAD, StepPrograms, look_ahead
from anysat_jax.train.input import next_batch, tell_skipped
from anysat_jax.train.metrics_log import RunLog, open_csv
from anysat_jax.train.monitor import Ledger, Meter, Pending, Watcher, count_skipped, first_names, mesh_peak
from anysat_jax.train.optimizer import leaf_names, make_optimizer
from anysat_jax.train.profiling import Profiler
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import on_host, put_batch, put_params, put_whole, replicated
from anysat_jax.train.status import JobStatus, training_fields
from anysat_jax.train.watchdog import Watchdog
from anysat_jax.train.workdir import StopRequest

Params = dict[str, Any]


class Batches(Iterator[Any], Protocol):
    """Training batches without end, numpy: each has `labels`, `batch_size`, `dataset` and `patch_size`.

    Of the labels, the task's level and "index" (B,) are read, and "valid" (B,) bool where it is there.
    """

    def get_state(self) -> dict[str, Any]:
        """Where it stands, JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""

    def close(self) -> None:
        """Stops what runs in the background."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be fitted, to what, and how it is judged.

    Attributes:
      task: what the labels are; `task.metric` chooses the best parameters.
      forward: (whole parameters, batch, rng or None) -> logits float32, traceable.
      trainable: the parameters that train, float32, nested dicts.
      frozen: those that do not; they take no memory of the optimizer.
      loss: class weights and label smoothing.
      batches: makes the endless training batches of this process.
      steps_per_epoch: batches of an epoch.
      validate: scores of the whole parameters (on the devices) on the validation split: finite floats or nan, the same
        on every process, always the same keys: "loss" and the task's metrics. It has a watchdog of its own.
      sample_ids: names of samples by their label "index", for messages.
      fingerprint: JSON values that must not differ between a start and a resume: dataset, model, head, task, the
        weights' digest.
      count_flops: of a step on what it is fed with (see `FitFed`), for the MFU; None: not known, and no MFU is told.
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
    """What fitting has found.

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
    """Which steps are evaluated, which are saved, and when it is over; steps count from 1."""

    steps_per_epoch: int
    epochs: int
    evaluate_every: int  # epochs
    checkpoint_every: int  # steps
    rules: Rules
    judges_start: bool = False  # whether the parameters before the first step are evaluated too

    @property
    def total(self) -> int:
        """Steps, if nothing stops them early."""
        return self.epochs * self.steps_per_epoch

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after a step; there always is one after the last."""
        return step > 0 and (step % (self.evaluate_every * self.steps_per_epoch) == 0 or step == self.total)

    def due(self, step: int, selection: Selection) -> bool:
        """Whether a step is to be evaluated and has not been."""
        if self.judges_start and not selection.evaluations:
            return True
        return self.evaluates(step) and selection.step < step

    def finished(self, step: int, selection: Selection) -> bool:
        """Whether there is nothing left to do."""
        return (step >= self.total or selection.stops(self.rules)) and not self.due(step, selection)


class FitLog(RunLog):
    """The logs of a run of fitting; in every process but the first it does nothing."""

    metrics = ("loss", "learning_rate", "grad_norm", "tiles_per_second")
    columns = ("step", "epoch", "dataset", "patch_size", *metrics)
    per_dataset = ()

    def __init__(
        self,
        workdir: pathlib.Path,
        task: Task,
        *,
        steps_per_epoch: int,
        evaluated_step: int,
        **run: Any,
    ):
        """Opens the files.

        Args:
          workdir: where they are.
          task: what is measured in evaluations.
          steps_per_epoch: to tell the epoch of a step.
          evaluated_step: step of the last evaluation that the run remembers; rows of later ones are dropped.
          run: as for `RunLog`.
        """
        super().__init__(workdir, **run)
        self._task, self._steps_per_epoch, self._validation = task, steps_per_epoch, ""
        self._scores = ("loss", *METRICS[task.kind])
        if self._enabled:
            columns = ("epoch", "step", *self._scores)
            self._evaluation = open_csv(workdir / "evaluation.csv", evaluated_step, columns)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._enabled:
            self._evaluation.close()

    def row(self, place: Mapping[str, Any], values: Mapping[str, float]) -> list[Any]:
        return super().row({**place, "epoch": math.ceil(place["step"] / self._steps_per_epoch)}, values)

    def status(self, values: Mapping[str, float]) -> str:
        rate, speed = values["learning_rate"], values["tiles_per_second"]
        return f"loss {values['loss']:.4f}, {self._validation}lr {rate:.1e}, {speed:.1f} tiles/s"

    def write_evaluation(self, epoch: int, step: int, scores: Mapping[str, float], best: float) -> None:
        """Writes the scores of an evaluation; the bar shows the task's metric from now on.

        Args:
          epoch, step: after which it was made.
          scores: "loss" and the task's metrics.
          best: the best value of the task's metric so far.
        """
        if not self._enabled:
            return
        metric = self._task.metric
        self._validation = f"validation {metric} {scores[metric]:.4f} (best {best:.4f}), "
        csv.writer(self._evaluation).writerow([epoch, step, *(repr(float(scores[name])) for name in self._scores)])
        self._evaluation.flush()  # a row is on disk before the checkpoint of its step
        for name in self._scores:
            self._board.add_scalar(f"validation/{name}", float(scores[name]), step)


class FitLedger(Ledger):
    """The bookkeeping of fitting: its complaints name samples."""

    def __init__(
        self,
        record: RunRecord,
        log: FitLog,
        leaf_names: list[str],
        sample_ids: Callable[[Sequence[int]], list[str]],
        *,
        max_nonfinite: int = 1,
        watchers: Sequence[Watcher] = (),
    ):
        """As `Ledger`; `sample_ids` names samples by their label "index"."""
        super().__init__(record, log, leaf_names, max_nonfinite=max_nonfinite, watchers=watchers)
        self._sample_ids = sample_ids

    def losses(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {"loss": float(metrics["loss"])}

    def complaint(self, pending: Pending, metrics: Mapping[str, Any]) -> str:
        bad = metrics["nonfinite_samples"]
        found = metrics["index"][bad] if bad.any() else metrics["index"]
        names = first_names(self._sample_ids(found.tolist()), most=10)
        samples = f"samples whose loss is not finite: {names}" if bad.any() else f"samples of the batch: {names}"
        return f"{super().complaint(pending, metrics)}; {samples}"


@dataclasses.dataclass(frozen=True)
class FitFed:
    """What one step needs.

    Attributes:
      batch: on the devices, for all processes together.
      seed: on the devices.
      position: where the data stand once this batch was used, for the checkpoint after the step.
      skipped: how many of this process' samples stand for tiles that could not be read.
      waited: seconds that the host waited for the batch.
    """

    batch: Any
    seed: jax.Array
    position: dict[str, Any]
    skipped: int = 0
    waited: float = 0.0

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the step takes after the state and the frozen parameters."""
        return self.batch, self.seed


class FitFeed:
    """Gives what each step needs, in the order of the data's iterator."""

    def __init__(self, batches: Any, level: str, seed: int, mesh: Mesh, position: dict[str, Any] | None, step: int = 0):
        """Starts at a position of the data.

        Args:
          batches: the data's iterator, see `anysat_jax.downstream.fit.Batches`.
          level: of the labels that the task asks for; of the others only "index" and "valid" travel.
          seed: of everything that drops in training.
          mesh: where the batches go.
          position: the iterator's state in the checkpoint; None starts at its beginning.
          step: how many updates were made there, for what is said of tiles that cannot be read.
        """
        self._batches, self._mesh, self._labels = batches, mesh, (level, "index", "valid")
        self._step = step
        self._seed = put_whole(np.uint32(seed), replicated(mesh))
        if position is not None:
            batches.set_state(position)

    def next(self) -> FitFed:
        """The next step's batch; the copy to the devices goes on while the caller computes.

        Raises:
          DataError: a tile cannot be read, or a worker process died.
        """
        began = time.monotonic()
        batch = next_batch(self._batches)
        waited = time.monotonic() - began
        self._step += 1
        skipped = tell_skipped(batch, self._step)
        labels = {name: _narrow(batch.labels[name]) for name in self._labels if name in batch.labels}
        position = self._batches.get_state()
        return FitFed(put_batch(batch.replace(labels=labels), self._mesh), self._seed, position, skipped, waited)

    def close(self) -> None:
        self._batches.close()


def _narrow(labels: np.ndarray) -> np.ndarray:
    """Labels in the dtype that they have on the devices, so that no program depends on how a dataset stores them."""
    return np.asarray(labels, jax.dtypes.canonicalize_dtype(labels.dtype))


@dataclasses.dataclass
class Fitting:
    """A run under way.

    Attributes:
      problem, plan: what is fitted, and until when.
      store: where it is kept.
      state, memory, position: where the run stands.
      frozen: the parameters that do not train, on the devices.
      feed, programs, ledger, log, profiler, watchdog, stop: what steps need.
      status: of the job.
    """

    problem: Problem
    plan: Plan
    store: FitStore
    state: DownstreamState
    memory: Memory
    position: dict[str, Any] | None
    frozen: Params
    feed: FitFeed
    programs: StepPrograms
    ledger: FitLedger
    log: FitLog
    profiler: Profiler
    watchdog: Watchdog
    stop: StopRequest
    status: JobStatus

    def __post_init__(self) -> None:
        self._step = self.memory.record.steps
        self._ahead: collections.deque[FitFed] = collections.deque()

    def run(self) -> None:
        """Steps and evaluations until the plan is finished.

        Raises:
          NonFiniteError: a loss or a gradient is not finite, for the last time that the run may have that in a row.
          DataError: a tile cannot be read.
          Preempted: asked to stop, and saved.
        """
        plan, selection = self.plan, self.memory.selection
        if plan.due(self._step, selection):  # a run that was asked to stop saves before it evaluates
            self._evaluate()
            self._save()
        while not plan.finished(self._step, selection):
            self._advance()
            self._arrive()
        if self.stop.requested:  # during the last evaluation
            raise self._preempted()

    def _advance(self) -> None:
        """One step."""
        left = self.plan.total - self._step
        look_ahead(self._ahead, self.feed, self.programs, min(LOOKAHEAD, left))
        fed = self._ahead.popleft()
        disturbed = self.programs.compiling or self.profiler.disturbs(self._step + 1)
        self.ledger.before_step(self.programs.count.total, disturbed)
        with self.profiler.step(self._step + 1, self.state), jax.transfer_guard_host_to_device("disallow"):
            self.state, metrics = self.programs.run(self.state, fed)
        self._step, self.position = self._step + 1, fed.position
        look_ahead(self._ahead, self.feed, self.programs, min(LOOKAHEAD, left - 1))  # while the devices compute
        self.ledger.after_step(self._step, fed, metrics)

    def _arrive(self) -> None:
        """What happens between two steps: evaluating, saving, stopping."""
        stopping = self.stop.requested or (jax.process_count() > 1 and self.store.preempted(self._step))
        due = self.plan.due(self._step, self.memory.selection)
        if due and not stopping:
            self._evaluate()
        if due or stopping or self._step % self.plan.checkpoint_every == 0:
            self._save()
        if stopping:
            raise self._preempted()

    def _evaluate(self) -> None:
        """Validates, and does what follows from it for the best parameters and the learning rate."""
        self.ledger.finish()
        self.profiler.rest(self._step, self.state)
        plan, selection = self.plan, self.memory.selection
        with self.watchdog.paused():
            scores = self.problem.validate(merge(self.state.eval_params, self.frozen))
        epoch = self._step // plan.steps_per_epoch
        improved = selection.update(plan.rules, epoch, self._step, float(scores[plan.rules.metric]))
        self.log.write_evaluation(epoch, self._step, scores, selection.best.value)
        if improved:
            self.store.save_best(self.state.eval_params, self._step)
        self.state = with_rate_scale(self.state, selection.rate_scale)
        self.ledger.rested()

    def _save(self) -> None:
        self.ledger.finish()
        with self.status.during("saving"):
            self.store.save(self.state, self.position, self.memory)

    def _preempted(self) -> Preempted:
        return Preempted(f"asked to stop: saved step {self._step}; the same command goes on from there")


def run_fitting(
    problem: Problem,
    config: ConfigDict,
    plan: Plan,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    start: FitStart,
    store: FitStore,
    workdir: pathlib.Path,
    meter: Meter,
    status: JobStatus,
) -> None:
    """Goes from a start to the end of the plan; what is found is in `store` and in `start.memory`.

    Raises: as `Fitting.run`.
    """
    step = make_train_step(problem.task, problem.loss, problem.forward, optimizer, config.average_decay)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, start.state)
    step_on_mesh = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    frozen = put_params(problem.frozen, mesh)
    record, batches, is_first = start.memory.record, problem.batches(), jax.process_index() == 0
    level = problem.task.level
    with (
        contextlib.closing(FitFeed(batches, level, config.seed, mesh, start.position, record.steps)) as feed,
        FitLog(
            workdir,
            problem.task,
            steps_per_epoch=plan.steps_per_epoch,
            evaluated_step=start.memory.selection.step,
            step=record.steps,
            total_steps=plan.total,
            log_every=config.log_every,
            enabled=is_first,
        ) as log,
        StopRequest(enabled=jax.process_count() == 1) as stop,
        StepPrograms(step_on_mesh, start.state, constants=(frozen,)) as programs,
        Profiler(workdir, config.profile.steps, enabled=is_first) as profiler,
        status.watchdog("step", lambda: programs.compiling) as watchdog,
    ):
        status.set_state("running")
        ledger = FitLedger(
            record,
            log,
            leaf_names(LOSSES, problem.trainable),
            problem.sample_ids,
            max_nonfinite=config.max_nonfinite_steps,
            watchers=(meter, count_skipped(record), watchdog, status),
        )
        now = (start.state, start.memory, start.position)
        means = (feed, programs, ledger, log, profiler, watchdog, stop)
        Fitting(problem, plan, store, *now, frozen, *means, status).run()


def judges_start(config: ConfigDict) -> bool:
    """Whether the parameters before the first step are worth an evaluation: where the head is not random."""
    return config.get("head_init", "random") == "probe"


def fields_of_fitting(selection: Selection, metric: str, status: JobStatus) -> dict[str, Any]:
    """What the status of a fitting says besides: "best" (the best evaluation so far; None before it, or where nothing
    could be scored) and "left_out_tiles".
    """
    best, known = selection.best, None
    if best is not None and not math.isnan(best.value):
        known = {"metric": metric, "value": best.value, "epoch": best.epoch}
    return {"best": known, "left_out_tiles": status.left_out_tiles}


def fit(
    problem: Problem, config: ConfigDict, mesh: Mesh, workdir: pathlib.Path, status: JobStatus | None = None
) -> FitResult:
    """Fits, or goes on fitting, in `workdir`; returns at once where that was done.

    Writes metrics.csv, evaluation.csv, tensorboard/, checkpoints/ (the state, after every evaluation and every
    `config.checkpoint_every` steps), best/ (the best parameters that train) and, where `config.profile.steps` asks for
    it, profile/.

    Args:
      problem: what is fitted.
      config: seed, epochs, checkpoint_every, log_every, early_stopping (None, or evaluations), evaluate.every (epochs),
        average_decay, max_nonfinite_steps, profile.steps and the section optimizer.
      mesh: the devices.
      workdir: a folder that is there.
      status: of the job.

    Raises:
      RunError: the checkpoints of the workdir do not fit or cannot be read, the data cannot be read, losses or
        gradients are not finite, or the run was asked to stop.
    """
    status = status or JobStatus()
    task, steps_per_epoch = problem.task, problem.steps_per_epoch
    rules = Rules.from_config(config, task.metric, task.lower_is_better)
    plan = Plan(
        steps_per_epoch, config.epochs, config.evaluate.every, config.checkpoint_every, rules, judges_start(config)
    )
    optimizer = make_optimizer(
        config.optimizer,
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
        total_steps=plan.total,
        multipliers=problem.multipliers,
    )
    fixed = {**problem.fingerprint, "steps_per_epoch": steps_per_epoch}
    if config.average_decay:  # decides what a checkpoint holds
        fixed["average_decay"] = config.average_decay
    with FitStore(workdir, {"problem": fixed, "settings": settings.as_json(config)}) as store:
        start = store.begin(problem.trainable, optimizer, mesh, averaged=config.average_decay > 0)
        record, selection = start.memory.record, start.memory.selection
        meter = Meter(problem.count_flops, mesh_peak(mesh)) if problem.count_flops else Meter()
        status.follow(
            lambda: {
                **training_fields(record, meter, store.steps),
                **fields_of_fitting(selection, rules.metric, status),
            },
            step=record.steps,
            total_steps=plan.total,
        )
        if plan.finished(record.steps, selection):
            logging.info("already fitted for %d steps, in %s", record.steps, workdir)
        else:
            if record.steps:
                record.resumed_from = record.steps
                logging.info("resuming from step %d", record.steps)
            run_fitting(problem, config, plan, optimizer, mesh, start, store, workdir, meter, status)
        params = store.read_best(problem.trainable, mesh, selection.best.step)
    stopped_early = record.steps < plan.total
    return FitResult(
        merge(params, on_host(problem.frozen)),
        (selection.best.epoch, selection.best.value),
        summarise(start.memory, stopped_early, steps_per_epoch, task.metric),
    )
