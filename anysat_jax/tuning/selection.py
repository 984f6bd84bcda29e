"""What evaluations decide: which parameters are the best, when the rate falls, and when to stop. Pure Python."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Best:
    """An evaluation: its epoch (from 1), its step, and its value of the metric."""

    epoch: int
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Rules:
    """How evaluations are judged.

    Attributes:
      metric: name of the score.
      lower_is_better: whether it is an error.
      patience: evaluations in a row without a new best one after which training stops; None: it never does.
      factor, plateau_patience: after `plateau_patience` evaluations in a row without a new best one, the learning rate
        is multiplied by `factor`, and counting begins anew; None: never.
    """

    metric: str
    lower_is_better: bool
    patience: int | None = None
    factor: float = 1.0
    plateau_patience: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], metric: str, lower_is_better: bool) -> Self:
        """The rules of a config: `early_stopping`, and of the section `optimizer` `schedule` and `plateau`."""
        optimizer, plateau = config["optimizer"], {}
        if optimizer["schedule"] == "plateau":
            plateau = dict(factor=optimizer["plateau"]["factor"], plateau_patience=optimizer["plateau"]["patience"])
        return cls(metric, lower_is_better, config["early_stopping"], **plateau)

    def better(self, value: float, than: float) -> bool:
        """Whether one value is better than another; nan, the score of nothing, is worse than any number."""
        if math.isnan(value) or math.isnan(than):
            return math.isnan(than) and not math.isnan(value)
        return value < than if self.lower_is_better else value > than


@dataclasses.dataclass
class Selection:
    """What a run remembers of its evaluations; part of every checkpoint.

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
        """Takes note of an evaluation. Returns whether it is the best so far, as the first one always is."""
        self.evaluations, self.step = self.evaluations + 1, step
        if self.best is None or rules.better(value, self.best.value):
            self.best, self.since_best, self.since_change = Best(epoch, step, value), 0, 0
            return True
        self.since_best, self.since_change = self.since_best + 1, self.since_change + 1
        if rules.plateau_patience is not None and self.since_change >= rules.plateau_patience:
            self.rate_scale, self.since_change = self.rate_scale * rules.factor, 0
        return False

    def stops(self, rules: Rules) -> bool:
        """Whether the best evaluation is too long ago for training to go on."""
        return rules.patience is not None and self.since_best >= rules.patience

    def to_json(self) -> dict[str, Any]:
        """The memory as JSON values; a value that is nan is None."""
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
