"""Trained weights in one file: a model, the head of a task where there is one, and what they were made of.

The file is safetensors: numbers and JSON, nothing that could run. A checksum over all that it says is kept in it, so
that a damaged file is told from a whole one.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
import safetensors
from safetensors.numpy import save_file

from anysat_jax.downstream.network import HeadConfig
from anysat_jax.downstream.task import Task
from anysat_jax.model.config import ModelConfig, policy_name
from anysat_jax.model.init import flat_names
from anysat_jax.sensors import SENSORS, Sensor, get_sensor, register
from data_pipelines.prepare.storage import move_whole, temporary_name

Params = dict[str, Any]
Statistics = Mapping[str, Mapping[str, list[float]]]

SUFFIX = ".safetensors"
FILE_NAME = f"model{SUFFIX}"  # in the workdir of a finished run
FORMAT, VERSION = "anysat-jax", 1
_AGAIN = "get the file again, or export it again"


class ExportedHead(NamedTuple):
    """The head of a task, with its parameters."""

    config: HeadConfig
    task: Task
    params: Params


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an exported file holds; parameters are trees of float32 numpy arrays.

    Attributes:
      model: the model, with the sensors that it has projectors for.
      encoder_params: of `Encoder(model)`.
      head: of the task that the model was trained for; None for an encoder alone.
      statistics: {sensor: {"mean": [...], "std": [...]}} of each band, in native units: what the inputs were
        standardised with; empty where that is not known.
      source: where the weights come from, JSON values.
    """

    model: ModelConfig
    encoder_params: Params
    head: ExportedHead | None
    statistics: dict[str, dict[str, list[float]]]
    source: dict[str, Any]


def save_exported(
    path: str | os.PathLike[str],
    model: ModelConfig,
    encoder_params: Params,
    *,
    head: tuple[HeadConfig, Task, Params] | None = None,
    statistics: Statistics | None = None,
    source: Mapping[str, Any],
) -> None:
    """Writes weights into one file; a file of that name is replaced when the new one is whole, and not before.

    Args:
      path: the file, with the ending .safetensors.
      model, encoder_params: the model and the parameters of its encoder.
      head: the head's config, its task and its parameters.
      statistics, source: see `Exported`.

    Raises:
      ValueError: the path has another ending.
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: weights are written in the format of safetensors; choose a name that ends {SUFFIX}")
    head = ExportedHead(*head) if head else None
    trees = {"encoder": encoder_params} | ({"head": head.params} if head else {})
    tensors = {name: np.asarray(leaf, np.float32, order="C") for name, leaf in flat_names(trees).items()}
    description = _describe(model, head, statistics or {}, source)
    metadata = {"format": FORMAT, "version": str(VERSION), "description": description}
    metadata["sha256"] = checksum(tensors, description)
    temporary = path.with_name(temporary_name(path.name))
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # some releases of safetensors keep others from reading it
        move_whole(temporary, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Reads an exported file, and registers those of its sensors that are not known here.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut off, damaged, of another program or of a later version, or one of its sensors is
        another one here; the message names the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is cut off or damaged ({error}); {_AGAIN}") from error
    if checksum(tensors, metadata["description"]) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: it is not what its checksum says; {_AGAIN}")
    try:
        return _content(path, json.loads(metadata["description"]), tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold what a file of version {VERSION} holds ({error!r}); {_AGAIN}"
        ) from error


def checksum(params: Params, text: str = "") -> str:
    """SHA-256 of a tree of parameters (names, shapes, dtypes and bytes), and of a text beside it."""
    digest = hashlib.sha256(text.encode())
    for name, leaf in sorted(flat_names(params).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _describe(model: ModelConfig, head: ExportedHead | None, statistics: Statistics, source: Mapping[str, Any]) -> str:
    return json.dumps(
        {
            "model": dataclasses.asdict(model),
            "sensors": [dataclasses.asdict(get_sensor(name)) for name in model.sensors],
            "head": head and head.config.to_json(),
            "task": head and head.task.to_json(),
            "statistics": {name: dict(one) for name, one in statistics.items()},
            "source": dict(source),
        },
        sort_keys=True,
    )


def _check_format(path: pathlib.Path, metadata: Mapping[str, str]) -> None:
    """Refuses files that another program, or a later version of this one, has written."""
    if metadata.get("format") != FORMAT or "description" not in metadata:
        raise ValueError(
            f"{path} was not written by this project: the format in its metadata is {metadata.get('format')!r}, "
            f"expected {FORMAT!r}; `python -m anysat_jax.export` makes such files"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} is of version {metadata.get('version')!r} of the format, this is for {VERSION}; update anysat-jax"
        )


def _content(path: pathlib.Path, description: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Exported:
    """The parts of a file that is whole."""
    for record in description["sensors"]:
        sensor = Sensor(**{**record, "bands": tuple(record["bands"])})
        if SENSORS.get(sensor.name, sensor) != sensor:
            raise ValueError(f"{path} was made with {sensor}, and here that name stands for {SENSORS[sensor.name]}")
        register(sensor)
    trees = flax.traverse_util.unflatten_dict(dict(tensors), sep="/")
    head = None
    if description["head"] is not None:
        config, task = HeadConfig.from_json(description["head"]), Task.from_json(description["task"])
        head = ExportedHead(config, task, trees["head"])
    model = description["model"]
    return Exported(
        model=ModelConfig(
            **{**model, "sensors": tuple(model["sensors"]), "remat": policy_name(model["remat"])},
        ),
        encoder_params=trees["encoder"],
        head=head,
        statistics=description["statistics"],
        source=description["source"],
    )
