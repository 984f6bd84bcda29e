"""Fitting a head, and what of the encoder is to train with it, to a task: one loop for fine-tuning and for probes."""

import pathlib

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.adapt.modes import merge
from anysat_jax.train import settings
from anysat_jax.train.mesh import on_host
from anysat_jax.tuning.fit_loop import Plan, run_fitting
from anysat_jax.tuning.fit_problem import Batches, FitResult, Problem
from anysat_jax.tuning.fit_store import FitStore, summarise
from anysat_jax.tuning.optimizer import make_adapt_optimizer
from anysat_jax.tuning.selection import Rules

__all__ = ["Batches", "FitResult", "Problem", "fit"]


def judges_start(config: ConfigDict) -> bool:
    """Whether the parameters before the first step are worth an evaluation: where the head is not random."""
    return config.get("head_start", "random") == "solved"


def fit(problem: Problem, config: ConfigDict, mesh: Mesh, workdir: pathlib.Path) -> FitResult:
    """Fits, or goes on fitting, in `workdir`; returns at once where that was done.

    Writes metrics.csv, evaluation.csv, tensorboard/, checkpoints/ (the state, after every evaluation and every
    `config.checkpoint_every` steps) and best/ (the best parameters that train).

    Args:
      problem: what is fitted.
      config: seed, epochs, checkpoint_every, log_every, early_stopping (None, or evaluations), evaluate.every (epochs),
        average_decay and the section optimizer.
      mesh: the devices.
      workdir: a folder that is there.

    Raises:
      RunError: the checkpoints of the workdir do not fit or cannot be read, a loss or a gradient is not finite, or the
        run was asked to stop.
    """
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
        if plan.finished(record.steps, selection):
            logging.info("already fitted for %d steps, in %s", record.steps, workdir)
        else:
            if record.steps:
                record.resumed_from = record.steps
                logging.info("resuming from step %d", record.steps)
            run_fitting(problem, config, plan, optimizer, mesh, start, store, workdir)
        params = store.read_best(problem.trainable, mesh, selection.best.step)
    stopped_early = record.steps < plan.total
    return FitResult(
        merge(params, on_host(problem.frozen)),
        (selection.best.epoch, selection.best.value),
        summarise(start.memory, stopped_early, steps_per_epoch, task.metric),
    )
