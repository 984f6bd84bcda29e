"""Where a run begins: at its last checkpoint, with the weights of another, or at random."""

import dataclasses
import pathlib
from typing import Any

import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student
from anysat_jax.train import settings
from anysat_jax.train.checkpoints import Checkpoints, understood
from anysat_jax.train.errors import ConfigError
from anysat_jax.train.initial import check_same_encoder
from anysat_jax.train.pretrained import restore_params
from anysat_jax.train.state import Params, TrainState, abstract_state, create_state, state_from_params
from anysat_jax.train.summary import RunRecord
from anysat_jax.weights.exported import load_exported
from anysat_jax.weights.source import exported_file

FREE_TO_CHANGE = (
    "checkpoint_every",
    "log_every",
    "evaluate.",
    "mesh.",
    "name",
    "job",
    "init",
    "data.root",
    "data.num_",
    "model.remat",
    "data.skip_corrupt",
    "health.",
    "max_nonfinite_steps",
    "profile.",
    "watchdog_seconds",
)
"""Beginnings of names that may differ when a run goes on, without a word about it."""


@dataclasses.dataclass
class Start:
    """Where a process begins: at the beginning, or where another ended."""

    state: TrainState
    record: RunRecord
    position: dict[str, Any] | None = None


def begin(
    config: ConfigDict,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> Start:
    """Restores the newest checkpoint; where there is none, starts from `config.init` or at random."""
    as_json = settings.as_json(config)
    restored = checkpoints.restore(abstract_state(model, optimizer, mesh), as_json)
    if restored is None:
        return Start(first_state(config, model, optimizer, mesh), RunRecord())
    tell_changes(restored.meta["config"], as_json, FREE_TO_CHANGE)
    with understood(checkpoints.folder):
        record = RunRecord.from_json(restored.meta["record"])
    if record.steps < config.total_steps:
        record.resumed_from = record.steps
        logging.info("resuming from step %d", record.steps)
    return Start(restored.state, record, restored.data)


def tell_changes(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...]) -> None:
    """Warns of what differs between two configs, but for names that begin like one of `free`."""
    for name, before, now in settings.differences(old, new):
        if not name.startswith(free):
            logging.warning("%s was %r in the checkpoint and is %r now", name, before, now)


def first_state(
    config: ConfigDict, model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step: random, or with the weights of another run, of an exported or published file."""
    if not config.init:
        return create_state(model, optimizer, mesh, config.seed)
    logging.info("starting from the weights of %s", config.init)
    if config.init.endswith((".pth", ".pt")):
        params, teacher = published_weights(config.init, model, config.seed)
    elif (exported := exported_file(pathlib.Path(config.init))) is not None:
        params, teacher = exported_weights(exported, model, config.seed)
    else:
        abstract = abstract_state(model, optimizer, mesh)
        params, teacher = restore_params(config.init, abstract, settings.as_json(config))
    return state_from_params(params, teacher, optimizer, mesh)


def published_weights(path: str, model: ModelConfig, seed: int) -> tuple[Params, Params]:
    """Student and teacher from a published checkpoint; what the file lacks starts at random.

    Raises:
      ConfigError: the file cannot be read, or is of another width or depth.
    """
    from anysat_jax.weights.published import load_published  # needs torch

    try:
        weights = load_published(path, model, strict=False)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    if weights.report.misshaped:
        raise ConfigError(f"{path} is of another model than the config's:\n{weights.report}")
    if weights.report.missing:
        logging.warning("start at random, for %s lacks them: %s", path, ", ".join(weights.report.missing))
    if model.positions != "released":
        logging.warning("%s was trained with model.positions = 'released', and not %r", path, model.positions)
    params = init_student(model, seed) | {"encoder": weights.encoder_params}
    if weights.predictor_params is not None:
        params |= {"predictor": weights.predictor_params, "mask_token": weights.mask_token}
    return params, weights.teacher_params or weights.encoder_params


def exported_weights(path: pathlib.Path, model: ModelConfig, seed: int) -> tuple[Params, Params]:
    """Student and teacher from an exported encoder; projectors that it lacks, and the predictor, start at random.

    Raises:
      ConfigError: the file cannot be read, or is of another width, depth, heads or positions.
    """
    try:
        exported = load_exported(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    check_same_encoder(str(path), exported.model, dataclasses.asdict(model))
    params = init_student(model, seed)
    missing = [name for name in params["encoder"] if name not in exported.encoder_params]
    if missing:
        logging.warning("start at random, for %s lacks them: %s", path, ", ".join(missing))
    encoder = {name: exported.encoder_params.get(name, fresh) for name, fresh in params["encoder"].items()}
    return params | {"encoder": encoder}, encoder
