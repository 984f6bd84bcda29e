"""Checkpoints of the published model, read as our parameters from either of their layouts, and written.

The layouts: the feature extractor alone (`cls_token`, `projector_*`, `spatial_encoder.*`, `blocks.*`), and a
pretraining run (`model.encoder.*`, `model.predictor.*`, `model.masked_token`, `target_encoder.*`). Files that are
written here have a description beside the tensors, of what no shape reveals; the published code ignores it.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

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
from anysat_jax.weights.exported import Exported, described, described_model, written_whole
from data_pipelines.torch_files import read_arrays

DESCRIPTION = "anysat_jax"  # key of the description, beside "state_dict"

Arrays = Mapping[str, np.ndarray]


def infer_config(arrays: Arrays, predictor_heads: int | None = None) -> ModelConfig:
    """Infers the model of published arrays, by name in either layout, from their shapes.

    Args:
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
    predictor_depth, num_heads = _count_blocks(arrays, "model.predictor.predictor_blocks."), dim // head_dim
    known = [preset["predictor_heads"] for preset in PRESETS.values() if preset["dim"] == dim]
    if predictor_depth and not (predictor_heads or known):
        raise ValueError(f"no shape tells the heads of a predictor of width {dim}: give predictor_heads")
    return ModelConfig(
        dim=dim,
        depth=_count_blocks(arrays, f"{prefix}spatial_encoder.predictor_blocks."),
        num_heads=num_heads,
        # Of a file without a predictor the two are of no effect, and need only be valid.
        predictor_depth=predictor_depth or 4,
        predictor_heads=predictor_heads or (known or [num_heads])[0],
        mlp_ratio=hidden // dim,
        positions="released",
        norm_groups="published",
        sensors=_sensors(arrays, prefix),
    )


