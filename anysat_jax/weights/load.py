"""Where an encoder's weights come from: a run, an exported file or a published checkpoint."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.model.config import PRESETS, ModelConfig
from anysat_jax.model.init import init_encoder, student_shapes
from anysat_jax.pretrain.step import TrainState
from anysat_jax.train.checkpoints import (
    ARGS,
    check_leaves,
    check_not_half_deleted,
    check_same_model,
    leaf_shapes,
    newest_whole,
)
from anysat_jax.weights.exported import FILE_NAME, SUFFIX, checksum, load_exported
from anysat_jax.weights.published import load_published

Params = dict[str, Any]
Kind = Literal["run", "export", "published"]


class LoadedEncoder(NamedTuple):
    """An encoder that was trained.

    Attributes:
      model: with the sensors that there are projectors for.
      params: of `Encoder(model)`, float32: the teacher's, where there is a teacher.
      kind: what they were read from.
    """

    model: ModelConfig
    params: Params
    kind: Kind


def load_encoder(source: str | os.PathLike[str], *, predictor_heads: int | None = None) -> LoadedEncoder:
    """The encoder of a workdir, an exported .safetensors file, or a published .pth file.

    Args:
      source: what to read. Of a pretraining's workdir the teacher is taken, of a finished adaptation's the exported
        model.
      predictor_heads: see `load_published`.

    Raises:
      FileNotFoundError: there is neither file nor folder.
      ValueError: the file does not hold the weights of an AnySat.
      ImportError: it is a .pth file, and torch is not installed.
      anysat_jax.errors.CheckpointError: the folder holds no checkpoint.
    """
    path = pathlib.Path(source)
    if (exported := exported_file(path)) is not None:
        content = load_exported(exported)
        return LoadedEncoder(content.model, content.encoder_params, "run" if path.is_dir() else "export")
    if path.is_dir():
        # takes seconds to import

        return LoadedEncoder(*load_teacher(path), "run")
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; expected a published .pth file, or the workdir of a run, or an exported {SUFFIX} file"
        )
    published = load_published(path, predictor_heads=predictor_heads)
    return LoadedEncoder(published.config, published.teacher_params or published.encoder_params, "published")


def exported_file(path: pathlib.Path) -> pathlib.Path | None:
    """The exported file that a path names: itself, or that of a finished run's workdir; None where there is none."""
    if path.suffix == SUFFIX:
        return path
    inside = path / FILE_NAME
    return inside if inside.is_file() else None


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


def load_teacher(workdir: str | os.PathLike[str]) -> tuple[ModelConfig, Params]:
    """The model of a run, and its teacher's parameters from the newest whole checkpoint.

    Args:
      workdir: what `--workdir` named, or the folder `runs/<name>-<time>`.

    Returns:
      The model's config, and the encoder's parameters, float32 on the first device.

    Raises:
      CheckpointError: the folder holds no whole checkpoint of a pretraining.
      ConfigError: another version of the code made it, with other parameters.
      ValueError: the run's model has a sensor that is not registered here.
    """

    def wanted(run: dict[str, Any]) -> Params:
        return {"teacher": _on_first_device(student_shapes(_model_of(run))["encoder"])}

    run, state = _read_newest(pathlib.Path(workdir), wanted)
    return _model_of(run), state["teacher"]


def restore_params(
    workdir: str | os.PathLike[str], abstract: TrainState, config: dict[str, Any]
) -> tuple[Params, Params]:
    """Student and teacher of the newest checkpoint, whatever its optimizer was.

    Args:
      workdir: of the run.
      abstract: shapes, dtypes and shardings that are wanted; only `params` and `teacher` are read.
      config: the config of this run; its model must be that of the checkpoint.

    Raises:
      CheckpointError: the folder holds no whole checkpoint of a pretraining.
      ConfigError: the checkpoint is of another model, or another version of the code made it, with other parameters.
    """

    def wanted(run: dict[str, Any]) -> Params:
        check_same_model(run, config, pathlib.Path(workdir))
        return {"params": abstract.params, "teacher": abstract.teacher}

    _, state = _read_newest(pathlib.Path(workdir), wanted)
    return state["params"], state["teacher"]


def _model_of(run: dict[str, Any]) -> ModelConfig:
    """The model of a run's config."""
    return ModelConfig.from_section(run["model"], dtype=run["dtype"])


def _read_newest(workdir: pathlib.Path, wanted: Callable[[dict[str, Any]], Params]) -> tuple[dict[str, Any], Params]:
    """The run's config, and parts of the state of its newest whole checkpoint.

    Args:
      workdir: of a pretraining run.
      wanted: gives, for the run's config, shapes, dtypes and shardings of the parts.
    """
    folder = workdir.absolute() / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} is not the workdir of a run: it has no folder checkpoints")
    # A fresh manager, since one remembers the first way in which an item was read.
    with ocp.CheckpointManager(folder) as manager:
        steps = manager.all_steps()
        step = newest_whole(folder, steps)
        if step is None:
            raise CheckpointError(
                f"all checkpoints of {folder} are damaged (steps {sorted(steps)}); give another run"
                if steps
                else f"there is no whole checkpoint in {folder} yet"
            )
        meta = manager.restore(step, args=ARGS.Composite(meta=ARGS.JsonRestore()))["meta"]
        check_not_half_deleted(meta, folder / str(step))
        run = meta["config"]
        if "model" not in run or run.get("job", "pretrain") != "pretrain":
            raise CheckpointError(
                f"{workdir} is of a run that adapts weights and has not ended, so that it has no exported model yet; "
                "start it again to go on with it"
            )
        parts = wanted(run)
        _check_parts(folder / str(step), parts)
        restore_args = ocp.checkpoint_utils.construct_restore_args(parts)
        restore = ARGS.PyTreeRestore(parts, restore_args=restore_args, partial_restore=True)
        return run, manager.restore(step, args=ARGS.Composite(state=restore))["state"]


def _check_parts(folder: pathlib.Path, parts: Params) -> None:
    """Refuses a checkpoint whose leaves are others, as another version of the code has made them."""
    stored = leaf_shapes(ocp.StandardCheckpointHandler().metadata(folder / "state").tree)
    stored = {name: shape for name, shape in stored.items() if name.partition(".")[0] in parts}
    remedy = "read it with the version of the code that made it, or give another run"
    check_leaves(stored, leaf_shapes(parts), folder, remedy)


def _on_first_device(shapes: Params) -> Params:
    """The shapes with a place: a checkpoint of many devices is wanted on one."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
