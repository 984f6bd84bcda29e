"""Training of a downstream task: the shared step loop with evaluations in between, which choose the best parameters."""

import contextlib
import csv
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from anysat_jax.downstream.config import DownstreamConfig
from anysat_jax.downstream.selection import FitStore, Plan, summarise
from anysat_jax.downstream.step import LOSSES, DownstreamState, Forward, make_train_step, with_rate_scale
from anysat_jax.downstream.task import METRICS, LossConfig, Task
from anysat_jax.downstream.trainable import Params, merge
from anysat_jax.errors import Preempted
from anysat_jax.train.input import StepInput, name_samples
from anysat_jax.train.loop import StepLoop
from anysat_jax.train.metrics_log import MetricsLog, StepColumns, open_csv
from anysat_jax.train.monitor import Meter
from anysat_jax.train.optimizer import make_optimizer
from anysat_jax.train.sharding import on_host, put_batch, put_params, put_whole, replicated
from anysat_jax.train.status import JobStatus, training_fields


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task to train: parameters, batches, loss and validation."""

    task: Task  # of the labels; `task.metric` chooses the best parameters
    forward: Forward  # (whole parameters, batch, rng or None) -> logits float32, traceable
    trainable: Params  # the parameters that train, float32, nested dicts
    frozen: Params  # the others; the optimizer allocates nothing for them
    loss: LossConfig  # class weights and label smoothing
    # Makes the endless training batches of this process, numpy, see `DeviceFeed`. Of their labels, the task's level and
    # "index" (B,) are read, and "valid" (B,) bool if there is one.
    batches: Callable[[], Any]
    steps_per_epoch: int  # batches of an epoch
    # Scores of the whole parameters (on the devices) on the validation split: finite floats or nan, the same on every
    # process, always the same keys: "loss" and the task's metrics. It has a watchdog of its own.
    validate: Callable[[Params], Mapping[str, float]]
    sample_ids: Callable[[Sequence[int]], list[str]]  # names of samples by their label "index", for messages
    # JSON values that must not differ between a start and a resume: dataset, model, head, task, the weights' digest.
    fingerprint: dict[str, Any]
    # Analytic FLOPs of a step by its `StepInput`; None: unknown, and there is no MFU.
    count_flops: Callable[[Any], float] | None = None
    # Of the learning rate, by leaf of `trainable`, scalars or arrays that can be broadcast to it; None: 1.
    multipliers: Any | None = None


class EvaluationLog:
    """evaluation.csv and the validation curves in TensorBoard; the bar shows the task's metric."""

    def __init__(self, workdir: pathlib.Path, task: Task, step: int):
        """Opens the table; rows of evaluations after `step`, which the run will repeat, are dropped."""
        self._task, self._scores = task, ("loss", *METRICS[task.kind])
        self.line = ""  # of the latest evaluation, for the progress bar
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
        """Writes "loss" and the task's metrics of an evaluation; `best` is the best value of `task.metric` so far."""
        metric = self._task.metric
        self.line = f"validation {metric} {scores[metric]:.4f} (best {best:.4f}), "
        if self._file is not None:
            csv.writer(self._file).writerow([epoch, step, *(repr(float(scores[name])) for name in self._scores)])
            # A row is on disk before the checkpoint of its step: a resumed run would not write it again.
            self._file.flush()
        log.write_scalars(step, {f"validation/{name}": float(scores[name]) for name in self._scores})


