"""Configs: sections as frozen dataclasses whose values are checked once, and whole configs as flat or JSON values."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
from absl import logging
from ml_collections import ConfigDict

from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns every value by its dotted name, sorted."""
    flat: dict[str, Any] = {}
    for key in sorted(config):
        value, name = config[key], prefix + key
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping | ConfigDict) else {name: value}
    return flat


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON values; tuples become lists."""
    # As a checkpoint returns it, so that a config compares equal with its stored self.
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (dotted name, old value, new value) of every value that differs; None for a value that is absent."""
    before, after = flatten(old), flatten(new)
    names = sorted({**before, **after})
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def warn_config_changes(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...]) -> None:
    """Warns of the values that differ, except those whose dotted name starts with one of `free`."""
    for name, before, now in differences(old, new):
        if not name.startswith(free):
            logging.warning("%s was %r in the checkpoint and is %r now", name, before, now)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A test of a value, and the words of an error for "must be ..."."""

    passes: Callable[[Any], bool]
    wanted: str


POSITIVE = Rule(lambda value: value > 0, "above 0")
FINITE_POSITIVE = Rule(lambda value: 0 < value < math.inf, "above 0 and finite")
COUNT = Rule(lambda value: 0 <= value < math.inf, "0 or more")
SEED = Rule(lambda value: 0 <= value < 2**32, "0 or more, and at most 4294967295")  # 32 bits of a random generator
FRACTION = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
POSITIVE_OR_NONE = Rule(lambda value: value is None or value > 0, "None or above 0")
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
SIZES = Rule(
    lambda value: value is None or (len(value) > 0 and min(value) > 0),
    "at least one size in metres above 0, or None for all",
)


def one_of(*choices: str) -> Rule:
    """Returns the rule of a value that is one of some names."""
    return Rule(lambda value: value in choices, " or ".join(map(repr, choices)))


def checked(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Returns a dataclass field of a `Section` whose value is checked against a rule."""
    return dataclasses.field(metadata={"rule": rule}, default=default)


class Section:
    """Base of the frozen dataclasses of a config's sections: checks the fields made by `checked` when constructed.

    Attributes:
      NAME: of the section in the config, "" for the whole config.
      RENAMED: former keys, each with a sentence that names its replacement.

    Raises:
      ConfigError: by the constructor: a value breaks its rule; the message names its dotted key.
    """

    NAME: ClassVar[str] = ""
    RENAMED: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            rule, value, kind = field.metadata.get("rule"), getattr(self, field.name), types[field.name]
            shown = f"{self.dotted(field.name)} = {value!r}"
            try:
                passes = rule is None or rule.passes(value)
            except TypeError:  # a value of another type, such as None or a name where a number belongs
                passes = False
            if not passes:
                raise ConfigError(f"{shown} must be {rule.wanted}")
            if isinstance(value, int) and rule is not SEED and abs(value) >= 2**31:  # counts on devices have 32 bits
                raise ConfigError(f"{shown} must be below {2**31}")
            if dataclasses.is_dataclass(value):  # which has checked itself
                continue
            try:
                msgspec.convert(value, kind)  # also of each value inside a tuple
            except msgspec.ValidationError:
                wanted = kind.__name__ if isinstance(kind, type) else kind
                raise ConfigError(f"{shown} must be of the type {wanted}") from None

    @classmethod
    def dotted(cls, key: str) -> str:
        """Returns the name of a key in the whole config."""
        return f"{cls.NAME}.{key}" if cls.NAME else key


S = TypeVar("S", bound=Section)


def read_section(cls: type[S], values: Mapping[str, Any], shown_in: str, **given: Any) -> S:
    """Returns a section of a config as its dataclass; sections inside it are read alike, lists become tuples.

    Args:
      shown_in: the file that shows every key, for messages.
      given: fields that are not read from `values`.

    Raises:
      ConfigError: a key is missing or unknown, or a value breaks its rule; the message names the dotted key.
    """
    types, names = typing.get_type_hints(cls), [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key in cls.RENAMED:
            raise ConfigError(f"the config's {cls.dotted(key)} is gone: {cls.RENAMED[key]}")
        if key not in names:
            raise ConfigError(f"the config's {cls.dotted(key)} is unknown; {shown_in} shows every field")
    fields: dict[str, Any] = dict(given)
    for name in (name for name in names if name not in given):
        # Even of a field with a default: a checkpoint's config must hold every value that the run was made with.
        if name not in values:
            raise ConfigError(f"the config has no {cls.dotted(name)}; {shown_in} shows every field")
        value, kind = values[name], types[name]
        if isinstance(kind, type) and issubclass(kind, Section):
            value = read_section(kind, value, shown_in)
        fields[name] = tuple(value) if isinstance(value, list) else value  # checkpoints hold JSON, which has no tuples
    return cls(**fields)


def model_config(config: ConfigDict) -> ModelConfig:
    """Returns the model of a pretraining's config; raises ConfigError if its values do not fit together."""
    try:
        return ModelConfig.from_section(config.model.to_dict(), dtype=config.dtype)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """The section `mesh`: devices along each axis."""

    NAME = "mesh"
    # Copies of the parameters, each on its part of the batch; None: all devices that the other axes leave.
    data: int | None = checked(POSITIVE_OR_NONE, None)
    fsdp: int = checked(POSITIVE, 1)  # devices over which the parameters are cut
    tensor: int = checked(POSITIVE, 1)  # devices that share the work on each tile


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section):
    """The section `profile`: the first and the last traced step, or None."""

    NAME = "profile"
    steps: tuple[int, int] | None = checked(
        Rule(
            lambda value: value is None or (len(value) == 2 and 0 < value[0] <= value[1]),
            "None, or the first and the last step, such as (20, 24)",
        ),
        None,
    )


@dataclasses.dataclass(frozen=True)
class PlateauConfig(Section):
    """The section `optimizer.plateau`: the learning rate is multiplied by `factor` after `patience` looks without an
    improvement.
    """

    NAME = "optimizer.plateau"
    factor: float = checked(Rule(lambda value: 0 < value < 1, "between 0 and 1"), 0.1)
    patience: int = checked(POSITIVE, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Keys that the sections `optimizer` of all jobs share; `clip_norm` is a global norm, None: no clipping."""

    NAME = "optimizer"
    learning_rate: float = checked(FINITE_POSITIVE)
    weight_decay: float = checked(COUNT, 0.0)
    clip_norm: float | None = checked(POSITIVE_OR_NONE, None)
    schedule: str = checked(one_of("cosine", "plateau"), "cosine")
    plateau: PlateauConfig = PlateauConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Keys that the configs of all jobs share."""

    job: str
    name: str = ""
    seed: int = checked(SEED, 0)
    init: str = ""
    checkpoint_every: int = checked(POSITIVE, 1000)  # steps
    log_every: int = checked(POSITIVE, 1)  # steps
    max_nonfinite_steps: int = checked(POSITIVE, 1)  # steps in a row with values that are not finite that end the run
    watchdog_seconds: float = checked(COUNT, 0.0)  # without a finished step, after which a hanging run ends; 0: never
    mesh: MeshConfig = MeshConfig()
    profile: ProfileConfig = ProfileConfig()
