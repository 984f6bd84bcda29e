"""The encoder that an adaptation starts from: at random, or with the weights that `config.init` names."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from anysat_jax.model.config import PRESETS, ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.train.errors import ConfigError
from anysat_jax.weights.exported import checksum
from anysat_jax.weights.source import load_encoder

Params = dict[str, Any]

CHOICES = (
    "'none' for a random start, the workdir of a pretraining or of a finished run, an exported .safetensors file, or a "
    "published .pth file"
)
CHECKED = ("dim", "depth", "num_heads", "mlp_ratio", "positions")  # of the model: what the encoder's weights depend on


@dataclasses.dataclass(frozen=True)
class Initial:
    """An encoder before the first step.

    Attributes:
      model: the encoder's; its sensors are all that it has projectors for, the data's among them.
      params: of `Encoder(model)`, a tree of float32 numpy arrays.
      source: {"source": what config.init says, "kind": "none", "run", "export" or "published", "digest": a SHA-256 of
        the parameters}.
    """

    model: ModelConfig
    params: Params
    source: dict[str, str]


def initial_encoder(config: ConfigDict, sensors: Sequence[str]) -> Initial:
    """The encoder that the config starts from.

    Args:
      config: of an adaptation; `init`, `model`, `new_sensors`, `dtype` and `seed` are read. What `model` leaves None is
        the checkpoint's, or that of "base" for a random start. A sensor of `new_sensors` starts at random where the
        checkpoint has no projector for it.
      sensors: names of the data's sensors.

    Raises:
      ConfigError: `init` names nothing that can be read, its model has another width, depth, heads or positions than
        the config says, or it has no projector for one of the sensors.
      CheckpointError: the workdir that `init` names holds no checkpoint.
    """
    unknown = [name for name in config.new_sensors if name not in sensors]
    if unknown:
        raise ConfigError(f"new_sensors names {', '.join(unknown)}; the data's sensors are {', '.join(sensors)}")
    if not config.init:
        raise ConfigError(f"config.init is empty; give {CHOICES}")
    if config.init == "none":
        kind, model = "none", _random_model(config, sensors)
        params = init_encoder(model, config.seed)
    else:
        kind, model, params = _pretrained(config, sensors)
    source = {"source": config.init, "kind": kind, "digest": checksum(params)}
    return Initial(model, params, source)


def _random_model(config: ConfigDict, sensors: Sequence[str]) -> ModelConfig:
    """The model of a random start."""
    section = _given(config) | {"preset": config.model.preset or "base", "sensors": tuple(sensors)}
    try:
        return ModelConfig.from_section(section, dtype=config.dtype)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _pretrained(config: ConfigDict, sensors: Sequence[str]) -> tuple[str, ModelConfig, Params]:
    """Kind, model and parameters of what `config.init` names, with new projectors where the config asks for them."""
    try:
        loaded = load_encoder(config.init, predictor_heads=config.model.predictor_heads)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"init = {config.init!r}: {error}") from error
    check_same_encoder(config.init, loaded.model, _wanted(config))
    fresh = [name for name in sensors if name not in loaded.model.sensors]
    if lacking := [name for name in fresh if name not in config.new_sensors]:
        raise ConfigError(
            f"{config.init} has projectors for {', '.join(loaded.model.sensors)}, and none for {', '.join(lacking)} of "
            "the data; name in new_sensors those that shall start at random"
        )
    model = dataclasses.replace(
        loaded.model,
        sensors=(*loaded.model.sensors, *fresh),
        dtype=config.dtype,
        remat=config.model.remat,
        dropout=config.model.dropout,
    )
    params = jax.tree.map(np.asarray, loaded.params)
    return loaded.kind, model, params | _random_projectors(model, fresh, config.seed)


def _random_projectors(model: ModelConfig, sensors: Sequence[str], seed: int) -> Params:
    """Parameters of the projectors of some of the model's sensors, as a random start has them."""
    if not sensors:
        return {}
    params = init_encoder(model, seed)
    return {f"projector_{name}": params[f"projector_{name}"] for name in sensors}


def check_same_encoder(source: str, found: ModelConfig, wanted: dict[str, Any]) -> None:
    """Refuses weights of another encoder.

    Args:
      source: names the weights in the message.
      wanted: values of the model that the config gives.

    Raises:
      ConfigError: one differs; the message names both.
    """
    pairs = [(name, getattr(found, name), wanted[name]) for name in CHECKED if name in wanted]
    lines = [f"model.{name} is {have!r} there and {want!r} in the config" for name, have, want in pairs if have != want]
    if lines:
        raise ConfigError(f"{source} is of another model: {'; '.join(lines)}; give the values of the weights")


def _given(config: ConfigDict) -> dict[str, Any]:
    """Fields of the model that the config gives."""
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    return {name: value for name, value in config.model.items() if name in names and value is not None}


def _wanted(config: ConfigDict) -> dict[str, Any]:
    """Values of the model that the config gives, by its preset or one by one."""
    preset = config.model.preset
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"model.preset: unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS.get(preset, {}) | _given(config)
