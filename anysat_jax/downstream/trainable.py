"""Parameters that train in each mode, and layer-wise decay of the learning rate."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.traverse_util
import numpy as np
from jaxtyping import Float

Params = dict[str, Any]
Mode = Literal["finetune", "probe", "last_block", "projector", "scratch"]
"""Trained beside the head: in "finetune" and "scratch" all that the data pass through, in "last_block" the combiner's
cross-attention block, in "projector" the projectors of new sensors, in "probe" nothing."""

WHOLE: tuple[Mode, ...] = ("finetune", "scratch")
LAST_BLOCK = "encoder/combiner/cross/"
PROJECTORS = "encoder/projector_"


def trainable_names(mode: Mode, params: Params, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """Returns the names "encoder/a/b" or "head/a/b" of the leaves that train, in the order of `params`.

    Args:
      params: {"encoder", "head"}, of arrays or shapes.
      sensors: of the data. The projectors of others get no gradient: they are frozen in every mode, which saves memory
        of the optimizer.
      new_sensors: sensors whose projectors mode "projector" trains.

    Raises:
      ValueError: unknown mode, a sensor without a projector, or mode "projector" without new sensors or with some that
        the data lack.
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
    """Splits parameters into (trainable, frozen), two trees without a common leaf; see `trainable_names`."""
    names = set(trainable_names(mode, params, sensors, new_sensors))
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    trainable = {name: leaf for name, leaf in leaves.items() if name in names}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in names}
    return tuple(flax.traverse_util.unflatten_dict(part, sep="/") for part in (trainable, frozen))


def merge(trainable: Params, frozen: Params) -> Params:
    """Merges the two parts of `split`. Traceable."""
    parts = flax.traverse_util.flatten_dict(trainable), flax.traverse_util.flatten_dict(frozen)
    return flax.traverse_util.unflatten_dict(parts[0] | parts[1])


def dropping_sensors(mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """Returns the sensors whose projectors train and therefore apply dropout; a frozen projector does not."""
    if mode in WHOLE:
        return tuple(sensors)
    return tuple(name for name in sensors if name in new_sensors) if mode == "projector" else ()


def drop_path_rate(mode: Mode, rate: float) -> float:
    """Returns the drop-path rate of a mode: 0 unless all blocks train."""
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
    """Returns the factor of each leaf's update: decay ** (layers above it).

    Layers from the top: head, cross-attention block, the combiner's blocks, the spatial blocks, projectors. A class
    token counts with the first block of its stack, a norm with the block before it.

    Args:
      trainable: parameters, or a part of them; of arrays or shapes.
      decay: in (0, 1]; 1 leaves all rates equal.
      depth: blocks of each stack (`ModelConfig.depth`).

    Returns:
      The same tree of float32 numpy arrays: scalars, or (depth, 1, ...) for the leaves of a stack.

    Raises:
      ValueError: `decay` is not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"optimizer.layer_decay = {decay} must be more than 0 and at most 1")
    leaves = flax.traverse_util.flatten_dict(trainable)
    above = {path: _layers_above(path, leaf.ndim, depth) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict({path: np.float32(decay) ** count for path, count in above.items()})


def _layers_above(path: tuple[str, ...], ndim: int, depth: int) -> Float[np.ndarray, "..."]:
    """Returns the layers between a leaf and the output: one number, or one for each block of a stack."""
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
