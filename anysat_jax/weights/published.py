"""Checkpoints of the published model, loaded as our parameters from either of their layouts.

The layouts: the feature extractor alone (`cls_token`, `projector_*`, `spatial_encoder.*`, `blocks.*`), and a
pretraining run (`model.encoder.*`, `model.predictor.*`, `model.masked_token`, `target_encoder.*`).
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from anysat_jax.model.config import PRESETS, ModelConfig
from anysat_jax.model.init import init_student, student_shapes
from anysat_jax.sensors import SENSORS
from anysat_jax.weights.convert import (
    Entry,
    bare_entries,
    from_published,
    pretraining_entries,
    published_shapes,
    to_published,
)
from data_pipelines.torch_files import read_arrays

Arrays = Mapping[str, np.ndarray]


def infer_config(arrays: Arrays, predictor_heads: int | None = None) -> ModelConfig:
    """Infers the model of published arrays from their shapes.

    Args:
      arrays: by published name, in either layout.
      predictor_heads: heads of the predictor, which no shape reveals; by default those of the preset of that width.

    Raises:
      ValueError: the arrays are not those of an AnySat encoder, a projector's sensor is not registered, or the heads of
        the predictor are not known.
    """
    prefix = "model.encoder." if any(name.startswith("model.encoder.") for name in arrays) else ""
    first_block = f"{prefix}spatial_encoder.predictor_blocks.0."
    dim = _shape(arrays, f"{prefix}cls_token", rank=3)[-1]
    head_dim = _shape(arrays, f"{first_block}attn.rpe_k.lookup_table_weight", rank=3)[1]
    hidden = _shape(arrays, f"{first_block}mlp.fc1.weight", rank=2)[0]
    if not head_dim or dim % head_dim or hidden % dim:
        raise ValueError(f"a width of {dim} does not go with heads of {head_dim} and an MLP of {hidden}")
    predictor_depth = _count_blocks(arrays, "model.predictor.predictor_blocks.")
    num_heads = dim // head_dim
    return ModelConfig(
        dim=dim,
        depth=_count_blocks(arrays, f"{prefix}spatial_encoder.predictor_blocks."),
        num_heads=num_heads,
        predictor_depth=predictor_depth or 4,
        predictor_heads=predictor_heads or _predictor_heads(dim, num_heads, predictor_depth),
        mlp_ratio=hidden // dim,
        positions="released",
        sensors=_sensors(arrays, prefix),
    )


def _shape(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    """Returns the shape of an array.

    Raises:
      ValueError: the array is not there, or has another rank.
    """
    if name not in arrays:
        some = ", ".join(list(arrays)[:5])
        raise ValueError(f"not a checkpoint of the published AnySat: no {name} in it (it starts with {some})")
    shape = arrays[name].shape
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"mis-shaped: {name}, expected {rank} dimensions, found {shape}")
    return shape


def _count_blocks(arrays: Arrays, prefix: str) -> int:
    """Counts the blocks that have arrays; absent ones are reported as missing later."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, arrays) if match})


def _sensors(arrays: Arrays, prefix: str) -> tuple[str, ...]:
    """Returns the sensors that have a projector, in the order of the registry."""
    pattern = re.compile(re.escape(prefix) + r"projector_([^.]+)\.")
    found = {match[1] for match in map(pattern.match, arrays) if match}
    unknown = sorted(found - set(SENSORS))
    if unknown:
        raise ValueError(
            f"projectors for unknown sensors {', '.join(unknown)}: describe each with anysat_jax.sensors.register first"
        )
    if not found:
        raise ValueError(f"no projector in it: expected names that start with {prefix}projector_<sensor>.")
    return tuple(name for name in SENSORS if name in found)


def _predictor_heads(dim: int, num_heads: int, predictor_depth: int) -> int:
    for preset in PRESETS.values():
        if preset["dim"] == dim:
            return preset["predictor_heads"]
    if predictor_depth:
        raise ValueError(f"no shape tells the heads of a predictor of width {dim}: give predictor_heads")
    return num_heads


