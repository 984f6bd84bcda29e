"""Masks of pretraining: context and target patches, as blocks on the patch grid as in I-JEPA (paper: section 3.3).

Drawn on the host with numpy from one generator a step, then padded to one of a few static sizes, so that a dataset
and patch size compile to few programs. The student's dates and sensors are dropped on the devices.
"""

import dataclasses
import math
import zlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from anysat_jax.batch import Batch, Observation
from anysat_jax.model.partitioning import BATCH_AXES
from anysat_jax.train.config import Rule, Section, checked
from anysat_jax.train.sharding import put_whole

Range = tuple[float, float]
TRIES = 20  # draws of a tile's blocks before they are made to overlap
MIN_CONTEXT = 0.1  # fraction of the patches that the context must keep; at least one patch


@flax.struct.dataclass
class PatchMasks:
    """Places on the patch grid, raster order, padded to static sizes."""

    context_index: Int[Array, "B n"]  # what the student sees
    context_mask: Bool[Array, "B n"]  # True for real places
    target_index: Int[Array, "k B m"]  # the k blocks to predict
    target_mask: Bool[Array, "m"]  # True for real places; all blocks of a step have one size

    @property
    def size(self) -> tuple[int, int]:
        """Padded numbers of context and target patches: which select the compiled program."""
        return self.context_index.shape[1], self.target_index.shape[2]


MASK_SPECS = {
    "context_index": PartitionSpec(BATCH_AXES),
    "context_mask": PartitionSpec(BATCH_AXES),
    "target_index": PartitionSpec(None, BATCH_AXES),
    "target_mask": PartitionSpec(),
}


def put_masks(masks: PatchMasks, mesh: Mesh) -> PatchMasks:
    """Puts masks on the devices; every process has those of the whole batch, and copies what its devices need."""
    return masks.replace(
        **{name: put_whole(getattr(masks, name), NamedSharding(mesh, spec)) for name, spec in MASK_SPECS.items()}
    )


def _rises(value: Range) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]


_SCALES = Rule(lambda value: _rises(value) and value[1] <= 1, "two fractions from 0 to 1, the smaller first")
_BUCKETS = Rule(
    lambda value: len(value) == 2 and min(value) > 0 and math.prod(value) <= 4,
    "two numbers above 0 with a product of at most 4: each pair is one more compiled program",
)


@dataclasses.dataclass(frozen=True)
class MaskConfig(Section):
    """Options of the masks: a part of the section `pretrain`."""

    NAME = "pretrain"
    # Blocks to predict for each tile.
    num_target_blocks: int = checked(Rule(lambda value: 1 <= value <= 256, "from 1 to 256"), 4)
    target_scale: Range = checked(_SCALES, (0.2, 0.8))  # smallest and largest fraction of the patches in a target block
    # Smallest and largest ratio of a target block's rows to its columns.
    target_aspect: Range = checked(Rule(_rises, "two numbers above 0, the smaller first"), (0.75, 1.5))
    context_scale: Range = checked(_SCALES, (0.85, 1.0))  # the same fraction for the context block, which is square
    # How many static sizes targets and contexts are padded to; the product bounds the compiled programs.
    mask_buckets: tuple[int, int] = checked(_BUCKETS, (2, 2))


def min_context(grid: tuple[int, int]) -> int:
    """Returns the number of patches that the context keeps at least."""
    return max(1, math.floor(MIN_CONTEXT * grid[0] * grid[1]))


def block_size(grid: tuple[int, int], scale: float, aspect: float, largest: int) -> tuple[int, int]:
    """Returns rows and columns of a block of about `scale` of the grid, at most `largest` patches, inside the grid."""
    area = scale * grid[0] * grid[1]
    rows = min(max(1, round(math.sqrt(area * aspect))), grid[0])
    columns = min(max(1, round(math.sqrt(area / aspect))), grid[1])
    while rows * columns > largest:  # the longer side first, which keeps the aspect
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    return rows, columns


