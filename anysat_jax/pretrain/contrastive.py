"""The contrastive loss between sensors, in memory linear in the number of tokens.

Paper, section 3.3: the patch embeddings that different sensors give the same patch should be closer to each other than
to those of other patches. The matrix of all similarities is never held: it is computed and reduced in blocks of
rows, and computed once more in the backward pass.

On a mesh a token's negatives are those of all devices ("global": the loss of a single device, whatever the mesh), or
those of its own ("device", as the original was trained: it depends on how many tiles a device has).
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.model.partitioning import BATCH_AXES, TENSOR, parts

Negatives = Literal["global", "device"]
NEGATIVES: tuple[Negatives, ...] = ("global", "device")


class _Settings(NamedTuple):
    """Static settings of the loss, see `contrastive_loss`."""

    temperature: float
    block_size: int
    num_patches: int
    axes: tuple[str, ...] = ()  # of the mesh, over which a token's negatives are gathered


# Score of a pair that does not count; not -inf, which would make the gradient of a row without pairs NaN.
_MASKED = float(jnp.finfo(jnp.float32).min)


def contrastive_loss(
    tokens: Float[Array, "B M N D"],
    valid: Bool[Array, "B M N"] | None = None,
    temperature: float = 0.1,
    block_size: int = 1024,
    *,
    mesh: Mesh | None = None,
    negatives: Negatives = "global",
) -> Float[Array, ""]:
    """Returns the mean over tokens of log-sum-exp over negatives and positives, minus log-sum-exp over the positives.

    Similarities are cosines over `temperature`. A token's positives are the tokens of the same patch in the tile's
    other sensors. Its denominator runs over every token of the batch (see `negatives`) except those of the same tile
    and the same sensor (so not over itself). Tokens that are invalid, or that have no valid positive, leave both sums
    and the mean; where none is left the loss is zero, and so are its gradients.

    Args:
      tokens: patch embeddings of B tiles, M sensors and N patches, any float dtype; the loss is computed in float32.
        Sensors without a patch grid (MODIS) do not take part.
      valid: True = valid. The values of other tokens are ignored, even NaN. None means that all are valid.
      temperature: divisor of the cosines.
      block_size: rows of the similarity matrix held at a time; memory is about 3 * block_size * B * M * N floats beside
        the tokens. On a mesh, rows of each device. Static.
      mesh: the mesh over which B is sharded, along "data" and "fsdp"; each device computes the rows of its own tiles.
      negatives: "global", those of the whole mesh; "device", those of the tiles of one place along these axes, whose
        losses are averaged. Without a mesh the two are the same.

    Returns:
      float32 scalar, the same on every device.

    Raises:
      ValueError: the mesh axes do not divide B.
    """
    if valid is None:
        valid = jnp.ones(tokens.shape[:3], jnp.bool_)
    settings = _Settings(temperature, block_size, tokens.shape[2])
    if mesh is None:
        return _loss(tokens, valid, settings)
    return _loss_on_mesh(tokens, valid, settings, mesh, negatives)


def _loss_on_mesh(
    tokens: Float[Array, "B M N D"], valid: Bool[Array, "B M N"], settings: _Settings, mesh: Mesh, negatives: Negatives
) -> Float[Array, ""]:
    batch, axes, count = tokens.shape[0], BATCH_AXES, parts(mesh.shape, BATCH_AXES)
    if batch % count:
        raise ValueError(f"a batch of {batch} tiles does not split over the {count} devices of mesh axes {BATCH_AXES}")
    if negatives == "global":
        # Devices along "tensor" hold the same tiles; where the batch is large enough, they share the rows.
        axes = (*BATCH_AXES, TENSOR) if TENSOR in mesh.shape and batch % mesh.size == 0 else BATCH_AXES
        settings = settings._replace(axes=axes)

    def local(tokens: Float[Array, "b M N D"], valid: Bool[Array, "b M N"]) -> Float[Array, ""]:
        loss = _loss(tokens, valid, settings)
        return loss if settings.axes else jax.lax.pmean(loss, axes)

    rows = PartitionSpec(axes)
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec())(tokens, valid)


def _loss(tokens: Float[Array, "B M N D"], valid: Bool[Array, "B M N"], settings: _Settings) -> Float[Array, ""]:
    """Computes the loss of this device's tiles against those of all, averaged over all."""
    has_positive = (valid.sum(axis=1, keepdims=True) - valid) > 0
    used = valid & has_positive
    # Zeros in place of unused tokens: 0 times a NaN would be NaN, in the sums and in their gradients.
    unit = _normalise(jnp.where(used[..., None], tokens.astype(jnp.float32), 0.0))
    positives = _log_sum_exp_positives(unit, used, settings.temperature)
    denominators = _log_sum_exp_all(unit.reshape(-1, unit.shape[-1]), used.reshape(-1), settings)
    # -log(sum over positives / sum over negatives and positives), for each token.
    total = jnp.where(used, denominators.reshape(used.shape) - positives, 0.0).sum()
    count = used.sum(dtype=jnp.float32)
    if settings.axes:
        total, count = jax.lax.psum((total, count), settings.axes)
    return total / jnp.maximum(count, 1.0)