Params = dict[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Comparison of a checkpoint's arrays with the model's, by published name.

    Attributes:
      missing: the model has them, the file does not.
      unexpected: the file has them, the model does not.
      misshaped: name to (expected shape, found shape).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: Mapping[str, tuple[Shape, Shape]] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Returns whether the file has exactly the model's arrays."""
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        lines = [f"missing: {name}" for name in self.missing]
        lines += [f"unexpected: {name}" for name in self.unexpected]
        lines += [
            f"mis-shaped: {name}, expected {expected}, found {found}"
            for name, (expected, found) in self.misshaped.items()
        ]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Content of a published checkpoint, as trees of float32 numpy arrays.

    Attributes:
      encoder_params: parameters of `Encoder(config)`.
      predictor_params: of `Predictor(config)`; None where the file has no predictor.
      mask_token: (D,), the student's token for masked sensors; None where the file has no predictor.
      teacher_params: parameters of the teacher's encoder; None where the file has no teacher.
      config: the model inferred from the shapes, with the released position codes and the file's sensors.
      report: missing, unexpected and mis-shaped arrays.
    """

    encoder_params: Params
    predictor_params: Params | None
    mask_token: np.ndarray | None
    teacher_params: Params | None
    config: ModelConfig
    report: LoadReport


def load_published(
    path: str | pathlib.Path,
    config: ModelConfig | None = None,
    *,
    predictor_heads: int | None = None,
    strict: bool = True,
) -> PublishedWeights:
    """Loads a published `.pth` checkpoint, executing nothing in it. Needs the extra `torch`.

    Args:
      path: the file, in either layout.
      config: the model that the file must hold. None reads widths, depths, heads and sensors from the file's shapes.
        Positions become "released" in either case: the weights were trained with them.
      predictor_heads: heads of the predictor, which no shape reveals; by default those of the preset of that width.
      strict: whether missing, unexpected and mis-shaped arrays are errors. If not, the parameters that the file lacks
        start as `init_student(config, 0)` does, and the report names all.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      ValueError: the file cannot be read, its arrays do not fit (each is listed by its published name, with expected
        and found shapes), or they are not finite.
    """
    arrays = read_arrays(path)
    try:
        config = config or infer_config(arrays, predictor_heads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    config = dataclasses.replace(config, positions="released")
    entries = _entries_of(arrays, config)
    student = _student_shapes(config)
    report = _compare(published_shapes(entries, student | {"teacher": student["encoder"]}), arrays)
    if strict and not report.complete:
        raise ValueError(f"{path} does not fit a model of {_describe(config)}:\n{report}")
    _check_finite(path, arrays)
    if report.missing or report.misshaped:
        arrays = _filled(arrays, report, entries, config)
    params = from_published(entries, arrays)
    return PublishedWeights(
        encoder_params=params["encoder"],
        predictor_params=params.get("predictor"),
        mask_token=params.get("mask_token"),
        teacher_params=params.get("teacher"),
        config=config,
        report=report,
    )


# Tracing the model takes seconds; a notebook or an evaluation loads several checkpoints of one model.
_student_shapes = functools.lru_cache(maxsize=8)(student_shapes)


def _entries_of(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> list[Entry]:
    """Lists the expected arrays: those of the file's layout, and of the parts that it has."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in arrays)

    if has("model.encoder."):
        return pretraining_entries(config, predictor=has("model.predictor."), teacher=has("target_encoder."))
    return bare_entries(config)


def _compare(expected: Mapping[str, Shape], arrays: Mapping[str, np.ndarray]) -> LoadReport:
    return LoadReport(
        missing=tuple(name for name in expected if name not in arrays),
        unexpected=tuple(name for name in arrays if name not in expected),
        misshaped={
            name: (shape, arrays[name].shape)
            for name, shape in expected.items()
            if name in arrays and arrays[name].shape != shape
        },
    )


def _check_finite(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError that names every array with a NaN or infinite value."""
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f"{path}: NaN or infinite values in {', '.join(broken)}. Such weights are of no use.")


def _filled(
    arrays: Mapping[str, np.ndarray], report: LoadReport, entries: list[Entry], config: ModelConfig
) -> dict[str, np.ndarray]:
    """Returns `arrays` with initial values where the file has none that fits."""
    student = init_student(config, 0)
    initial = to_published(entries, student | {"teacher": student["encoder"]})
    return dict(arrays) | {name: initial[name] for name in (*report.missing, *report.misshaped)}


def _describe(config: ModelConfig) -> str:
    return (
        f"width {config.dim}, depth {config.depth}, {config.num_heads} heads, "
        f"predictor depth {config.predictor_depth}, sensors {', '.join(config.sensors)}"
    )
