"""Fitting a head, and what of the encoder is to train with it, to a task: one loop for fine-tuning and for probes."""

import functools
import math
import pathlib
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.adapt.modes import merge
from anysat_jax.train import settings
from anysat_jax.train.mesh import on_host
from anysat_jax.train.meter import Meter, mesh_peak
from anysat_jax.train.status import Sources
from anysat_jax.tuning.fit_loop import Plan, run_fitting
from anysat_jax.tuning.fit_problem import Batches, FitResult, Problem
from anysat_jax.tuning.fit_store import FitStore, summarise
from anysat_jax.tuning.optimizer import make_adapt_optimizer
from anysat_jax.tuning.selection import Rules, Selection
from anysat_jax.tuning.vitals import Vitals

__all__ = ["Batches", "FitResult", "Problem", "fit"]


def judges_start(config: ConfigDict) -> bool:
    """Whether the parameters before the first step are worth an evaluation: where the head is not random."""
    return config.get("head_start", "random") == "solved"


def fields_of_fitting(selection: Selection, metric: str, vitals: Vitals) -> dict[str, Any]:
    """What the status of a fitting says besides: "best" (the best evaluation so far; None before it, or where nothing
    could be scored) and "left_out_tiles".
    """
    best, known = selection.best, None
    if best is not None and not math.isnan(best.value):
        known = {"metric": metric, "value": best.value, "epoch": best.epoch}
    return {"best": known, "left_out_tiles": vitals.left_out_tiles}


def fit(
    problem: Problem, config: ConfigDict, mesh: Mesh, workdir: pathlib.Path, vitals: Vitals | None = None
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
      vitals: of the job.

    Raises:
      RunError: the checkpoints of the workdir do not fit or cannot be read, the data cannot be read, losses or
        gradients are not finite, or the run was asked to stop.
    """
    vitals = vitals or Vitals()
    task, steps_per_epoch = problem.task, problem.steps_per_epoch
    rules = Rules.from_config(config, task.metric, task.lower_is_better)
    plan = Plan(
        steps_per_epoch, config.epochs, config.evaluate.every, config.checkpoint_every, rules, judges_start(config)
    )
    optimizer = make_adapt_optimizer(config.optimizer, steps_per_epoch, config.epochs, problem.multipliers)
    fixed = {**problem.fingerprint, "steps_per_epoch": steps_per_epoch}
    if config.average_decay:  # decides what a checkpoint holds
        fixed["average_decay"] = config.average_decay
    with FitStore(workdir, {"problem": fixed, "settings": settings.as_json(config)}) as store:
        start = store.begin(problem.trainable, optimizer, mesh, averaged=config.average_decay > 0)
        record, selection = start.memory.record, start.memory.selection
        meter = Meter(problem.count_flops, mesh_peak(mesh)) if problem.count_flops else Meter()
        sources = Sources(record, meter, store, functools.partial(fields_of_fitting, selection, rules.metric, vitals))
        vitals.follow(sources.values, step=record.steps, total_steps=plan.total)
        if plan.finished(record.steps, selection):
            logging.info("already fitted for %d steps, in %s", record.steps, workdir)
        else:
            if record.steps:
                record.resumed_from = record.steps
                logging.info("resuming from step %d", record.steps)
            run_fitting(problem, config, plan, optimizer, mesh, start, store, workdir, meter, vitals)
        params = store.read_best(problem.trainable, mesh, selection.best.step)
    stopped_early = record.steps < plan.total
    return FitResult(
        merge(params, on_host(problem.frozen)),
        (selection.best.epoch, selection.best.value),
        summarise(start.memory, stopped_early, steps_per_epoch, task.metric),
    )
