"""First weights of every job (`--config.init`) and of `AnySat.from_pretrained`.

A source is the workdir of a run, an exported .safetensors file, a published .pth file, or one of these files on the
Hugging Face Hub. Parameters that it lacks (projectors of further sensors, the predictor) start at random, but in
fine-tuning and probing projectors start as those of the nearest sensors.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import SingleDeviceSharding

from anysat_jax.errors import ConfigError
from anysat_jax.model.config import PRESETS, ModelConfig, effective_groups
from anysat_jax.model.init import init_encoder, init_projector, init_student, student_shapes
from anysat_jax.normalise import read_statistics
from anysat_jax.weights.checkpoint_files import check_same_model, objective_of, read_newest
from anysat_jax.weights.exported import FILE_NAME, SUFFIX, Exported, checksum, load_exported
from anysat_jax.weights.hub import locate, pinned
from anysat_jax.weights.published import load_published
from data_pipelines.prepare.storage import write_whole

Params = dict[str, Any]
Kind = Literal["run", "export", "published"]

CHOICES = (
    "'none' for a random start, the workdir of a pretraining or of a finished run, an exported .safetensors file, a "
    "published .pth file, or one on the Hub: hf:ORGANISATION/NAME[@REVISION][/FILE]"
)
STATISTICS_FILE = "statistics.json"  # in the workdir of a pretraining
# On which the encoder's weights depend.
ENCODER_FIELDS = ("dim", "depth", "num_heads", "mlp_ratio", "positions", "norm_groups")
ORIGIN = ("name", "total_steps", "seed")  # keys of a pretraining's config that go into what is made of it
PREDICTOR_FIELDS = ("predictor_depth", "predictor_heads")


class LoadedEncoder(NamedTuple):
    """A trained encoder."""

    model: ModelConfig  # with the sensors for which there are projectors
    params: Params  # of `Encoder(model)`, float32: the teacher's, where there is a teacher
    kind: Kind  # of the source


class Initial(NamedTuple):
    """An encoder before the first step of fine-tuning or probing."""

    model: ModelConfig  # with the sensors for which there are projectors, the data's among them
    params: Params  # of `Encoder(model)`, a tree of float32 numpy arrays
    # {"source": the value of config.init, "kind": "none", "run", "export" or "published", "digest": SHA-256 of the
    # parameters}
    source: dict[str, str]


def exported_file(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the exported file of a path: itself, or that of a finished run's workdir; None where there is none."""
    if path.suffix == SUFFIX:
        return path
    inside = path / FILE_NAME
    return inside if inside.is_file() else None


def load_encoder(source: str | os.PathLike[str], *, predictor_heads: int | None = None) -> LoadedEncoder:
    """Loads the encoder of a run (onto the first local device), an exported file or a published file.

    Raises:
      As `load_weights`.
    """
    content, kind = load_weights(source, predictor_heads=predictor_heads)
    return LoadedEncoder(content.model, content.encoder_params, kind)


def load_weights(
    source: str | os.PathLike[str], *, student: bool = False, predictor_heads: int | None = None
) -> tuple[Exported, Kind]:
    """Loads the weights of a run (onto the first local device), an exported file or a published file.

    Args:
      source: workdir, .safetensors or .pth file, or one on the Hub, see `locate`. Of a pretraining's workdir the
        teacher is taken, of a finished fine-tuning's or probing's the exported model.
      student: whether the student of a pretraining's workdir is loaded, too; that of a file is in any case.
      predictor_heads: see `load_published`.

    Raises:
      FileNotFoundError: there is neither file nor folder.
      ValueError: the file does not hold the weights of an AnySat, or a sensor of the run is not registered here.
      ImportError: it is a .pth file, and torch is not installed; or on the Hub, and huggingface_hub is not.
      OSError: it is on the Hub and cannot be downloaded.
      CheckpointError: the folder holds no whole checkpoint of a pretraining.
      ConfigError: another version of the code wrote the checkpoint, with other parameters.
    """
    path = locate(source)
    if (exported := exported_file(path)) is not None:
        return load_exported(exported), "run" if path.is_dir() else "export"
    if path.is_dir():

        def wanted(run: dict[str, Any]) -> Params:
            # Without a sharding Orbax would want the devices that wrote the checkpoint, of which there may be many.
            here = SingleDeviceSharding(jax.local_devices()[0])
            shapes = student_shapes(_model_of(run))
            parts = {"teacher": shapes["encoder"]} | ({"params": shapes} if student else {})
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), parts)

        run, state = read_newest(path, wanted)
        origin = {"source": str(source), "kind": "run"} | {name: run[name] for name in ORIGIN if name in run}
        if datasets := list(run.get("data", {}).get("datasets", {})):
            origin["datasets"] = datasets
        file = path / STATISTICS_FILE
        statistics = read_statistics(file) if file.is_file() else {}  # runs of earlier versions have none
        model = _model_of(run) if student else dataclasses.replace(_model_of(run), decoder=False)
        return Exported(model, state["teacher"], None, statistics, origin, state.get("params")), "run"
    _check_is_file(path)
    found = load_published(path, predictor_heads=predictor_heads)
    teacher = found.teacher_params or found.encoder_params
    # Files that were written here have the rest.
    known = {"statistics": {}, "source": {"source": pinned(source, path), "kind": "published"}} | found.described
    return Exported(found.config, teacher, None, known["statistics"], known["source"], found.student), "published"


