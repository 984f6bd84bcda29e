"""Layer-wise decay: the nearer a layer is to the input, the lower its learning rate."""

from typing import Any

import flax.traverse_util
import numpy as np
from jaxtyping import Float

Params = dict[str, Any]


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