def fit(
    problem: Problem,
    config: DownstreamConfig,
    mesh: Mesh,
    workdir: pathlib.Path,
    stored: dict[str, Any],
    status: JobStatus | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Trains, or resumes training, in `workdir`, an existing folder; returns at once if that is finished.

    Writes metrics.csv, evaluation.csv, tensorboard/, checkpoints/ (the state, after every evaluation and every
    `config.checkpoint_every` steps), best/ (the best trainable parameters) and, for `config.profile.steps`, profile/.
    `stored` is the whole config, JSON values, as checkpoints hold it.

    Returns:
      The whole parameters of the best evaluation, numpy on every process, and the record of `summarise`.

    Raises:
      RunError: checkpoints do not fit or cannot be read, data cannot be read (DataError), too many steps in a row are
        not finite (NonFiniteError), or a stop was requested (Preempted: the run is saved).
    """
    status, task, schedule = status or JobStatus(), problem.task, config.optimizer
    plan = Plan(config, task, problem.steps_per_epoch)
    warmup, total = round(schedule.warmup_epochs * plan.steps_per_epoch), plan.total
    optimizer = make_optimizer(schedule, warmup_steps=warmup, total_steps=total, multipliers=problem.multipliers)
    # Whether there is an average decides what a checkpoint holds.
    average = {"average_decay": config.average_decay} if config.average_decay else {}
    fixed = problem.fingerprint | {"steps_per_epoch": plan.steps_per_epoch} | average
    with FitStore(workdir, {"problem": fixed, "settings": stored}) as store:
        restored = store.restore_or_init(problem.trainable, optimizer, mesh, averaged=config.average_decay > 0)
        follow(status, store, Meter(), task.metric, total_steps=total)
        if plan.finished(store.record.steps, store.selection):
            logging.info("already trained for %d steps, in %s", store.record.steps, workdir)
        else:
            with open_loop(problem, plan, optimizer, mesh, workdir, store, restored, status) as (loop, evaluations):
                train(problem, plan, loop, store, evaluations, status)
        best = store.read_best(problem.trainable, mesh, store.selection.best.step)
    record = summarise(store, store.record.steps < total, plan.steps_per_epoch, task.metric)
    return merge(best, on_host(problem.frozen)), record


@contextlib.contextmanager
def open_loop(
    problem: Problem,
    plan: Plan,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    workdir: pathlib.Path,
    store: FitStore,
    restored: tuple[DownstreamState, dict[str, Any] | None],
    status: JobStatus,
) -> Iterator[tuple[StepLoop, EvaluationLog]]:
    """Opens the loop of the steps after `store.record.steps`, and the log of the evaluations."""
    config, (state, position) = plan.config, restored
    if store.record.steps:
        store.record.resumed_from = store.record.steps
        logging.info("resuming from step %d", store.record.steps)
    with (
        contextlib.closing(EvaluationLog(workdir, problem.task, store.selection.step)) as evaluations,
        StepLoop(
            config,
            make_train_step(problem.task, problem.loss, problem.forward, optimizer, config.average_decay),
            state,
            problem.batches(),
            make_inputs(problem.task.level, config.seed, mesh),
            mesh=mesh,
            total=plan.total,
            record=store.record,
            position=position,
            columns=evaluations.step_columns(plan.steps_per_epoch),
            workdir=workdir,
            status=status,
            constants=(put_params(problem.frozen, mesh),),
            describe_samples=functools.partial(describe_samples, problem.sample_ids),
            count_flops=problem.count_flops,
        ) as loop,
    ):
        # From now on the speed in status.json is that of the steps.
        follow(status, store, loop.meter, problem.task.metric)
        yield loop, evaluations


def train(
    problem: Problem, plan: Plan, loop: StepLoop, store: FitStore, evaluations: EvaluationLog, status: JobStatus
) -> None:
    """Steps and evaluates until the plan is finished; the results are in `store`. Raises as `fit`."""
    selection, (frozen,) = store.selection, loop.constants

    def evaluate() -> None:
        with loop.paused():
            scores = problem.validate(merge(loop.state.eval_params, frozen))
            improved = selection.update(plan, loop.step, float(scores[problem.task.metric]))
            evaluations.write(plan.epoch(loop.step), loop.step, scores, selection.best.value, loop.log)
            # Before the checkpoint, which refers to them.
            if improved:
                store.save_best(loop.state.eval_params, loop.step)
            loop.state = with_rate_scale(loop.state, selection.rate_scale)

    def save() -> None:
        loop.monitor.flush()  # the record that is saved counts this step
        with status.during("saving"):
            store.save(loop.state, loop.position)

    if plan.due(loop.step, selection):
        evaluate()
        save()
    # Before each step, since the evaluation above may have been the last.
    steps, stopping = iter(loop), False
    while not (stopping or plan.finished(loop.step, selection)):
        step = next(steps)
        stopping, due = loop.should_stop(store.checkpoints), plan.due(step, selection)
        # After a stop request there is little time: the run saves now, and evaluates when it is resumed.
        if due and not stopping:
            try:
                evaluate()
            except Preempted:  # while its program was compiled
                stopping = True
        if due or stopping or step % plan.config.checkpoint_every == 0:
            save()
    if stopping or loop.stop.requested:  # before or during the last evaluation
        raise Preempted(f"asked to stop: saved step {loop.step}; the same command continues from there")


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


def follow(status: JobStatus, store: FitStore, meter: Meter, metric: str, **values: Any) -> None:
    """Lets status.json follow a run; "best" is None before the first evaluation, or where nothing could be scored."""

    def fields() -> dict[str, Any]:
        # nan is not JSON.
        best, known = store.selection.best, None
        if best is not None and not math.isnan(best.value):
            known = {"metric": metric, "value": best.value, "epoch": best.epoch}
        run = training_fields(store.record, meter, store.checkpoints.steps)
        return {**run, "best": known, "left_out_tiles": status.left_out_tiles}

    status.follow(fields, step=store.record.steps, **values)
