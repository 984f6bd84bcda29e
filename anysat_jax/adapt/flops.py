"""How much a step of fine-tuning computes, counted on paper as in `anysat_jax.flops`: products of encoder and head.

Where all of the encoder trains: what modes with frozen parts spare in the backward pass is not known here.
"""

import itertools

from anysat_jax.adapt.network import NetworkConfig, finest_sensor
from anysat_jax.batch import Batch
from anysat_jax.flops import Work, combiner_flops, product_flops, projector_work, spatial_flops
from anysat_jax.sensors import get_sensor


def finetune_flops(network: NetworkConfig, batch: Batch) -> float:
    """FLOPs of one step of modes "finetune" and "scratch" on a batch, forward and backward. Needs shapes only."""
    patches = batch.grid[0] * batch.grid[1]
    works = (
        projector_work(network.model, batch),
        Work(spatial_flops(network.model, batch)),
        Work(combiner_flops(network.model, batch, patches)),
        Work(head_flops(network, batch)),
    )
    return float(sum(work.training for work in works))


def head_flops(network: NetworkConfig, batch: Batch) -> float:
    """FLOPs of the head, forward; without the interpolation of `head.upsample = "bilinear"`."""
    head, task = network.head, network.task
    answers, outputs = batch.batch_size, task.num_outputs
    if task.level == "dense":
        sensor = task.sensor or finest_sensor(batch)
        height, width = batch.observations[sensor].values.shape[-2:]
        answers *= (height * width) // get_sensor(sensor).subpatch_pixels ** 2
        outputs *= task.pixels_per_subpatch**2 if head.upsample == "shuffle" else 1
    widths = (head.features(network.model.dim), *((head.hidden,) if head.kind == "mlp" else ()), outputs)
    return sum(product_flops(answers, before, after) for before, after in itertools.pairwise(widths))