def _normalise(tokens: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Divides by the length, giving zero (with a finite gradient) for a zero vector."""
    # The inner `where` matters: outside, the infinite derivative at zero would still reach the gradient, as 0 * inf.
    squares = jnp.square(tokens).sum(axis=-1, keepdims=True)
    return tokens * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0))


def _log_sum_exp_positives(
    unit: Float[Array, "B M N D"], used: Bool[Array, "B M N"], temperature: float
) -> Float[Array, "B M N"]:
    """Computes log-sum-exp over the same patch in the tile's other sensors; any finite number for unused tokens."""
    scores = jnp.einsum("bmnd,bknd->bmnk", unit, unit, precision="highest") / temperature
    other_sensor = ~jnp.eye(unit.shape[1], dtype=jnp.bool_)
    pairs = jnp.swapaxes(used, 1, 2)[:, None] & other_sensor[None, :, None, :]
    return jax.nn.logsumexp(jnp.where(pairs, scores, _MASKED), axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_sum_exp_all(unit: Float[Array, "T D"], used: Bool[Array, "T"], settings: _Settings) -> Float[Array, "T"]:
    """Computes, for each used token, log-sum-exp over the used tokens of all devices outside its own (tile, sensor);
    zero for the others.
    """
    group = _group_ids(used, settings)
    all_unit, all_used, all_group = _gather((unit, used, group), settings.axes)

    def block(rows: tuple[Array, ...]) -> Float[Array, "R"]:
        row_unit, row_used, row_group = rows
        pairs = all_used[None, :] & (row_group[:, None] != all_group[None, :])
        scores = jnp.where(pairs, _scores(row_unit, all_unit, settings.temperature), _MASKED)
        return jnp.where(row_used, jax.nn.logsumexp(scores, axis=1), 0.0)

    return _map_row_blocks(block, (unit, used, group), settings.block_size)


def _log_sum_exp_all_forward(unit: Array, used: Array, settings: _Settings) -> tuple[Array, tuple[Array, ...]]:
    # Kept for the backward pass: one number for each token. Differentiating the loop would keep all similarities.
    result = _log_sum_exp_all(unit, used, settings)
    return result, (unit, used, result)


def _log_sum_exp_all_backward(
    settings: _Settings, residuals: tuple[Array, ...], cotangent: Float[Array, "T"]
) -> tuple[Float[Array, "T D"], None]:
    """Adds both terms of each pair of tokens, one from either token's sum, in one pass: scores are symmetric.

    So a device's rows need no gradient of another device, only all tokens, sums and cotangents.
    """
    unit, used, result = residuals
    rows = (unit, used, _group_ids(used, settings), result, jnp.where(used, cotangent, 0.0))
    all_unit, all_used, all_group, all_result, all_cotangent = _gather(rows, settings.axes)

    def block(rows: tuple[Array, ...]) -> Float[Array, "R D"]:
        row_unit, row_used, row_group, row_result, row_cotangent = rows
        pairs = row_used[:, None] & all_used[None, :] & (row_group[:, None] != all_group[None, :])
        scores = _scores(row_unit, all_unit, settings.temperature)
        # d log-sum-exp / d score is the softmax: exp(score - log-sum-exp) of the row, and of the column.
        own = row_cotangent[:, None] * jnp.exp(scores - row_result[:, None])
        others = all_cotangent[None, :] * jnp.exp(scores - all_result[None, :])
        weights = jnp.where(pairs, own + others, 0.0)
        return jnp.matmul(weights, all_unit, precision="highest") / settings.temperature

    return _map_row_blocks(block, rows, settings.block_size), None


_log_sum_exp_all.defvjp(_log_sum_exp_all_forward, _log_sum_exp_all_backward)


def _scores(rows: Float[Array, "R D"], columns: Float[Array, "T D"], temperature: float) -> Float[Array, "R T"]:
    # "highest": accelerators would multiply in lower precision, and a cosine's error is divided by the temperature and
    # exponentiated.
    return jnp.matmul(rows, columns.T, precision="highest") / temperature


def _group_ids(used: Bool[Array, "T"], settings: _Settings) -> Int[Array, "T"]:
    """Returns a number for each (tile, sensor), different on each device."""
    # Rows are in the order (tile, sensor, patch), so that a group is `num_patches` rows in a row.
    first = jax.lax.axis_index(settings.axes) * used.size if settings.axes else 0
    return (first + jnp.arange(used.size, dtype=jnp.int32)) // settings.num_patches


def _gather(arrays: tuple[Array, ...], axes: tuple[str, ...]) -> tuple[Array, ...]:
    """Gathers the rows of all devices, in the order of the batch."""
    if not axes:
        return arrays
    return tuple(jax.lax.all_gather(array, axes, tiled=True) for array in arrays)


def _map_row_blocks(block: Callable[[tuple[Array, ...]], Array], rows: tuple[Array, ...], block_size: int) -> Array:
    """Applies `block` to `block_size` rows at a time; the last block is padded with zeros (unused tokens)."""
    count = rows[0].shape[0]
    size = min(block_size, count)
    padding = -count % size
    padded = [jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1)) for array in rows]
    blocks = tuple(array.reshape(-1, size, *array.shape[1:]) for array in padded)
    result = jax.lax.map(block, blocks)  # one block after the other: in parallel, all similarities would be held
    return result.reshape(-1, *result.shape[2:])[:count]
