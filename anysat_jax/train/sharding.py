"""Mesh of the devices, partition specs of parameters and batches, host-local slices of global arrays.

The mesh has three axes. Every batch is cut over "data" and "fsdp". "data" repeats the parameters, "fsdp" cuts them
(fully sharded data parallelism), and "tensor" divides the work on each tile; `RULES` lists which parameters it cuts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from anysat_jax.batch import Batch
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.partitioning import BATCH_AXES, TENSOR, Axes, parts
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.distributed import warm_up_collectives
from data_pipelines.batches import HostShard

T = TypeVar("T")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a run.

    Args:
      config: the section `mesh`; `data` = None takes all devices that the other axes leave.
      devices: of a topology to compile for; None for those of this run.

    Raises:
      ConfigError: the mesh needs more devices than there are, or leaves devices of several processes idle.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp, tensor = config.fsdp, config.tensor
    data = config.data or max(1, len(devices) // (fsdp * tensor))
    needed = data * fsdp * tensor
    product = f"mesh.data = {data} times mesh.fsdp = {fsdp}" + (f" times mesh.tensor = {tensor}" if tensor > 1 else "")
    if needed > len(devices):
        raise ConfigError(
            f"{product} needs {needed} devices, and there are {len(devices)} ({devices[0].platform}); lower one of them"
        )
    if needed < len(devices) and len({device.process_index for device in devices}) > 1:
        raise ConfigError(
            f"{product} uses {needed} of {len(devices)} devices; with several processes the mesh must take them all"
        )
    # Auto: the compiler derives the shardings inside a step from those of its inputs and a few constraints.
    kinds = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((data, fsdp, tensor), (*BATCH_AXES, TENSOR), axis_types=kinds, devices=devices[:needed])
    warm_up_collectives(mesh)
    return mesh


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of parts that every batch is cut into."""
    return parts(mesh.shape, BATCH_AXES)


