"""FLOPs of a step, computed analytically: the matrix products of student, teacher and losses.

A product of (m, k) with (k, n) counts 2 m k n. Norms, softmax and activations are left out: they run beside the matrix
units, whose published rate is what a model's FLOP utilisation (MFU) is measured against. What rematerialisation
computes a second time is left out too, as is usual for MFU; `recomputed_flops` has it. XLA's own count will not do: it
counts the body of a scan once. Tests hold these numbers against the traced step and against an unrolled compile.
"""

import itertools
from collections.abc import Collection
from typing import Any, NamedTuple

from anysat_jax.batch import Batch
from anysat_jax.downstream.network import NetworkConfig, finest_sensor
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import grid_sensors, is_context, subpatch_kind
from anysat_jax.model.positions import NUM_BUCKETS
from anysat_jax.model.predictor import summary_size
from anysat_jax.model.projectors import TEMPORAL_HEADS
from anysat_jax.pretrain.masking import PatchMasks
from anysat_jax.sensors import get_sensor

PARTS = ("projectors", "spatial", "combiner", "predictor", "contrastive", "decoder")


class Work(NamedTuple):
    """FLOPs of the products of a forward pass."""

    forward: float  # FLOPs
    of_data: float = 0.0  # those of them whose input is data: the backward pass needs no gradient of it

    @property
    def training(self) -> float:
        """Forward and backward: a gradient of the weights and one of the input for each product."""
        return 3 * self.forward - self.of_data


def step_flops(model: ModelConfig, batch: Batch, masks: PatchMasks, **options: Any) -> float:
    """FLOPs of one step of pretraining on all tiles of the batch, forward and backward; see `step_flops_by_part`."""
    return sum(step_flops_by_part(model, batch, masks, **options).values())


def step_flops_by_part(
    model: ModelConfig,
    batch: Batch,
    masks: PatchMasks,
    *,
    mask_dates: bool = True,
    negative_parts: int = 1,
    contrast: bool = True,
) -> dict[str, float]:
    """FLOPs of one step of pretraining by `PARTS`, student and teacher together. Needs shapes only.

    A model with a decoder reconstructs, without a teacher.

    Args:
      batch, masks: of arrays or of shapes (`jax.ShapeDtypeStruct`).
      mask_dates: whether the student sees half of the dates.
      negative_parts: into how many parts the batch is cut for the contrastive loss, each with its own negatives:
        micro-batches, times devices where these keep to themselves.
      contrast: whether the contrastive loss has a gradient.
    """
    patches = batch.grid[0] * batch.grid[1]
    # Beside the decoder the whole tiles' patches are combined once, for measures of health.
    teacher = {"combiner": combiner_flops(model, batch, patches)} if model.decoder else encoder_flops(model, batch)
    context, targets = masks.context_index.size, masks.target_index.size
    # The student sees few dates, embeds every patch, combines the context and predicts the targets, with a layer before
    # the predictor's blocks and one behind them.
    ends = product_flops(context + targets, model.dim, model.dim)
    student = encoder_work(model, batch, masks.size[0], mask_dates, _decoded(model, batch))
    student["predictor"] = Work(predictor_stack(model, masks).flops(model) + ends)
    total = {part: student[part].training + teacher.get(part, 0.0) for part in student}
    similar = contrastive_flops(model, batch, negative_parts)
    return total | {"contrastive": similar if contrast else similar / 3, "decoder": decoder_flops(model, batch, masks)}


def _decoded(model: ModelConfig, batch: Batch) -> tuple[str, ...]:
    """The sensors whose raw values the student reconstructs."""
    return grid_sensors(batch) if model.decoder else ()


