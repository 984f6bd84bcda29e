"""Selection of the best parameters by evaluations, with early stopping and the plateau schedule, and its storage."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import optax
from jax.sharding import Mesh

from anysat_jax.downstream.config import DownstreamConfig
from anysat_jax.downstream.step import LOSSES, DownstreamState, abstract_state, create_state
from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.train.checkpoints import Checkpoints, understood
from anysat_jax.train.config import differences, warn_config_changes
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import abstract_on, on_host
from anysat_jax.weights.checkpoint_files import section


@dataclasses.dataclass(frozen=True)
class Best:
    """An evaluation: its epoch (from 1), its step, and its value of the metric."""

    epoch: int
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules of selection.

    Attributes:
      metric: name of the score.
      lower_is_better: whether it is an error.
      patience: evaluations in a row without a new best one after which training stops; None: never.
      factor, plateau_patience: after `plateau_patience` evaluations in a row without a new best one, the learning rate
        is multiplied by `factor`, and the count restarts; None: never.
    """

    metric: str
    lower_is_better: bool
    patience: int | None = None
    factor: float = 1.0
    plateau_patience: int | None = None

    @classmethod
    def from_config(cls, config: DownstreamConfig, metric: str, lower_is_better: bool) -> Self:
        """Returns the rules of a config: `early_stopping`, and of the optimizer `schedule` and `plateau`."""
        rules = cls(metric, lower_is_better, config.early_stopping)
        if config.optimizer.schedule != "plateau":
            return rules
        plateau = config.optimizer.plateau
        return dataclasses.replace(rules, factor=plateau.factor, plateau_patience=plateau.patience)

    def better(self, value: float, than: float) -> bool:
        """Returns whether one value is better than another; nan, the score of no samples, is worse than any number."""
        if math.isnan(value) or math.isnan(than):
            return math.isnan(than) and not math.isnan(value)
        return value < than if self.lower_is_better else value > than