def check_batch_sizes(datasets: Mapping[str, Mapping[str, Any]], mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that batch sizes can be cut evenly, before anything is compiled.

    Each step cuts a batch into `accumulate` micro-batches, each of which is cut over the mesh.

    Raises:
      ConfigError: the mesh, or the number of micro-batches, does not divide a dataset's batch size.
    """
    pieces = batch_parts(mesh) * accumulate
    cut = f"mesh.data x mesh.fsdp = {batch_parts(mesh)} devices"
    change = "use fewer devices with --config.mesh.data"
    if accumulate > 1:
        cut, change = f"{cut} in accumulate = {accumulate} micro-batches", f"lower --config.accumulate, or {change}"
    sizes = {name: one.get("batch_size") for name, one in datasets.items() if hasattr(one, "get")}
    # What is not a number is refused where the options of a dataset are read.
    uneven = {name: size for name, size in sizes.items() if isinstance(size, int) and size % pieces}
    if uneven:
        name, size = next(iter(uneven.items()))
        raise ConfigError(
            f"data.datasets.{name}.batch_size = {size} cannot be cut over {cut}; give "
            f"{batch_size_flags(uneven, pieces)}, or {change}"
        )


def batch_size_flags(sizes: Mapping[str, int], pieces: int) -> str:
    """Returns the flags that make datasets' batches divisible into so many equal pieces."""
    even = {name: even_batch_size(size, pieces) for name, size in sizes.items()}
    return " ".join(f"--config.data.datasets.{name}.batch_size={size}" for name, size in even.items())


def even_batch_size(size: int, pieces: int) -> int:
    """Returns the nearest batch size that can be cut into so many equal pieces of at least one tile."""
    return max(1, round(size / pieces)) * pieces


def check_heads(model: ModelConfig, mesh: Mesh, fields: Sequence[str] = ("num_heads", "predictor_heads")) -> None:
    """Checks that the axis "tensor" divides the numbers of attention heads in `fields`, before anything is compiled.

    Raises:
      ConfigError: "tensor" does not divide one of them.
    """
    tensor = mesh.shape[TENSOR]
    for field in fields:
        heads = getattr(model, field)
        if heads % tensor:
            raise ConfigError(
                f"mesh.tensor = {tensor} cannot share out model.{field} = {heads}; take a divisor of "
                f"{' and '.join(fields)}, and more of --config.mesh.data or --config.mesh.fsdp"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is cut over the devices of "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def on_host(tree: Any) -> Any:
    """Returns whole arrays in the memory of every process."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts a batch on the devices; each process has its part of the first axis.

    Returns:
      The batch with global arrays: batch_size is the sum over the processes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)


MIN_SHARDED_SIZE = 2**14  # values; cutting smaller leaves costs more in messages than it saves in memory

FSDP = "fsdp"
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # Columns are (query | key | value, head, channel): a cut of columns would not be one of heads. So rows are cut, and
    # the projection exchanges those over "tensor" for heads when it is used.
    (r"blocks/attention/qkv/kernel$", ((TENSOR, FSDP), None)),
    # Columns are heads or hidden channels.
    (r"(cross/(key|value)|(blocks|cross)/mlp/up)/kernel$", (FSDP, TENSOR)),
    (r"(cross/(key|value)|(blocks|cross)/mlp/up)/kernel$", (None, TENSOR)),
    # Rows are heads or hidden channels.
    (r"((blocks/attention|cross)/out|(blocks|cross)/mlp/down)/kernel$", (TENSOR, FSDP)),
    (r"((blocks/attention|cross)/out|(blocks|cross)/mlp/down)/kernel$", (TENSOR, None)),
)
"""Pattern of a leaf's name, and the mesh axes that cut its last axes. The first rule applies whose pattern is found in
the name and whose mesh axes divide the leaf; if there is none, "fsdp" cuts the largest axis that it divides."""


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Returns a sharding for each leaf of a state, or of a part of one with whole names; small leaves are repeated."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec_of(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, dict(mesh.shape))
        ),
        abstract_state,
    )


def initialised(make: Callable[..., T], mesh: Mesh, *params: Any) -> T:
    """Returns the state that `make` returns of trees of parameters, which every process has, on the mesh."""
    params = tuple(put_params(one, mesh) for one in params)
    # Under jit, so that each device allocates its part of the optimizer's moments only, never the whole.
    shardings = state_shardings(mesh, jax.eval_shape(make, *params))
    return jax.jit(make, out_shardings=shardings)(*params)


def abstract_on(mesh: Mesh, shapes: Any) -> Any:
    """Returns shapes, dtypes and shardings of a tree of arrays or shapes, without allocating memory."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def spec_of(name: str, shape: tuple[int, ...], mesh_shape: dict[str, int]) -> PartitionSpec:
    """Returns the spec of a leaf by its name ("encoder/spatial/blocks/mlp/up/kernel"), on a mesh of axes and sizes."""
    if np.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    for pattern, axes in RULES:
        if re.search(pattern, name) and (spec := _fitting(shape, axes, mesh_shape)) is not None:
            return spec
    # The leading axis of scanned blocks stays whole, since each step of the scan takes one block.
    axes = range(int("blocks" in name.split("/")), len(shape))
    cut = parts(mesh_shape, FSDP)
    if cut == 1 or not (even := [axis for axis in axes if shape[axis] % cut == 0]):
        return PartitionSpec()
    largest = max(even, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == largest else None for axis in range(len(shape))))


def _fitting(shape: tuple[int, ...], axes: tuple[Axes, ...], mesh_shape: dict[str, int]) -> PartitionSpec | None:
    """Returns the spec that cuts the last axes of a shape; None if it cuts nothing, or not evenly."""
    cuts, whole = [parts(mesh_shape, one) for one in axes], len(shape) - len(axes)
    if max(cuts) == 1 or any(size % cut for size, cut in zip(shape[whole:], cuts, strict=True)):
        return None
    # An axis of the mesh with a single device is left out: specs of equal meaning must be equal.
    return PartitionSpec(*(None,) * whole, *(one if cut > 1 else None for one, cut in zip(axes, cuts, strict=True)))


def host_shard(mesh: Mesh) -> HostShard:
    """Returns the rows of every batch that this process' devices hold."""
    # Two processes have the same rows if their devices repeat them, as along the axis "tensor".
    sharding, rows_of_all = batch_sharding(mesh), (mesh.size,)
    # Rows of a batch of `mesh.size` on each device.
    places, (width,) = sharding.devices_indices_map(rows_of_all), sharding.shard_shape(rows_of_all)
    own = [rows for device, (rows,) in places.items() if device.process_index == jax.process_index()]
    return HostShard(tuple(sorted({(rows.start or 0) // width for rows in own})), mesh.size // width)


def put_params(params: Any, mesh: Mesh) -> Any:
    """Puts parameters on the mesh, cut as those of a state; every process has all, or they are there already."""
    return jax.tree.map(put_whole, params, state_shardings(mesh, params))


def put_whole(array: Any, sharding: Sharding) -> jax.Array:
    """Puts an array on the devices; every process has the whole array."""
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    # `jax.device_put` would compare the arrays of the processes, which takes a message for each of them.
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