def decoder_flops(model: ModelConfig, batch: Batch, masks: PatchMasks) -> float:
    """Reconstruction: the linear maps, forward and backward, and the cosine transform of the targets."""
    total, patches = 0.0, batch.batch_size * batch.grid[0] * batch.grid[1]
    for name in _decoded(model, batch):
        size, count = summary_size(get_sensor(name)), subpatch_kind(name, batch.patch_size)[0] ** 2
        maps = product_flops(masks.target_index.size, model.dim, size)
        maps += product_flops(masks.context_index.size * count, 2 * model.dim, size)
        maps += product_flops(batch.batch_size, model.dim, 2 * size)
        total += 3 * maps + product_flops(patches * count, size, get_sensor(name).num_bands)
    return total


def encoder_work(
    model: ModelConfig, batch: Batch, patches: int, mask_dates: bool = False, dense: Collection[str] = ()
) -> dict[str, Work]:
    """The encoder by part, over all tiles; only the combiner is limited to `patches` patches of each tile.

    `dense` has the sensors whose sub-patch features are computed.
    """
    return {
        "projectors": projector_work(model, batch, mask_dates),
        "spatial": Work(sum(stack.flops(model) for stack in spatial_stacks(model, batch, dense))),
        "combiner": Work(combiner_flops(model, batch, patches)),
    }


def encoder_flops(model: ModelConfig, batch: Batch) -> dict[str, float]:
    """FLOPs of one forward pass of the encoder over all tiles and patches: inference, and the teacher."""
    work = encoder_work(model, batch, batch.grid[0] * batch.grid[1])
    return {part: float(one.forward) for part, one in work.items()}


def recomputed_flops(model: ModelConfig, batch: Batch, masks: PatchMasks) -> float:
    """FLOPs of the student's projectors and blocks that full rematerialisation computes again in the backward pass."""
    total = projector_work(model, batch, mask_dates=True).forward
    spatial = spatial_stacks(model, batch, _decoded(model, batch))
    stacks = [*spatial, combiner_stack(model, batch, masks.size[0]), predictor_stack(model, masks)]
    for stack in stacks:
        # No gradient needs the result of a block's last product, the MLP's second layer, so it is not recomputed.
        rows = stack.sequences * ((stack.depth - 1) * stack.length + (stack.outputs or stack.length))
        total += stack.flops(model) - product_flops(rows, model.mlp_ratio * model.dim, model.dim)
    return total


class Stack(NamedTuple):
    """Blocks over sequences of one length."""

    depth: int
    sequences: int
    length: int
    relative: int = 0  # width of the queries that meet a table of distance buckets; 0 for none
    outputs: int | None = None  # tokens of each sequence that the last block computes; None for all

    def flops(self, model: ModelConfig) -> float:
        """Forward: queries, keys, values and output; logits and their sums; the MLP."""
        dim, tokens = model.dim, self.sequences * self.length
        total = 0.0
        for queries in (self.sequences * (self.outputs or self.length), *(self.depth - 1) * (tokens,)):
            total += 2 * product_flops(tokens, dim, dim) + (2 + 2 * model.mlp_ratio) * product_flops(queries, dim, dim)
            total += 2 * product_flops(queries, dim, self.length) + product_flops(queries, self.relative, NUM_BUCKETS)
        return total


