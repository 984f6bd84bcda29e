"""Trained weights in one file: a model, the head of a task where there is one, and their origin.

The file is safetensors: numbers and JSON, nothing that could run. It holds a checksum over its whole content, by which
a damaged file is recognised.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
import safetensors
from safetensors.numpy import save_file

from anysat_jax.errors import reason
from anysat_jax.model.config import ModelConfig, policy_name
from anysat_jax.model.init import flat_names, student_shapes
from anysat_jax.sensors import SENSORS, Sensor, get_sensor, register
from data_pipelines.prepare.storage import move_whole, temporary_name

Params = dict[str, Any]

SUFFIX = ".safetensors"
FILE_NAME = f"model{SUFFIX}"  # in the workdir of a finished run
FORMAT, VERSION = "anysat-jax", 1
_AGAIN = "get the file again, or export it again"


class ExportedHead(NamedTuple):
    """The head of a task: `HeadConfig` and `Task` as JSON values, and the parameters."""

    config: dict[str, Any]
    task: dict[str, Any]
    params: Params


@dataclasses.dataclass(frozen=True)
class Exported:
    """Content of an exported file; parameters are trees of float32 numpy arrays."""

    model: ModelConfig  # with the sensors for which there are projectors
    encoder_params: Params  # of `Encoder(model)`
    head: ExportedHead | None  # of the task that the model was trained for; None for an encoder alone
    # {sensor: {"mean": [...], "std": [...]}} of each band, in native units, with which the inputs were standardised;
    # empty where they are not known
    statistics: dict[str, dict[str, list[float]]]
    source: dict[str, Any]  # origin of the weights, JSON values
    # Of a whole pretraining: "predictor" and "mask_token", where it has them, and "encoder", the student's, where the
    # encoder above is the teacher's.
    student: Params | None = None

    def description(self) -> str:
        """Returns all but the parameters as JSON."""
        content = {
            "model": dataclasses.asdict(self.model),
            "sensors": [dataclasses.asdict(get_sensor(name)) for name in self.model.sensors],
            "head": self.head and self.head.config,
            "task": self.head and self.head.task,
            "statistics": {name: dict(one) for name, one in self.statistics.items()},
            "source": dict(self.source),
        }
        if self.student is not None:
            content["student"] = sorted(self.student)
        return json.dumps(content, sort_keys=True)


def save_exported(
    path: str | os.PathLike[str],
    model: ModelConfig,
    encoder_params: Params,
    *,
    head: ExportedHead | None = None,
    statistics: Mapping[str, Mapping[str, list[float]]] | None = None,
    source: Mapping[str, Any],
    student: Params | None = None,
) -> None:
    """Writes weights, see `Exported`, into one file; replaces an older file of that name once the new one is whole.

    Raises:
      ValueError: the path does not end in .safetensors.
      OSError: the file cannot be written.
    """
    if (path := pathlib.Path(path)).suffix != SUFFIX:
        raise ValueError(f"{path}: weights are written in the format of safetensors; choose a name that ends {SUFFIX}")
    trees = {"encoder": encoder_params} | ({"head": head.params} if head else {}) | ({"student": student or {}})
    # C order: of a transposed array safetensors writes the memory as it lies, whatever the strides.
    tensors = {name: np.asarray(leaf, np.float32, order="C") for name, leaf in flat_names(trees).items()}
    description = Exported(model, encoder_params, head, dict(statistics or {}), dict(source), student).description()
    metadata = {"format": FORMAT, "version": str(VERSION), "description": description}
    metadata["sha256"] = checksum(tensors, description)  # safetensors has none: a flipped bit would pass unseen
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata)


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the name of a temporary file, which the block writes and which then replaces `path`.

    Raises:
      OSError: the file cannot be written; the message names `path`.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.touch()  # the errors of safetensors do not have the place that is wrong
        yield temporary
        temporary.chmod(0o644)  # some releases of safetensors write files that only their owner may read
        move_whole(temporary, path)
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:  # RuntimeError: torch's, of a full disk
        raise OSError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        if temporary.exists():  # False, too, where a file lies in the place of a folder
            temporary.unlink()


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Reads an exported file, and registers those of its model's sensors that are unknown here.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut off, damaged, of another program or of a later version, its tensors are not finite
        float32 in the shapes of its model, or one of its sensors has another description here; the message names the
        file. Nothing is registered then.
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
        raise ValueError(f"{path} is not a safetensors file, or is cut off or damaged ({error}); {_AGAIN}") from error
    except (TypeError, AttributeError) as error:  # of dtypes that numpy lacks
        raise ValueError(f"{path} holds tensors that cannot be read ({error}); expected float32; {_AGAIN}") from error
    if other := [f"{name} has dtype {one.dtype}" for name, one in tensors.items() if one.dtype != np.float32]:
        raise ValueError(f"{path} is not in float32: {other[0]}, expected float32; {_AGAIN}")
    if checksum(tensors, metadata["description"]) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: it does not match its checksum; {_AGAIN}")
    with described(path):
        return _content(json.loads(metadata["description"]), tensors)


@contextlib.contextmanager
def described(path: pathlib.Path) -> Iterator[None]:
    """Forgets the sensors that a block registers from a description if it fails.

    Raises:
      ValueError: the description is not what it should be; the message names the file.
    """
    known = dict(SENSORS)
    try:
        yield
    except BaseException as error:
        for name in SENSORS.keys() - known:
            del SENSORS[name]
        if isinstance(error, ValueError):
            raise ValueError(f"{path}: {error}; {_AGAIN}") from error
        if isinstance(error, KeyError | TypeError | AttributeError | RecursionError | OverflowError):
            problem = f"does not have the content of a file of version {VERSION} ({error!r})"
            raise ValueError(f"{path} {problem}; {_AGAIN}") from error
        raise


def checksum(params: Params, text: str = "") -> str:
    """Returns the SHA-256 of a tree of parameters (names, shapes, dtypes and bytes) and of a text beside it."""
    digest = hashlib.sha256(text.encode())
    for name, leaf in sorted(flat_names(params).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _check_format(path: pathlib.Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT or "description" not in metadata:
        raise ValueError(
            f"{path} was not written by this project: the format in its metadata is {metadata.get('format')!r}, "
            f"expected {FORMAT!r}; `python -m anysat_jax.export` makes such files"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} is of version {metadata.get('version')!r} of the format, this is for {VERSION}; update anysat-jax"
        )


def described_model(description: dict[str, Any], numbers: int) -> ModelConfig:
    """Returns the model of a description, and registers those of its sensors that are unknown here.

    Raises:
      ValueError: it is not a model, or has more parameters than the `numbers` in the file.
      KeyError, TypeError, AttributeError, OverflowError: the description has other content.
    """
    model = description["model"]
    for record in (one for one in description["sensors"] if one["name"] in model["sensors"]):
        sensor = Sensor(**{**record, "bands": tuple(record["bands"])})
        if SENSORS.get(sensor.name, sensor) != sensor:
            raise ValueError(f"it was made with {sensor}, and here that name is {SENSORS[sensor.name]}")
        register(sensor)  # a sensor of the user's own: the file must be enough to use it
    # Files from before `norm_groups` are of models with the published numbers.
    model = {"norm_groups": "published"} | model
    found = ModelConfig(**{**model, "sensors": tuple(model["sensors"]), "remat": policy_name(model["remat"])})
    # Tracing makes arrays of the sensors' sub-patches: a description must not decide how large they are.
    images = [one for one in map(get_sensor, found.sensors) if one.kind == "image"]
    embeds = [one.subpatch_pixels**2 * one.num_bands * found.dim for one in images]
    least = max([found.depth * found.mlp_ratio * found.dim**2, *embeds])
    if least > numbers:
        raise ValueError(f"it describes a model of at least {least:,} parameters, and holds {numbers:,}")
    return found


def _content(description: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Exported:
    """Returns the content, once tensors and description fit."""
    model = described_model(description, sum(tensor.size for tensor in tensors.values()))
    parts = description.get("student")
    shapes = student_shapes(model)
    expected = {"encoder": shapes["encoder"], "student": {part: shapes[part] for part in parts or ()}}
    _check_tensors(tensors, {name: leaf.shape for name, leaf in flat_names(expected).items()}, description["head"])
    trees = flax.traverse_util.unflatten_dict(dict(tensors), sep="/")
    head = description["head"] and ExportedHead(description["head"], description["task"], trees["head"])
    student = None if parts is None else trees.get("student", {})
    if not isinstance(description["statistics"], dict) or not isinstance(description["source"], dict):
        raise TypeError("statistics and source must be objects")
    return Exported(model, trees["encoder"], head, description["statistics"], description["source"], student)


def _check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], head: Any) -> None:
    """Refuses tensors that are not finite, or not the expected ones and, where there is one, a head."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values, and such weights are of no use")
    found = {name: one.shape for name, one in tensors.items() if not (head and name.startswith("head/"))}
    wrong = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
    if wrong:
        lines = (f"{name} {found.get(name, 'absent')}, expected {expected.get(name, 'absent')}" for name in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"its tensors are not those of the model that it describes: {'; '.join(lines)}{more}")
