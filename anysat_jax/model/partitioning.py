"""Sharding constraints of activations on a mesh of devices; without a mesh they do nothing.

Batches are sharded over `BATCH_AXES`. The axis `TENSOR` splits the work on each tile: attention heads and the hidden
width of MLPs in the transformers, pixels and patches in the projectors.
"""

import contextlib
import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, PartitionSpec

BATCH_AXES = ("data", "fsdp")
TENSOR = "tensor"

Axes = str | tuple[str, ...] | None  # mesh axes that cut one axis of an array


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Makes `constrain` use `mesh` while a function is traced; None changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def parts(mesh_shape: Mapping[str, int], axes: Axes) -> int:
    """Returns the number of shards of an array's axis; mesh axes that do not exist count as 1."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh_shape.get(name, 1) for name in names)


def constrain(x: jax.Array, *axes: Axes) -> jax.Array:
    """Constrains `x` to be sharded over mesh axes, one entry for each of its axes: None for whole.

    An axis that is not divisible is left to the compiler. Without a mesh, see `on_mesh`, or on one device, this is `x`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    entries = []
    for size, one in zip(x.shape, axes, strict=True):
        names = (one,) if isinstance(one, str) else one or ()
        known = tuple(name for name in names if name in mesh.shape) or None
        # JAX refuses shards of unequal sizes, so the compiler chooses how to lay out such an axis.
        entries.append(PartitionSpec.UNCONSTRAINED if size % parts(mesh.shape, one) else known)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