@dataclasses.dataclass
class Selection:
    """Evaluations of a run; part of every checkpoint.

    Attributes:
      evaluations: how many there were.
      step: that of the last one, 0 before the first.
      best: the best one; of equal ones the first.
      since_best: evaluations after it.
      since_change: evaluations after it, or after the rate last fell.
      rate_scale: what the learning rate is multiplied by.
    """

    evaluations: int = 0
    step: int = 0
    best: Best | None = None
    since_best: int = 0
    since_change: int = 0
    rate_scale: float = 1.0

    def update(self, rules: Rules, epoch: int, step: int, value: float) -> bool:
        """Adds an evaluation; returns whether it is the best so far, as the first always is."""
        self.evaluations, self.step = self.evaluations + 1, step
        if self.best is None or rules.better(value, self.best.value):
            self.best, self.since_best, self.since_change = Best(epoch, step, value), 0, 0
            return True
        self.since_best, self.since_change = self.since_best + 1, self.since_change + 1
        if rules.plateau_patience is not None and self.since_change >= rules.plateau_patience:
            self.rate_scale, self.since_change = self.rate_scale * rules.factor, 0
        return False

    def stops(self, rules: Rules) -> bool:
        """Returns whether the best evaluation is so long ago that training stops."""
        return rules.patience is not None and self.since_best >= rules.patience

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; nan becomes None."""
        values = dataclasses.asdict(self)
        if self.best is not None and math.isnan(self.best.value):
            values["best"]["value"] = None
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        best = values["best"]
        if best is not None:
            best = Best(**{**best, "value": math.nan if best["value"] is None else best["value"]})
        return cls(**{**values, "best": best})


Params = dict[str, Any]
FREE_TO_CHANGE = (
    "settings.checkpoint_every",
    "settings.log_every",
    "settings.mesh.",
    "settings.name",
    "settings.row",
    "settings.job",
    "settings.init",
    "settings.data.root",
    "settings.data.num_",
    "settings.data.skip_corrupt",
    "settings.max_nonfinite_steps",
    "settings.profile.",
    "settings.watchdog_seconds",
    "settings.cache.",
    "settings.knn.",
)
"""Prefixes of config keys that may change on resume without a warning."""


@dataclasses.dataclass
class Memory:
    """Steps and evaluations so far."""

    record: RunRecord = dataclasses.field(default_factory=lambda: RunRecord.of(LOSSES))
    selection: Selection = dataclasses.field(default_factory=Selection)

    def to_json(self) -> dict[str, Any]:
        return {"run": self.record.to_json(), "selection": self.selection.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(RunRecord.from_json(values["run"]), Selection.from_json(values["selection"]))


@dataclasses.dataclass
class FitStart:
    """Start of the steps: at the initial weights, or at a checkpoint with its position in the data."""

    state: DownstreamState
    memory: Memory
    position: dict[str, Any] | None = None


class FitStore:
    """The folders `checkpoints`, of the same-named attribute, and `best` of a workdir.

    The best parameters are whole on disk before a checkpoint refers to them, and the ones before them stay until that
    checkpoint is whole: whichever checkpoint a run resumes from, the best parameters that it refers to are there.
    """

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any]):
        """Opens the folders; `config` is {"problem", "settings"}, JSON values that must not and that may change."""
        self._config = config
        self.checkpoints = Checkpoints(workdir / "checkpoints", check=check_same_problem)
        self._best = Checkpoints(workdir / "best", check=check_same_problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.checkpoints.close()
        self._best.close()

    def restore_or_init(
        self, trainable: Params, optimizer: optax.GradientTransformation, mesh: Mesh, averaged: bool = False
    ) -> FitStart:
        """Restores the newest checkpoint, and drops best parameters of later steps; if there is none, starts anew.

        Raises:
          ConfigError: the checkpoint is of another problem.
          CheckpointError: there are checkpoints, and none can be read.
        """
        restored = self.checkpoints.restore(abstract_state(trainable, optimizer, mesh, averaged), self._config)
        if restored is None:
            self._best.drop_after(0)
            return FitStart(create_state(trainable, optimizer, mesh, averaged), Memory())
        warn_config_changes(restored.meta["config"], self._config, FREE_TO_CHANGE)
        with understood(self.checkpoints.folder):
            memory = Memory.from_json(restored.meta["record"])
        self._best.drop_after(memory.selection.step)
        return FitStart(restored.state, memory, restored.data)

    def save(self, state: DownstreamState, position: dict[str, Any], memory: Memory) -> None:
        """Saves state, position and memory in the background; replaces a checkpoint of the same step."""
        meta = {"step": memory.record.steps, "config": self._config, "record": memory.to_json()}
        self.checkpoints.drop_after(memory.record.steps - 1)
        self.checkpoints.save(state, position, meta)

    def save_best(self, params: Params, step: int) -> None:
        """Saves the best parameters, which are those of a step."""
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


def summarise(memory: Memory, stopped_early: bool, steps_per_epoch: int, metric: str) -> dict[str, Any]:
    """Returns `FitResult.record`: the run as JSON values; nan is None."""
    record, best = memory.record, memory.selection.best
    return {
        "steps": record.steps,
        "epochs": record.steps / steps_per_epoch,
        "stopped_early": stopped_early,
        "evaluations": memory.selection.evaluations,
        "best": {
            "epoch": best.epoch,
            "step": best.step,
            "metric": metric,
            "value": None if math.isnan(best.value) else best.value,
        },
        "loss": record.losses["loss"].means(),
        "batches": dict(sorted(record.batches.items())),
        "seconds": record.seconds,
        "tiles_per_second": record.tiles_per_second,
        "programs": record.programs,
        "resumed_from": record.resumed_from,
        "nonfinite_steps": record.nonfinite_steps,
        "skipped_records": dict(sorted(record.skipped.items())),
        "peak_memory_mb": record.to_json()["peak_memory_mb"],
    }
