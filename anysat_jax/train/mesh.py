"""The devices as a mesh of two axes, and where arrays live on it.

Every batch is cut over both axes. "data" repeats the parameters, "fsdp" cuts them (fully sharded data parallelism).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from anysat_jax.batch import Batch
from anysat_jax.train.errors import ConfigError

AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**14  # values; cutting less than this costs more in messages than it saves in memory
MASK_SPECS = {
    "context_index": PartitionSpec(AXES),
    "context_mask": PartitionSpec(AXES),
    "target_index": PartitionSpec(None, AXES),
    "target_mask": PartitionSpec(),
}


def make_mesh(config: Mapping[str, Any]) -> Mesh:
    """The mesh of the section `mesh`; an axis "data" of None takes all devices that "fsdp" leaves.

    Raises:
      ConfigError: the mesh needs more devices than there are, or leaves some of another process idle.
    """
    devices, fsdp = jax.devices(), config["fsdp"]
    data = config["data"] or max(1, len(devices) // fsdp)
    needed = data * fsdp
    if needed > len(devices):
        raise ConfigError(
            f"mesh.data = {data} times mesh.fsdp = {fsdp} needs {needed} devices, and there are {len(devices)} "
            f"({devices[0].platform}); lower one of them"
        )
    if needed < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"mesh.data = {data} times mesh.fsdp = {fsdp} uses {needed} of {len(devices)} devices; with several "
            "processes the mesh must take them all"
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:needed])


def check_batch_sizes(datasets: Mapping[str, Mapping[str, Any]], mesh: Mesh) -> None:
    """Refuses batch sizes that cannot be cut evenly, before anything is compiled.

    Raises:
      ConfigError: the mesh does not divide a dataset's batch size.
    """
    for name, dataset in datasets.items():
        size = dataset["batch_size"]
        if size % mesh.size:
            nearest = max(1, round(size / mesh.size)) * mesh.size
            raise ConfigError(
                f"data.datasets.{name}.batch_size = {size} cannot be cut over the mesh's {mesh.size} devices; take a "
                f"multiple such as {nearest}, or use fewer devices with --config.mesh.data"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """A sharding for each leaf: its largest axis that "fsdp" divides is cut, small leaves are repeated.

    The leading axis of scanned blocks stays whole, since each step of the scan takes one block.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"], _is_scanned(path))), abstract_state
    )


def abstract_on(mesh: Mesh, shapes: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays or shapes, without any memory."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def on_host(tree: Any) -> Any:
    """The whole arrays in the memory of every process."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def _is_scanned(path: tuple[Any, ...]) -> bool:
    return any(getattr(key, "key", None) == "blocks" for key in path)


def _spec(shape: tuple[int, ...], parts: int, scanned: bool) -> PartitionSpec:
    if parts == 1 or np.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    axes = [axis for axis in range(int(scanned), len(shape)) if shape[axis] % parts == 0]
    if not axes:
        return PartitionSpec()
    cut = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == cut else None for axis in range(len(shape))))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The batch on the devices, each process giving its part of the first axis.

    Returns:
      The batch with global arrays: batch_size is the sum over the processes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)


def put_masks(masks: Any, mesh: Mesh) -> Any:
    """PatchMasks on the devices. Every process draws the masks of the whole batch and takes what its devices need."""
    return masks.replace(
        **{name: _put_global(getattr(masks, name), NamedSharding(mesh, spec)) for name, spec in MASK_SPECS.items()}
    )


def _put_global(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
