"""What one process gives of arrays that lie on the devices of many: its rows of a batch, its pieces of parameters."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from anysat_jax.train.mesh import batch_sharding
from anysat_jax.train.sharding import state_shardings
from data_pipelines.share import Share


def batch_share(mesh: Mesh) -> Share:
    """This process' share of every batch: the rows that its devices hold.

    Two processes have the same one where their devices repeat the same rows, as along the axis "tensor".
    """
    places, width = batch_sharding(mesh).devices_indices_map((mesh.size,)), batch_width(mesh)
    own = [rows for device, (rows,) in places.items() if device.process_index == jax.process_index()]
    return Share(tuple(sorted({(rows.start or 0) // width for rows in own})), mesh.size // width)


def batch_width(mesh: Mesh) -> int:
    """How many devices hold each row of a batch."""
    return batch_sharding(mesh).shard_shape((mesh.size,))[0]


def put_params(params: Any, mesh: Mesh) -> Any:
    """Parameters on the mesh, cut as a state's are; every process has the whole of them, or they are there already."""
    return jax.tree.map(put_whole, params, state_shardings(mesh, params))


def put_whole(array: Any, sharding: Sharding) -> jax.Array:
    """An array on the devices, of which every process has the whole.

    Unlike `jax.device_put` it does not compare what the processes have, which takes a message for each array.
    """
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