def projector_work(model: ModelConfig, batch: Batch, mask_dates: bool = False) -> Work:
    """All sensors' projectors, the dates halved if they are masked (see `pretrain.masking.drop_dates`)."""
    forward, of_data, dim = 0.0, 0.0, model.dim
    for name, observation in batch.observations.items():
        sensor = get_sensor(name)
        tiles, bands, height, width = (observation.values.shape[axis] for axis in (0, -3, -2, -1))
        if not sensor.has_dates:
            # A sub-patch's pixels to D, to 2 D, to D.
            pixels = sensor.subpatch_pixels**2
            tokens = tiles * height * width // pixels
            embed = product_flops(tokens, pixels * bands, dim)
            forward, of_data = forward + embed + 2 * product_flops(tokens, dim, 2 * dim), of_data + embed
            continue
        # An MLP on each date of each pixel, attention over the dates, one more layer.
        dates, pixels = observation.values.shape[1], tiles * height * width
        dates = max(1, dates // 2) if mask_dates else dates
        widths = (bands, dim // 8, dim // 2, dim, 2 * dim, dim)
        layers = [product_flops(pixels * dates, before, after) for before, after in itertools.pairwise(widths)]
        attention = product_flops(pixels * dates, dim, TEMPORAL_HEADS) + product_flops(pixels * dates, dim, 1)
        forward += sum(layers) + attention + product_flops(pixels, dim, dim)
        # A masked value is replaced by a learned scalar, whose gradient needs that of the input.
        of_data += layers[0] if observation.pixel_mask is None else 0
    return Work(forward, of_data)


def spatial_stacks(model: ModelConfig, batch: Batch, dense: Collection[str] = ()) -> list[Stack]:
    """The spatial transformer on every patch of every sensor: a class token and the sub-patches."""
    stacks, whole = [], {subpatch_kind(name, batch.patch_size) for name in dense}
    for name in batch.sensors:
        patches = 1 if is_context(name) else batch.grid[0] * batch.grid[1]
        kind = side, _ = subpatch_kind(name, batch.patch_size)
        outputs = None if kind in whole or side == 1 else 1
        stacks.append(Stack(model.depth, batch.batch_size * patches, 1 + side**2, model.head_dim, outputs))
    return stacks


def combiner_stack(model: ModelConfig, batch: Batch, patches: int) -> Stack:
    """The combiner's self-attention on `patches` patches of each tile (padding included)."""
    contexts = sum(is_context(name) for name in batch.sensors)
    return Stack(model.depth, batch.batch_size, 1 + contexts + (len(batch.sensors) - contexts) * patches)


def combiner_flops(model: ModelConfig, batch: Batch, patches: int) -> float:
    """The combiner, forward, with its cross-attention block."""
    stack, dim = combiner_stack(model, batch, patches), model.dim
    queries = batch.batch_size * (1 + patches)
    keys_and_values = 2 * product_flops(batch.batch_size * stack.length, dim, dim)
    attention = 2 * product_flops(queries, dim, stack.length) + product_flops(queries, model.head_dim, NUM_BUCKETS)
    output_and_mlp = (1 + 2 * model.mlp_ratio) * product_flops(queries, dim, dim)
    return stack.flops(model) + keys_and_values + attention + output_and_mlp


def predictor_stack(model: ModelConfig, masks: PatchMasks) -> Stack:
    """The predictor's blocks: one sequence of context and targets for each target block of each tile."""
    blocks, tiles, targets = masks.target_index.shape
    return Stack(model.predictor_depth, blocks * tiles, targets + 1 + masks.size[0], outputs=targets)


def contrastive_flops(model: ModelConfig, batch: Batch, negative_parts: int = 1) -> float:
    """The contrastive loss, forward and backward: all pairs of tokens of a part, once forward and twice backward."""
    sensors = sum(not is_context(name) for name in batch.sensors)
    patches = batch.grid[0] * batch.grid[1]
    tokens = batch.batch_size * sensors * patches
    negatives = product_flops(tokens, model.dim, tokens / negative_parts)
    positives = product_flops(tokens, model.dim, sensors)
    return float(3 * (negatives + positives))


def product_flops(rows: float, inner: float, columns: float) -> float:
    """FLOPs of (rows, inner) times (inner, columns)."""
    return 2.0 * rows * inner * columns


def finetune_flops(network: NetworkConfig, batch: Batch) -> float:
    """FLOPs of one step of modes "finetune" and "scratch" on a batch, forward and backward. Needs shapes only."""
    dense = () if network.head.input == "tile" else (network.task.sensor or finest_sensor(batch),)
    encoder = encoder_work(network.model, batch, batch.grid[0] * batch.grid[1], dense=dense)
    return float(sum(work.training for work in (*encoder.values(), Work(head_flops(network, batch)))))


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
