"""Selection of the best parameters by evaluations, with early stopping and the plateau schedule, and its storage."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import optax
from jax.sharding import Mesh

from anysat_jax.downstream.config import DownstreamConfig
from anysat_jax.downstream.metrics import json_values
from anysat_jax.downstream.step import LOSSES, DownstreamState, initial_state
from anysat_jax.downstream.task import Task
from anysat_jax.downstream.trainable import Params
from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.train.checkpoints import Checkpoints, understood
from anysat_jax.train.config import differences, warn_config_changes
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import abstract_on, initialised, on_host
from anysat_jax.weights.checkpoint_files import section


@dataclasses.dataclass(frozen=True)
class Best:
    """An evaluation: its epoch (from 1), its step, and its value of the metric."""

    epoch: int
    step: int
    value: float


@dataclasses.dataclass
class Selection:
    """Evaluations of a run; part of every checkpoint."""

    evaluations: int = 0  # how many there were
    step: int = 0  # that of the last one, 0 before the first
    best: Best | None = None  # the best one; of equal ones the first
    since_best: int = 0  # evaluations after it
    since_change: int = 0  # evaluations after it, or after the rate last fell
    rate_scale: float = 1.0  # what the learning rate is multiplied by

    def update(self, plan: "Plan", step: int, value: float) -> bool:
        """Adds an evaluation; returns whether it is the best so far, as the first always is."""
        self.evaluations, self.step = self.evaluations + 1, step
        # The first is kept even if it is nan: a run ends with some best parameters.
        if self.best is None or plan.better(value, self.best.value):
            self.best, self.since_best, self.since_change = Best(plan.epoch(step), step, value), 0, 0
            return True
        self.since_best, self.since_change = self.since_best + 1, self.since_change + 1
        schedule = plan.config.optimizer
        # After a change the rate has `patience` evaluations to show its effect, whenever the best one was.
        if schedule.schedule == "plateau" and self.since_change >= schedule.plateau.patience:
            self.rate_scale, self.since_change = self.rate_scale * schedule.plateau.factor, 0
        return False

    def to_json(self) -> dict[str, Any]:
        return json_values(dataclasses.asdict(self))  # strict JSON has no nan

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        best = values["best"]
        if best is not None:
            best = Best(**{**best, "value": math.nan if best["value"] is None else best["value"]})
        return cls(**{**values, "best": best})


@dataclasses.dataclass(frozen=True)
class Plan:
    """Schedule of the evaluations of a run and rules of selection; steps count from 1."""

    config: DownstreamConfig
    task: Task
    steps_per_epoch: int

    @property
    def total(self) -> int:
        """Steps without early stopping."""
        return self.config.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """Returns the number of whole epochs after a step."""
        return step // self.steps_per_epoch

    def better(self, value: float, than: float) -> bool:
        """Returns whether a value of the metric is better; nan, the score of no samples, is worse than any number."""
        if math.isnan(than):
            return not math.isnan(value)
        return value < than if self.task.lower_is_better else value > than  # False for nan

    def due(self, step: int, selection: Selection) -> bool:
        """Returns whether a step has yet to be evaluated: the last of some epochs, or of all."""
        if self.config.head_init == "probe" and not selection.evaluations:
            return True  # a head that is not random may be the best already
        every = self.config.evaluate.every * self.steps_per_epoch
        # A step is evaluated once: a run that was stopped between evaluation and checkpoint starts before both.
        return step > selection.step and (step % every == 0 or step == self.total)

    def stops(self, selection: Selection) -> bool:
        """Returns whether the best evaluation is so long ago that training stops."""
        return self.config.early_stopping is not None and selection.since_best >= self.config.early_stopping

    def finished(self, step: int, selection: Selection) -> bool:
        """Returns whether no step and no evaluation is left."""
        return (step >= self.total or self.stops(selection)) and not self.due(step, selection)


RUN_OPTIONS = ("checkpoint_every", "log_every", "max_nonfinite_steps", "watchdog_seconds", "mesh.", "profile.")
SOURCES = ("name", "row", "job", "init", "data.root", "data.num_", "data.skip_corrupt", "cache.", "knn.")
FREE_TO_CHANGE = tuple(f"settings.{key}" for key in (*RUN_OPTIONS, *SOURCES))
"""Prefixes of config keys that may change on resume without a warning."""


class FitStore:
    """A fit on disk: the folders `checkpoints` and `best` of a workdir.

    Attributes:
      checkpoints: of the steps.
      record, selection: steps and evaluations so far, which each checkpoint holds.
    """

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any]):
        """Opens the folders; `config` is {"problem", "settings"}, JSON values that must not and that may change."""
        self._config = config
        self.record, self.selection = RunRecord.of(LOSSES), Selection()
        self.checkpoints = Checkpoints(workdir / "checkpoints", check=check_same_problem)
        self._best = Checkpoints(workdir / "best", check=check_same_problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.checkpoints.close()
        self._best.close()

    def restore_or_init(
        self, trainable: Params, optimizer: optax.GradientTransformation, mesh: Mesh, averaged: bool = False
    ) -> tuple[DownstreamState, dict[str, Any] | None]:
        """Restores the newest checkpoint, and drops best parameters of later steps; if there is none, starts anew.

        Returns:
          The state, and the position in the data; None: at the beginning.

        Raises:
          ConfigError: the checkpoint is of another problem.
          CheckpointError: there are checkpoints, and none can be read.
        """

        def make(params: Params) -> DownstreamState:
            return initial_state(params, optimizer, averaged)

        restored = self.checkpoints.restore(abstract_on(mesh, jax.eval_shape(make, trainable)), self._config)
        if restored is None:
            # Best parameters without a checkpoint are of a run that was killed before its first one.
            self._best.drop_after(0)
            return initialised(make, mesh, trainable), None
        warn_config_changes(restored.meta["config"], self._config, FREE_TO_CHANGE)
        with understood(self.checkpoints.folder):
            values = restored.meta["record"]
            self.record, self.selection = RunRecord.from_json(values["run"]), Selection.from_json(values["selection"])
        # A run killed between `save_best` and `save` left parameters to which no checkpoint refers.
        self._best.drop_after(self.selection.step)
        return restored.state, restored.data

    def save(self, state: DownstreamState, position: dict[str, Any]) -> None:
        """Saves state, position and record in the background; replaces a checkpoint of the same step."""
        step, record = self.record.steps, {"run": self.record.to_json(), "selection": self.selection.to_json()}
        # The one of a step that was saved before its evaluation: a manager keeps one checkpoint a step.
        self.checkpoints.drop_after(step - 1)
        self.checkpoints.save(state, position, {"step": step, "config": self._config, "record": record})

    def save_best(self, params: Params, step: int) -> None:
        """Saves the best parameters, which are those of a step."""
        # They are whole on disk before a checkpoint refers to them, and those before them stay until that checkpoint is
        # whole: whichever checkpoint a run resumes from, the best parameters that it refers to are there.
        self.checkpoints.wait()
        self._best.save(params, {}, {"step": step, "config": self._config, "record": {}})
        self._best.wait()

    def read_best(self, trainable: Params, mesh: Mesh, step: int) -> Params:
        """Returns the best parameters, those of `step`, on the host; `trainable` has their shapes.

        Raises:
          CheckpointError: they are not there, or cannot be read.
        """
        restored = self._best.restore(abstract_on(mesh, trainable), self._config)
        if restored is None or restored.meta["step"] != step:
            raise CheckpointError(
                f"the best parameters, those of step {step}, are not in {self._best.folder}; "
                "choose another --workdir to fit anew"
            )
        return on_host(restored.state)


def check_same_problem(stored: dict[str, Any], config: dict[str, Any], folder: pathlib.Path) -> None:
    """Checks that a checkpoint is of the same problem.

    Raises:
      ConfigError: a value of the section `problem` differs; the message names both values.
    """
    changed = differences(section(stored, "problem", folder), config["problem"])
    if changed:
        lines = "; ".join(f"{name}: {old!r} there, {new!r} now" for name, old, new in changed)
        raise ConfigError(
            f"the checkpoint in {folder} is of another problem ({lines}); give the same config or another --workdir"
        )


def summarise(store: FitStore, stopped_early: bool, steps_per_epoch: int, metric: str) -> dict[str, Any]:
    """Returns the record of a fit, JSON values; nan is None."""
    record, selection = store.record, store.selection.to_json()
    return {
        "steps": record.steps,
        "epochs": record.steps / steps_per_epoch,
        "stopped_early": stopped_early,
        "evaluations": selection["evaluations"],
        "best": selection["best"] | {"metric": metric},
        "loss": record.losses["loss"].means(),
        "batches": dict(sorted(record.batches.items())),
        **{name: getattr(record, name) for name in ("seconds", "tiles_per_second", "programs", "resumed_from")},
        "nonfinite_steps": record.nonfinite_steps,
        "skipped_records": dict(sorted(record.skipped.items())),
        "peak_memory_mb": record.to_json()["peak_memory_mb"],
    }