def target_sizes(grid: tuple[int, int], config: MaskConfig) -> list[int]:
    """Returns the rising static sizes of a target block: every block fits the last one."""
    largest = grid[0] * grid[1] - min_context(grid)
    # Rounding makes the number of patches jump with the aspect: the extremes need not be at its ends.
    aspects = np.linspace(*config.target_aspect, 65)
    low = min(math.prod(block_size(grid, config.target_scale[0], aspect, largest)) for aspect in aspects)
    high = max(math.prod(block_size(grid, config.target_scale[1], aspect, largest)) for aspect in aspects)
    steps = np.linspace(low, high, config.mask_buckets[0] + 1)[1:]
    return sorted({math.ceil(step) for step in steps})


def static_sizes(grid: tuple[int, int], config: MaskConfig) -> dict[int, list[int]]:
    """Returns for each static size of a target block, rising, those of the context; every pair is a program."""
    count, before, sizes = config.mask_buckets[1], 0, {}
    for target in target_sizes(grid, config):
        # The context lost at least one target block, which is larger than the static size before.
        largest = grid[0] * grid[1] - before - 1
        sizes[target] = sorted({math.ceil(largest * (i + 1) / count) for i in range(count)})
        before = target
    return sizes


def _block_grids(
    rng: np.random.Generator, grid: tuple[int, int], size: tuple[int, int], shape: tuple[int, ...]
) -> Bool[np.ndarray, "*shape N"]:
    """Draws blocks of one size at uniform places, as masks of the flattened grid."""
    top = rng.integers(0, grid[0] - size[0] + 1, shape)[..., None]
    left = rng.integers(0, grid[1] - size[1] + 1, shape)[..., None]
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    inside_rows = (row >= top) & (row < top + size[0])
    return inside_rows & (column >= left) & (column < left + size[1])


def _draw_blocks(
    rng: np.random.Generator, grid: tuple[int, int], batch_size: int, config: MaskConfig, size: tuple[int, int]
) -> tuple[Bool[np.ndarray, "k B N"], Bool[np.ndarray, "B N"]]:
    """Draws targets and contexts of each tile, redrawn where the context keeps too little, at last made to overlap."""
    least = min_context(grid)
    context_block = block_size(grid, rng.uniform(*config.context_scale), 1.0, grid[0] * grid[1])
    targets = np.zeros((config.num_target_blocks, batch_size, grid[0] * grid[1]), bool)
    contexts = np.zeros(targets.shape[1:], bool)
    poor = np.arange(batch_size)
    for _ in range(TRIES):
        targets[:, poor] = _block_grids(rng, grid, size, (config.num_target_blocks, len(poor)))
        contexts[poor] = _block_grids(rng, grid, context_block, (len(poor),)) & ~targets[:, poor].any(axis=0)
        poor = np.flatnonzero(contexts.sum(axis=1) < least)
        if not len(poor):
            return targets, contexts
    for block in range(1, config.num_target_blocks):  # the same block again and again leaves the most
        targets[block, poor] = targets[0, poor]
        contexts[poor] = ~targets[:, poor].any(axis=0)
        poor = poor[contexts[poor].sum(axis=1) < least]
    return targets, contexts


