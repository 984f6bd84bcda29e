"""Which rows of every batch a process reads: those that its devices hold."""

import jax
from jax.sharding import Mesh

from anysat_jax.train.mesh import batch_sharding
from data_pipelines.share import Share


def batch_share(mesh: Mesh) -> Share:
    """This process' share of every batch.

    Two processes have the same one where their devices repeat the same rows, as along the axis "tensor". On some
    topologies the rows of a process do not follow each other.
    """
    places, width = batch_sharding(mesh).devices_indices_map((mesh.size,)), batch_width(mesh)
    own = [rows for device, (rows,) in places.items() if device.process_index == jax.process_index()]
    return Share(tuple(sorted({(rows.start or 0) // width for rows in own})), mesh.size // width)


def batch_width(mesh: Mesh) -> int:
    """How many devices hold each row of a batch."""
    return batch_sharding(mesh).shard_shape((mesh.size,))[0]
