"""Where the state lives on the mesh: rules on the names of its leaves.

Student, teacher, predictor and the optimizer's moments have leaves of the same names, so that the same rules cut them.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anysat_jax.model.partitioning import TENSOR, Axes, parts

MIN_SHARDED_SIZE = 2**14  # values; cutting less than this costs more in messages than it saves in memory

FSDP = "fsdp"
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # Columns are (query | key | value, head, channel): heads lie scattered. So rows are cut, and the projection trades
    # those over "tensor" for heads when it is used.
    (r"blocks/attention/qkv/kernel$", ((TENSOR, FSDP), None)),
    # Columns are heads or hidden channels.
    (r"(cross/(key|value)|(blocks|cross)/mlp/up)/kernel$", (FSDP, TENSOR)),
    (r"(cross/(key|value)|(blocks|cross)/mlp/up)/kernel$", (None, TENSOR)),
    # Rows are.
    (r"((blocks/attention|cross)/out|(blocks|cross)/mlp/down)/kernel$", (TENSOR, FSDP)),
    (r"((blocks/attention|cross)/out|(blocks|cross)/mlp/down)/kernel$", (TENSOR, None)),
)
"""Pattern of a leaf's name, and the mesh axes that cut its last axes. The first whose pattern is found in the name and
whose mesh axes divide the leaf holds; where none does, "fsdp" cuts the largest axis that it divides."""


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """A sharding for each leaf of a state, or of any part of one that holds whole names; small leaves are repeated.

    The leading axis of scanned blocks stays whole, since each step of the scan takes one block.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec_of(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, dict(mesh.shape))
        ),
        abstract_state,
    )


def abstract_on(mesh: Mesh, shapes: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays or shapes, without any memory."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def spec_of(name: str, shape: tuple[int, ...], mesh_shape: dict[str, int]) -> PartitionSpec:
    """The spec of one leaf, by its name ("encoder/spatial/blocks/mlp/up/kernel"), on a mesh of axes and sizes."""
    if np.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    for pattern, axes in RULES:
        if re.search(pattern, name) and (spec := _fitting(shape, axes, mesh_shape)) is not None:
            return spec
    return _largest(shape, "blocks" in name.split("/"), mesh_shape)


def _fitting(shape: tuple[int, ...], axes: tuple[Axes, ...], mesh_shape: dict[str, int]) -> PartitionSpec | None:
    """The spec that cuts the last axes of a shape; None where that does not work out evenly, or cuts nothing."""
    cuts = [parts(mesh_shape, one) for one in axes]
    sizes = shape[len(shape) - len(axes) :]
    if max(cuts) == 1 or any(size % cut for size, cut in zip(sizes, cuts, strict=True)):
        return None
    whole = (None,) * (len(shape) - len(axes))
    return PartitionSpec(*whole, *(one if cut > 1 else None for one, cut in zip(axes, cuts, strict=True)))


def _largest(shape: tuple[int, ...], scanned: bool, mesh_shape: dict[str, int]) -> PartitionSpec:
    """The largest axis that "fsdp" divides is cut."""
    cut = parts(mesh_shape, FSDP)
    axes = [axis for axis in range(int(scanned), len(shape)) if shape[axis] % cut == 0]
    if cut == 1 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == largest else None for axis in range(len(shape))))