def _places(chosen: Bool[np.ndarray, "*n N"], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `size` places of each mask in raster order, and which of them are real."""
    order = np.argsort(~chosen, axis=-1, kind="stable")[..., :size].astype(np.int32)
    real = np.take_along_axis(chosen, order, axis=-1)
    return np.where(real, order, 0), real  # padding points at patch 0, which exists on every grid


def sample_patch_masks(
    rng: np.random.Generator, grid: tuple[int, int], batch_size: int, config: MaskConfig
) -> PatchMasks:
    """Draws one step's masks: one block size for the targets and one for the context; for each tile k target blocks and
    one context block, which loses every target patch and keeps at least a tenth of the patches.

    Returns:
      numpy arrays, padded to the smallest of the static sizes that holds them.
    """
    if grid[0] * grid[1] == 1:
        # A single pixel's series has nothing to hide behind: the patch is context and target, and what the student must
        # make up for are the dates and sensors that it does not see. (The paper pretrains on no such tiles.)
        index, real = np.zeros((batch_size, 1), np.int32), np.ones((batch_size, 1), np.bool_)
        return PatchMasks(index, real, index[None], real[0])
    largest = grid[0] * grid[1] - min_context(grid)
    sizes = static_sizes(grid, config)
    # One size for all tiles, as in I-JEPA: blocks of a step can be stacked with little padding.
    scale, aspect = rng.uniform(*config.target_scale), rng.uniform(*config.target_aspect)
    size = block_size(grid, scale, aspect, min(largest, max(sizes)))
    targets, contexts = _draw_blocks(rng, grid, batch_size, config, size)
    num_target = next(bound for bound in sizes if bound >= math.prod(size))
    needed = contexts.sum(axis=1).max()
    # The context's sizes depend on the target's alone, so that pairs of sizes bound the number of programs.
    num_context = next(bound for bound in sizes[num_target] if bound >= needed)
    target_index, target_real = _places(targets, num_target)
    context_index, context_mask = _places(contexts, num_context)
    return PatchMasks(context_index, context_mask, target_index, target_real[0, 0])


def drop_dates(batch: Batch, rng: jax.Array) -> Batch:
    """Keeps half of each series' real dates at random, at least one, in their order.

    Series of T (padded) dates come back with max(1, T // 2), so that the student's work halves too.
    """
    observations = {}
    for name, observation in batch.observations.items():
        series = observation.dates is not None and observation.dates.shape[1] > 1
        # By name: a sensor's dates must not depend on which others the batch has. By a checksum of it, since Python's
        # own hash differs between processes.
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        observations[name] = _halve(observation, key) if series else observation
    return batch.replace(observations=observations)


def _halve(observation: Observation, rng: jax.Array) -> Observation:
    batch, length = observation.dates.shape
    real = jnp.ones((batch, length), bool) if observation.date_mask is None else observation.date_mask
    half = max(1, length // 2)
    # Sorting by random numbers draws without replacement; padding gets 2, behind all real dates.
    order = jnp.argsort(jnp.where(real, jax.random.uniform(rng, (batch, length)), 2.0), axis=1)[:, :half]
    kept = jnp.maximum(1, real.sum(axis=1, keepdims=True) // 2)
    # Then back into the order of time: positions from `length` on mark the places that stay padding.
    chosen = jnp.arange(half)[None, :] < kept
    order = jnp.sort(jnp.where(chosen, order, order + length), axis=1)
    chosen = order < length
    order = order % length

    def take(array: Array) -> Array:
        return jnp.take_along_axis(array, order.reshape(batch, half, *(1,) * (array.ndim - 2)), axis=1)

    return observation.replace(
        values=take(observation.values),
        dates=take(observation.dates),
        date_mask=chosen & take(real),
        pixel_mask=None if observation.pixel_mask is None else take(observation.pixel_mask),
    )


def keep_tokens(available: Bool[Array, "B M n"], rng: jax.Array) -> Bool[Array, "B M n"]:
    """Draws the (sensor, patch) tokens that stay: at each patch one available sensor; of the remaining tokens of a tile
    half are replaced by the mask token.

    Args:
      available: True where the sensor is present and the place is real.

    Returns:
      False for the tokens to replace; what is not available is not replaced.
    """
    first, second = jax.random.split(rng)
    batch, sensors, patches = available.shape
    # The largest of independent uniform numbers is a uniform choice, at each patch among the sensors that it has.
    draw = jnp.where(available, jax.random.uniform(first, available.shape), -1.0)
    stays = jax.nn.one_hot(jnp.argmax(draw, axis=1), sensors, axis=1, dtype=bool)
    rest = (available & ~stays).reshape(batch, sensors * patches)
    draw = jnp.where(rest, jax.random.uniform(second, rest.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(draw, axis=1), axis=1)  # the second one inverts the permutation of the first
    replaced = rest & (rank < rest.sum(axis=1, keepdims=True) // 2)
    return ~replaced.reshape(available.shape)