def save_statistics(workdir: pathlib.Path, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the statistics that standardise a pretraining's inputs, by dataset and sensor; the first process does."""
    if jax.process_index() > 0:
        return
    flat = {f"{sensor}@{name}": one for name, sensors in sorted(datasets.items()) for sensor, one in sensors.items()}
    write_whole(workdir / STATISTICS_FILE, (json.dumps(flat, indent=1) + "\n").encode())


def _model_of(run: dict[str, Any]) -> ModelConfig:
    # Runs from before `norm_groups` are of models with the published numbers.
    section = {"norm_groups": "published"} | run["model"] | {"decoder": objective_of(run) == "reconstruction"}
    return ModelConfig.from_section(section, dtype=run["dtype"])


def _check_is_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; expected a published .pth file, or the workdir of a run, or an exported {SUFFIX} file"
        )


def initial_student(
    init: str | None, model: ModelConfig, seed: int, abstract: Mapping[str, Params], config: dict[str, Any]
) -> tuple[Params, Params]:
    """Returns student and teacher before the first step of pretraining.

    Args:
      init: a source of weights; empty for a random start. An encoder alone becomes both student and teacher; of a
        pretraining both are restored, whatever its optimizer was.
      model: of this run.
      seed: of the parameters that start at random.
      abstract: {"params", "teacher"}: shapes, dtypes and shardings, with which the weights of a run are restored.
      config: of this run, JSON values; its model must be that of a run's checkpoint.

    Raises:
      ConfigError: the file cannot be read; or file or checkpoint is of another model, or has other parameters, as of
        another version of the code.
      CheckpointError: the folder holds no whole checkpoint of a pretraining.
    """
    if not init:
        params = init_student(model, seed)
        return params, params["encoder"]
    logging.info("starting from the weights of %s", init)
    try:
        path = locate(init)
        exported = exported_file(path)
        if exported is not None:
            return _exported_student(exported, model, seed)
        if not path.is_dir():
            return _published_student(path, model, seed)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"init = {init!r}: {error}") from error

    def wanted(run: dict[str, Any]) -> Params:
        check_same_model(run, config, path)
        return dict(abstract)

    _, state = read_newest(path, wanted)
    return state["params"], state["teacher"]


def _published_student(path: pathlib.Path, model: ModelConfig, seed: int) -> tuple[Params, Params]:
    _check_is_file(path)
    weights = load_published(path, model, strict=False)
    if weights.report.misshaped:
        raise ConfigError(f"{path} is of another model than the config's:\n{weights.report}")
    _warn_of_random(path, weights.report.missing)
    for name in ("positions", "norm_groups"):
        if (trained := getattr(weights.config, name)) != (now := getattr(model, name)):
            logging.warning("%s was trained with model.%s = %r, not %r", path, name, trained, now)
    params = init_student(model, seed) | {"encoder": weights.encoder_params}
    if weights.predictor_params is not None:
        params |= {"predictor": weights.predictor_params, "mask_token": weights.mask_token}
    return params, weights.teacher_params or weights.encoder_params


def _exported_student(path: pathlib.Path, model: ModelConfig, seed: int) -> tuple[Params, Params]:
    exported = load_exported(path)
    student = exported.student or {}
    fields = ENCODER_FIELDS + (PREDICTOR_FIELDS if "predictor" in student else ())
    check_same_encoder(str(path), exported.model, dataclasses.asdict(model), fields)
    fresh = init_student(model, seed)
    _warn_of_random(path, [name for name in fresh["encoder"] if name not in exported.encoder_params])
    # Projectors of sensors that this run lacks are left out: no gradient would reach them.
    both = [
        {name: trained.get(name, value) for name, value in fresh["encoder"].items()}
        for trained in (student.get("encoder", exported.encoder_params), exported.encoder_params)
    ]
    # Of another objective the decoder is absent, or of no use.
    return fresh | {name: student[name] for name in student.keys() & fresh} | {"encoder": both[0]}, both[1]