def _shape(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    """Returns the shape of an array, which must be there and have this rank."""
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


Params = dict[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Comparison of a checkpoint's arrays with the model's, by published name."""

    missing: tuple[str, ...]  # the model has them, the file does not
    unexpected: tuple[str, ...]  # the file has them, the model does not
    misshaped: Mapping[str, tuple[Shape, Shape]]  # name to (expected shape, found shape)

    @property
    def complete(self) -> bool:
        """Returns whether the file has exactly the model's arrays."""
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        pairs = [f"{name}, expected {wanted}, found {found}" for name, (wanted, found) in self.misshaped.items()]
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", pairs))
        return "\n".join(f"{kind}: {text}" for kind, texts in kinds for text in texts)


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Content of a published checkpoint, as trees of float32 numpy arrays."""

    encoder_params: Params  # parameters of `Encoder(config)`
    predictor_params: Params | None  # of `Predictor(config)`; None where the file has no predictor
    mask_token: np.ndarray | None  # (D,), the student's token for masked sensors; None where the file has no predictor
    teacher_params: Params | None  # parameters of the teacher's encoder; None where the file has no teacher
    student: Params | None  # as `Exported.student`; None in the layout of the feature extractor
    config: ModelConfig  # the model inferred from the shapes, with released positions, published norms, its sensors
    report: LoadReport  # missing, unexpected and mis-shaped arrays
    described: Mapping[str, Any]  # the description of a file that was written here, see `Exported`; else empty


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
        Positions and norm_groups become those of the training in either case: "released" and "published", if the file
        has no description.
      predictor_heads: heads of the predictor, which no shape reveals; by default those of the preset of that width.
      strict: whether missing, unexpected and mis-shaped arrays are errors. If not, the parameters that the file lacks
        start as `init_student(config, 0)` does, and the report names all.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      ValueError: the file cannot be read, its arrays do not fit (each is listed by its published name, with expected
        and found shapes), or they are not finite.
    """
    arrays, texts = read_arrays(path)
    description = {}
    if DESCRIPTION in texts:
        with described(pathlib.Path(path)):
            description = json.loads(texts[DESCRIPTION])
            trained = described_model(description, sum(array.size for array in arrays.values()))
            config = dataclasses.replace(
                config or trained, positions=trained.positions, norm_groups=trained.norm_groups
            )
    else:
        try:
            config = config or infer_config(arrays, predictor_heads)
            config = dataclasses.replace(config, positions="released", norm_groups="published")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    # The arrays of the file's layout, and of the parts that it has.
    has = [any(name.startswith(part) for name in arrays) for part in ("model.encoder.", "model.predictor.", "target_")]
    entries = pretraining_entries(config, predictor=has[1], teacher=has[2]) if has[0] else bare_entries(config)
    report = _compare(entries, arrays, config)
    if strict and not report.complete:
        raise ValueError(f"{path} does not fit a model of {_describe(config)}:\n{report}")
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{path}: NaN or infinite values in {', '.join(broken)}. Such weights are of no use.")
    if report.missing or report.misshaped:
        initial = to_published(entries, _with_teacher(init_student(config, 0)))
        arrays = dict(arrays) | {name: initial[name] for name in (*report.missing, *report.misshaped)}
    params = from_published(entries, arrays)
    student = {name: params[name] for name in ("encoder", "predictor", "mask_token") if name in params}
    if not has[2]:
        del student["encoder"]
    parts = [params.get(name) for name in ("predictor", "mask_token", "teacher")]
    return PublishedWeights(params["encoder"], *parts, student if has[0] else None, config, report, description)


def save_published(path: str | os.PathLike[str], content: Exported) -> None:
    """Writes weights as the published code saves them, {"state_dict": {name: tensor}}. Needs the extra `torch`.

    A whole pretraining is written in the layout of one, an encoder in that of the feature extractor. An older file of
    that name is replaced once the new one is whole.

    Raises:
      ValueError: there is a head, for which the published layouts have no names.
      ImportError: torch is not installed.
      OSError: the file cannot be written.
    """
    if content.head:
        head = f"the published layouts have no names for a head, as that for {content.head.task['title']}"
        raise ValueError(f"{path}: {head}; choose a name that ends .safetensors, or give --encoder to leave it out")
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"writing {path} needs torch: pip install -e '.[torch]'") from error
    student, params = content.student, {"encoder": content.encoder_params}
    if student and "decoder" in student:
        logging.warning(
            "%s: the decoder of the reconstruction is left out: the published layout has no names for it", path
        )
        student = {name: part for name, part in student.items() if name != "decoder"}
        content = dataclasses.replace(content, student=student, model=dataclasses.replace(content.model, decoder=False))
    if student is None:
        entries = bare_entries(content.model)
    else:
        entries = pretraining_entries(content.model, predictor="predictor" in student, teacher="encoder" in student)
        params |= {"teacher": content.encoder_params} | student
    arrays = to_published(entries, params)
    # A copy: torch refuses arrays that must not be written to, as jax gives them.
    tensors = {name: torch.from_numpy(np.array(array, np.float32, order="C")) for name, array in arrays.items()}
    with written_whole(pathlib.Path(path)) as temporary:
        torch.save({"state_dict": tensors, DESCRIPTION: content.description()}, temporary)


def _with_teacher(student: Params) -> Params:
    return student | {"teacher": student["encoder"]}


def _compare(entries: list[Entry], arrays: Arrays, config: ModelConfig) -> LoadReport:
    expected = published_shapes(entries, _with_teacher(student_shapes(config)))
    both = [(name, shape, arrays[name].shape) for name, shape in expected.items() if name in arrays]
    return LoadReport(
        missing=tuple(name for name in expected if name not in arrays),
        unexpected=tuple(name for name in arrays if name not in expected),
        misshaped={name: (shape, found) for name, shape, found in both if shape != found},
    )


def _describe(config: ModelConfig) -> str:
    return (
        f"width {config.dim}, depth {config.depth}, {config.num_heads} heads, "
        f"predictor depth {config.predictor_depth}, sensors {', '.join(config.sensors)}"
    )
