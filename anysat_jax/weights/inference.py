"""Reads off a published checkpoint's shapes which model it holds."""

import re
from collections.abc import Mapping

import numpy as np

from anysat_jax.model.config import PRESETS, ModelConfig
from anysat_jax.sensors import SENSORS

Arrays = Mapping[str, np.ndarray]


def infer_config(arrays: Arrays, predictor_heads: int | None = None) -> ModelConfig:
    """The model whose parameters these arrays are, as far as their shapes tell.

    Args:
      arrays: by published name, in either layout.
      predictor_heads: heads of the predictor, which no shape tells; by default those of the preset of that width.

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
    """An array's shape, which the model is read from.

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
    """How many blocks have arrays; one that is missing among them will be reported as missing."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, arrays) if match})


def _sensors(arrays: Arrays, prefix: str) -> tuple[str, ...]:
    """Sensors that have a projector, in the order of the registry."""
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