def _warn_of_random(path: pathlib.Path, missing: Sequence[str]) -> None:
    if missing:
        logging.warning("start at random, for %s lacks them: %s", path, ", ".join(missing))


def initial_encoder(
    init: str,
    section: Mapping[str, Any],
    sensors: Sequence[str],
    *,
    new_sensors: Sequence[str] = (),
    dtype: str = "float32",
    seed: int = 0,
) -> Initial:
    """Returns the encoder before the first step of fine-tuning or probing.

    Args:
      init: a source of weights, or "none" for a random start.
      section: the config's section `model`. What it leaves None is the source's, or the preset's ("base" by default)
        for a random start.
      sensors: of the data.
      new_sensors: those of `sensors` that may lack a projector in the source; it starts as that of the nearest sensor,
        see `init_projector`.
      dtype: of the computation.
      seed: of the parameters that start at random.

    Raises:
      ConfigError: `init` cannot be read; its model has another width, depth, heads, positions or norms than `section`;
        or it has no projector for one of the sensors.
      CheckpointError: the workdir `init` holds no checkpoint.
    """
    if init != "none":  # a word of its own, since an empty value is more often a forgotten one
        kind, model, params = _trained(init, section, sensors, new_sensors, dtype, seed)
    else:
        values = _given(section) | {"preset": section["preset"] or "base", "sensors": tuple(sensors)}
        try:
            kind, model = "none", ModelConfig.from_section(values, dtype=dtype)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        params = init_encoder(model, seed, section["input_gain"])
    # By the digest results of different weights can be told apart, whatever their files are called.
    return Initial(model, params, {"source": init, "kind": kind, "digest": checksum(params)})


def _trained(
    init: str,
    section: Mapping[str, Any],
    sensors: Sequence[str],
    new_sensors: Sequence[str],
    dtype: str,
    seed: int,
) -> tuple[Kind, ModelConfig, Params]:
    """Loads an encoder, compares it with the config and the data, and adds the projectors of new sensors."""
    try:
        loaded = load_encoder(init, predictor_heads=section["predictor_heads"])
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"init = {init!r}: {error}") from error
    preset = section["preset"]
    # A random start has this checked by `ModelConfig`; here no model is built of the preset.
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"model.preset: unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    check_same_encoder(init, loaded.model, PRESETS.get(preset, {}) | _given(section))
    known = loaded.model.sensors
    fresh = tuple(name for name in sensors if name not in known)
    if lacking := [name for name in fresh if name not in new_sensors]:
        raise ConfigError(
            f"{init} has projectors for {', '.join(known)}, and none for {', '.join(lacking)} of "
            "the data; name in new_sensors those that shall get one"
        )
    # What decides the parameters is the file's; how they are computed with is the config's.
    how = dict(dtype=dtype, remat=section["remat"], dropout=section["dropout"])
    model = dataclasses.replace(loaded.model, sensors=(*known, *fresh), **how)
    params = jax.tree.map(np.asarray, loaded.params)
    if fresh:
        random = init_encoder(model, seed)
        params |= {f"projector_{name}": _first_projector(name, params, random) for name in fresh}
    return loaded.kind, model, params


def _first_projector(name: str, trained: Params, random: Params) -> Params:
    """Returns the first values of the projector of a sensor that the trained encoder lacks."""
    projector, source = init_projector(name, trained, random[f"projector_{name}"])
    origin = f"starts as that of {source!r}" if source else "starts at random: no known sensor has bands like its"
    logging.info("the projector of %r %s", name, origin)
    return projector


def _given(section: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    return {name: value for name, value in section.items() if name in names and value is not None}


def check_same_encoder(
    source: str, found: ModelConfig, wanted: Mapping[str, Any], fields: Sequence[str] = ENCODER_FIELDS
) -> None:
    """Refuses the weights of `source` if their model differs in one of the fields that `wanted` has.

    Raises:
      ConfigError: the message names both values.
    """
    wanted = {name: wanted[name] for name in fields if name in wanted}
    if "norm_groups" in wanted:
        wanted["norm_groups"] = effective_groups(wanted["norm_groups"], found.dim)
    if changed := [(n, getattr(found, n), value) for n, value in wanted.items() if getattr(found, n) != value]:
        lines = (f"model.{name} is {have!r} there and {want!r} in the config" for name, have, want in changed)
        raise ConfigError(f"{source} is of another model: {'; '.join(lines)}; give the values of the weights")
