"""Parameters that train in each mode, and layer-wise decay of the learning rate."""

from collections.abc import Sequence
from typing import Any, Literal

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


def split(params: Params, mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str] = ()) -> tuple[Params, Params]:
    """Splits parameters into (trainable, frozen), two trees without a common leaf.

    Args:
      params: {"encoder", "head"}, of arrays or shapes.
      sensors: of the data. The projectors of others are frozen in every mode.
      new_sensors: sensors whose projectors mode "projector" trains.
    """
    trained = dropping_sensors(mode, sensors, new_sensors)
    prefixes = ("head/", *(f"{PROJECTORS}{name}/" for name in trained), *([LAST_BLOCK] if mode == "last_block" else []))
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    # Projectors of sensors that the data lack get no gradient; frozen, they take no memory of the optimizer.
    trains = {n: n.startswith(prefixes) or (mode in WHOLE and not n.startswith(PROJECTORS)) for n in leaves}
    parts = ({name: leaf for name, leaf in leaves.items() if trains[name] == part} for part in (True, False))
    return tuple(flax.traverse_util.unflatten_dict(part, sep="/") for part in parts)


def merge(trainable: Params, frozen: Params) -> Params:
    """Merges the two parts of `split`. Traceable."""
    # Leaf by leaf: both parts have nodes such as "encoder" in common, which `|` would replace.
    parts = flax.traverse_util.flatten_dict(trainable), flax.traverse_util.flatten_dict(frozen)
    return flax.traverse_util.unflatten_dict(parts[0] | parts[1])


def dropping_sensors(mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """Returns the sensors whose projectors train and therefore apply dropout; a frozen projector does not."""
    if mode in WHOLE:
        return tuple(sensors)
    return tuple(name for name in sensors if name in new_sensors) if mode == "projector" else ()


def layer_multipliers(trainable: Params, decay: float, depth: int) -> Params:
    """Returns the factor of each leaf's update: decay ** (layers above it).

    Layers from the top: head, cross-attention block, the combiner's blocks, the spatial blocks, projectors. A class
    token counts with the first block of its stack, a norm with the block before it.

    Args:
      trainable: parameters, or a part of them; of arrays or shapes.
      decay: in (0, 1].
      depth: blocks of each stack (`ModelConfig.depth`).

    Returns:
      The same tree of float32 numpy arrays: scalars, or (depth, 1, ...) for the leaves of a stack.
    """

    def layers_above(path: tuple[str, ...], ndim: int) -> Float[np.ndarray, "..."]:
        if path[0] == "head":
            return np.float32(0)
        if path[1].startswith("projector_"):
            return np.float32(2 + 2 * depth)
        if path[1:3] == ("combiner", "cross"):
            return np.float32(1)
        above = 2 if path[1] == "combiner" else 2 + depth
        blocks = np.arange(above + depth - 1, above - 1, -1, dtype=np.float32)
        if path[2] == "blocks":  # one leaf has all blocks of a stack, along its first axis
            return blocks.reshape(-1, *[1] * (ndim - 1))
        return blocks[0] if path[2] == "class_token" else blocks[-1]

    leaves = flax.traverse_util.flatten_dict(trainable)
    factors = {path: np.float32(decay) ** layers_above(path, leaf.ndim) for path, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(factors)
