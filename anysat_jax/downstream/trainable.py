"""Modes: which of a network's parameters train, and what drops meanwhile."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.traverse_util
import numpy as np
from jaxtyping import Float

Params = dict[str, Any]
Mode = Literal["finetune", "probe", "last_block", "projector", "scratch"]
"""What trains beside the head: "finetune" and "scratch" everything that the data pass through, "last_block" the
combiner's cross-attention block, "projector" the new sensors' projectors, "probe" nothing."""

WHOLE: tuple[Mode, ...] = ("finetune", "scratch")
LAST_BLOCK = "encoder/combiner/cross/"
PROJECTORS = "encoder/projector_"


def trainable_names(mode: Mode, params: Params, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """Names "encoder/a/b" or "head/a/b" of the leaves that train, in the order of `params`.

    Args:
      params: {"encoder", "head"}, of arrays or shapes.
      sensors: the sensors of the data. A projector of any other gets no gradient, so it is frozen in every mode and
        costs no optimizer memory.
      new_sensors: sensors whose projectors mode "projector" trains.

    Raises:
      ValueError: an unknown mode, a sensor without a projector, or mode "projector" with new sensors that are not in
        the data, or none.
    """
    _check(mode, params, sensors, new_sensors)
    trained = dropping_sensors(mode, sensors, new_sensors)
    prefixes = ("head/", *(f"{PROJECTORS}{name}/" for name in trained))
    if mode == "last_block":
        prefixes = (*prefixes, LAST_BLOCK)
    names = flax.traverse_util.flatten_dict(params, sep="/")
    return tuple(
        name for name in names if name.startswith(prefixes) or (mode in WHOLE and not name.startswith(PROJECTORS))
    )


def split(params: Params, mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str] = ()) -> tuple[Params, Params]:
    """(trainable, frozen): two trees that share no leaf; see `trainable_names`. Either may lack whole parts."""
    names = set(trainable_names(mode, params, sensors, new_sensors))
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    trainable = {name: leaf for name, leaf in leaves.items() if name in names}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in names}
    return tuple(flax.traverse_util.unflatten_dict(part, sep="/") for part in (trainable, frozen))


def merge(trainable: Params, frozen: Params) -> Params:
    """The parameters that `split` took apart; traceable."""
    parts = flax.traverse_util.flatten_dict(trainable), flax.traverse_util.flatten_dict(frozen)
    return flax.traverse_util.unflatten_dict(parts[0] | parts[1])


def dropping_sensors(mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """The sensors whose projectors train, and so drop as in training: a frozen projector never drops."""
    if mode in WHOLE:
        return tuple(sensors)
    return tuple(name for name in sensors if name in new_sensors) if mode == "projector" else ()


def drop_path_rate(mode: Mode, rate: float) -> float:
    """The rate of a mode: blocks drop only where all of them train."""
    return rate if mode in WHOLE else 0.0


def _check(mode: Mode, params: Params, sensors: Sequence[str], new_sensors: Sequence[str]) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode = {mode!r} must be one of {', '.join(repr(choice) for choice in get_args(Mode))}")
    for name in sensors:
        if f"projector_{name}" not in params["encoder"]:
            has = (key.removeprefix("projector_") for key in params["encoder"] if key.startswith("projector_"))
            raise ValueError(f"sensor {name!r} of the data has no projector in the encoder; it has {', '.join(has)}")
    if mode == "projector" and not (new_sensors and set(new_sensors) <= set(sensors)):
        raise ValueError(
            f"mode 'projector' trains the projectors of new_sensors = {tuple(new_sensors)}; "
            f"name at least one of the data's sensors, {', '.join(sensors)}, and no other"
        )


def layer_multipliers(trainable: Params, decay: float, depth: int) -> Params:
    """What multiplies each leaf's update: decay ** (layers above it).

    From the top: head, cross-attention block, the combiner's blocks, the spatial transformer's blocks, projectors. A
    class token counts with its stack's first block, a norm with the block that it follows.

    Args:
      trainable: parameters, or a part of them; of arrays or shapes.
      decay: in (0, 1]; 1 leaves all rates equal.
      depth: blocks of each stack (`ModelConfig.depth`).

    Returns:
      The same tree with float32 numpy arrays: of no axis, or (depth, 1, ...) for the leaves of a stack.

    Raises:
      ValueError: `decay` is not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"optimizer.layer_decay = {decay} must be more than 0 and at most 1")
    leaves = flax.traverse_util.flatten_dict(trainable)
    above = {path: _layers_above(path, leaf.ndim, depth) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict({path: np.float32(decay) ** count for path, count in above.items()})


def _layers_above(path: tuple[str, ...], ndim: int, depth: int) -> Float[np.ndarray, "..."]:
    """Layers between a leaf and the output: one number, or one for each block of a stack."""
    if path[0] == "head":
        return np.float32(0)
    if path[1] == "combiner":
        return np.float32(1) if path[2] == "cross" else _in_stack(path[2], ndim, depth, above=2)
    if path[1] == "spatial":
        return _in_stack(path[2], ndim, depth, above=2 + depth)
    return np.float32(2 + 2 * depth)


def _in_stack(part: str, ndim: int, depth: int, above: int) -> Float[np.ndarray, "..."]:
    blocks = np.arange(above + depth - 1, above - 1, -1, dtype=np.float32)
    if part == "blocks":
        return blocks.reshape(-1, *[1] * (ndim - 1))
    return blocks[0] if part == "class_token" else blocks[-1]
