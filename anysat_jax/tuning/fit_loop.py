"""The loop of fitting: steps, evaluations between them, and what those decide."""

import collections
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.adapt.modes import merge
from anysat_jax.adapt.step import AdaptState, leaf_names, make_train_step
from anysat_jax.train.errors import Preempted
from anysat_jax.train.ledger import count_skipped
from anysat_jax.train.mesh import replicated
from anysat_jax.train.meter import Meter
from anysat_jax.train.preemption import StopRequest
from anysat_jax.train.profiling import Profiler
from anysat_jax.train.programs import LOOKAHEAD, StepPrograms, look_ahead
from anysat_jax.train.share import put_params
from anysat_jax.train.watchdog import Watchdog
from anysat_jax.tuning.fit_feed import FitFed, FitFeed
from anysat_jax.tuning.fit_log import FitLedger, FitLog
from anysat_jax.tuning.fit_problem import Problem
from anysat_jax.tuning.fit_store import FitStart, FitStore, Memory
from anysat_jax.tuning.selection import Rules, Selection
from anysat_jax.tuning.state import with_rate_scale
from anysat_jax.tuning.vitals import Vitals

Params = dict[str, Any]


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


@dataclasses.dataclass
class Fitting:
    """A run under way.

    Attributes:
      problem, plan: what is fitted, and until when.
      store: where it is kept.
      state, memory, position: where the run stands.
      frozen: the parameters that do not train, on the devices.
      feed, programs, ledger, log, profiler, watchdog, stop: what steps need.
      vitals: of the job.
    """

    problem: Problem
    plan: Plan
    store: FitStore
    state: AdaptState
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
    vitals: Vitals

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
        with self.watchdog.resting():
            scores = self.problem.validate(merge(self.state.judged, self.frozen))
        epoch = self._step // plan.steps_per_epoch
        improved = selection.update(plan.rules, epoch, self._step, float(scores[plan.rules.metric]))
        self.log.write_evaluation(epoch, self._step, scores, selection.best.value)
        if improved:
            self.store.save_best(self.state.judged, self._step)
        self.state = with_rate_scale(self.state, selection.rate_scale)
        self.ledger.rested()

    def _save(self) -> None:
        self.ledger.finish()
        with self.vitals.during("saving"):
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
    vitals: Vitals,
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
        vitals.watchdog("step", lambda: programs.compiling) as watchdog,
    ):
        vitals.state("running")
        ledger = FitLedger(
            record,
            log,
            leaf_names(problem.trainable),
            problem.sample_ids,
            max_nonfinite=config.max_nonfinite_steps,
            watchers=(meter, count_skipped(record), watchdog, lambda finished: vitals.tell(step=finished.step)),
        )
        now = (start.state, start.memory, start.position)
        means = (feed, programs, ledger, log, profiler, watchdog, stop)
        Fitting(problem, plan, store, *now, frozen, *means, vitals).run()
