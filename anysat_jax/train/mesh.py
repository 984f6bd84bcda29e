"""The devices as a mesh of three axes, and the way of batches to them.

Every batch is cut over "data" and "fsdp". "data" repeats the parameters, "fsdp" cuts them (fully sharded data
parallelism), and "tensor" shares the work on each tile; see `sharding` for what lies where.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.partitioning import BATCH_AXES, TENSOR
from anysat_jax.train.distributed import connect
from anysat_jax.train.errors import ConfigError

AXES = (*BATCH_AXES, TENSOR)
MASK_SPECS = {
    "context_index": PartitionSpec(BATCH_AXES),
    "context_mask": PartitionSpec(BATCH_AXES),
    "target_index": PartitionSpec(None, BATCH_AXES),
    "target_mask": PartitionSpec(),
}


def make_mesh(config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of the section `mesh`; an axis "data" of None takes all devices that the others leave.

    Args:
      config: data, fsdp, tensor; "tensor" may be missing.
      devices: of a topology to compile for; None for those of this run.

    Raises:
      ConfigError: the mesh needs more devices than there are, or leaves some of another process idle.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp, tensor = config["fsdp"], config.get("tensor", 1)
    data = config["data"] or max(1, len(devices) // (fsdp * tensor))
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
    mesh = jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])
    connect(mesh)
    return mesh


def batch_parts(mesh: Mesh) -> int:
    """How many parts every batch is cut into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_sizes(datasets: Mapping[str, Mapping[str, Any]], mesh: Mesh, accumulate: int = 1) -> None:
    """Refuses batch sizes that cannot be cut evenly, before anything is compiled.

    Args:
      accumulate: micro-batches that each step cuts a batch into, each of which is cut over the mesh.

    Raises:
      ConfigError: the mesh, or the number of micro-batches, does not divide a dataset's batch size.
    """
    pieces = batch_parts(mesh) * accumulate
    cut = f"mesh.data x mesh.fsdp = {batch_parts(mesh)} devices"
    change = "use fewer devices with --config.mesh.data"
    if accumulate > 1:
        cut, change = f"{cut} in accumulate = {accumulate} micro-batches", f"lower --config.accumulate, or {change}"
    uneven = {name: one["batch_size"] for name, one in datasets.items() if one["batch_size"] % pieces}
    if uneven:
        name, size = next(iter(uneven.items()))
        raise ConfigError(
            f"data.datasets.{name}.batch_size = {size} cannot be cut over {cut}; give "
            f"{batch_size_flags(uneven, pieces)}, or {change}"
        )


def batch_size_flags(sizes: Mapping[str, int], pieces: int) -> str:
    """What to add to the command line so that datasets' batches can be cut into so many equal pieces."""
    even = {name: even_batch_size(size, pieces) for name, size in sizes.items()}
    return " ".join(f"--config.data.datasets.{name}.batch_size={size}" for name, size in even.items())


def even_batch_size(size: int, pieces: int) -> int:
    """The nearest batch size that can be cut into so many equal pieces, of a tile at least."""
    return max(1, round(size / pieces)) * pieces


def check_heads(model: ModelConfig, mesh: Mesh, fields: Sequence[str] = ("num_heads", "predictor_heads")) -> None:
    """Refuses a mesh whose axis "tensor" cannot share out the attention heads, before anything is compiled.

    Args:
      fields: the model's numbers of heads that are used.

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
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis cut over the devices of "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def on_host(tree: Any) -> Any:
    """The whole arrays in the memory of every process."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


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
