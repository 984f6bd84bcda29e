"""Configs as plain values: flat for people, JSON for files, compared, and checked before anything runs."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted name, sorted."""
    flat: dict[str, Any] = {}
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON values: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of what differs; None stands for what is not there."""
    before, after = flatten(old), flatten(new)
    names = sorted({**before, **after})
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be, as a test and in words."""

    holds: Callable[[Any], bool]
    wanted: str


POSITIVE = Rule(lambda value: value > 0, "above 0")
COUNT = Rule(lambda value: value >= 0, "0 or more")
SHARE = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
OPTIONAL_POSITIVE = Rule(lambda value: value is None or value > 0, "None or above 0")
SIZES = Rule(
    lambda value: value is None or (len(value) > 0 and min(value) > 0),
    "at least one size in metres above 0, or None for all",
)

_STEPS = Rule(
    lambda value: value is None or (len(value) == 2 and 0 < value[0] <= value[1]),
    "None, or the first and the last step, such as (20, 24)",
)
_FLAG = Rule(lambda value: isinstance(value, bool), "True or False")

SHARED_RULES: dict[str, Rule] = {
    "seed": COUNT,
    "checkpoint_every": POSITIVE,
    "log_every": POSITIVE,
    "max_nonfinite_steps": POSITIVE,
    "watchdog_seconds": COUNT,
    "profile.steps": _STEPS,
    "data.num_workers": COUNT,
    "data.skip_corrupt": _FLAG,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.weight_decay": COUNT,
    "optimizer.clip_norm": OPTIONAL_POSITIVE,
    "optimizer.schedule": Rule(lambda value: value in ("cosine", "plateau"), "'cosine' or 'plateau'"),
    "optimizer.plateau.factor": Rule(lambda value: 0 < value < 1, "between 0 and 1"),
    "optimizer.plateau.patience": POSITIVE,
    "mesh.data": OPTIONAL_POSITIVE,
    "mesh.fsdp": POSITIVE,
    "mesh.tensor": POSITIVE,
}
"""Of values that every job has."""


def model_of(config: ConfigDict) -> ModelConfig:
    """The config's model.

    Raises:
      ConfigError: its fields do not fit together.
    """
    try:
        return ModelConfig.from_section(config.model.to_dict(), dtype=config.dtype)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_values(
    flat: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "", shown_in: str = "configs/pretrain.py"
) -> None:
    """Holds a flat config against rules.

    Args:
      flat: every value by its dotted name.
      rules: by the name behind the prefix.
      prefix: of the names, such as "data.datasets.flair.".
      shown_in: the file that shows every field.

    Raises:
      ConfigError: a value is missing or breaks its rule.
    """
    for name, rule in ((prefix + name, rule) for name, rule in rules.items()):
        if name not in flat:
            raise ConfigError(f"the config has no {name}; {shown_in} shows every field")
        if not rule.holds(flat[name]):
            raise ConfigError(f"{name} = {flat[name]!r} must be {rule.wanted}")


def tell_changes(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...]) -> None:
    """Warns of what differs between two configs, but for names that begin like one of `free`."""
    for name, before, now in differences(old, new):
        if not name.startswith(free):
            logging.warning("%s was %r in the checkpoint and is %r now", name, before, now)
