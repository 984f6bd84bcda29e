"""Norms, and pre-norm transformer blocks with an optional relative position term on the keys and with drop-path."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from anysat_jax.model.config import ModelConfig, rematerialised
from anysat_jax.model.partitioning import BATCH_AXES, TENSOR, Axes, constrain
from anysat_jax.model.positions import NUM_BUCKETS, USED_BUCKETS

Dtype = Any


def declare(module: nn.Module, name: str, *shape: int) -> jax.Array:
    """Declares a float32 parameter of a module."""
    # Initial values come from `model.init`, by path; `Module.init` serves shapes only.
    return module.param(name, nn.initializers.zeros, shape)


class Linear(nn.Module):
    """x @ kernel + bias, computed in `dtype`; parameters have the names of those of `nn.Dense`.

    Attributes:
      cut: mesh axes that cut the kernel's rows and columns while it is used.
    """

    features: int
    dtype: Dtype
    cut: tuple[Axes, Axes] = (None, None)

    @nn.compact
    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n F"]:
        kernel = declare(self, "kernel", x.shape[-1], self.features)
        bias = declare(self, "bias", self.features)
        # Gathers the kernel along "fsdp", already in `dtype`; left alone, the compiler may gather the activations.
        out = x.astype(self.dtype) @ constrain(kernel.astype(self.dtype), *self.cut)
        # Explicit axes: implicit promotion of ranks hides mistakes, and the tests forbid it.
        return out + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Norm(nn.Module):
    """GroupNorm over the last axis, computed in float32; with one group, LayerNorm.

    Parameters have the names of those of `nn.LayerNorm`.
    """

    epsilon: float
    dtype: Dtype
    groups: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n D"], date_weights: Float[Array, "b 1 T 1"] | None = None
    ) -> Float[Array, "*n D"]:
        """Returns x standardised in each group, times a scale, plus a bias.

        Args:
          date_weights: of x with axes (B, Q, T, D): statistics are taken over the dates too, with these weights, which
            add up to 1; b is B, or 1.
        """
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = declare(self, "bias", x.shape[-1])
        return _normed(_NormArrays(x, scale, bias, date_weights), self.groups, self.epsilon).astype(self.dtype)


class _NormArrays(NamedTuple):
    x: Float[Array, "*n D"]
    scale: Float[Array, "D"]
    bias: Float[Array, "D"]
    weights: Float[Array, "b 1 T 1"] | None  # of dates


# Written out with its gradient: what autodiff makes of a norm has more operations, and keeps three arrays, not x alone.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _normed(arrays: _NormArrays, groups: int, epsilon: float) -> Float[Array, "*n D"]:
    return _normed_forward(arrays, groups, epsilon)[0]


def _normed_forward(arrays: _NormArrays, groups: int, epsilon: float) -> tuple[Float[Array, "*n D"], tuple[Any, ...]]:
    x, scale, bias, weights = arrays
    x = x.astype(jnp.float32)
    mean = _over_dates(_group_means(x, groups), weights)
    # Not E[x^2] - E[x]^2, which loses all digits where the mean is large beside the deviation.
    centred = x - _spread(mean, x)
    inverse = jax.lax.rsqrt(_over_dates(_group_means(centred * centred, groups), weights) + epsilon)
    return centred * _spread(inverse, x) * _as_row(scale, x) + _as_row(bias, x), (arrays, mean, inverse)


def _normed_backward(groups: int, _: float, saved: tuple[Any, ...], grad: Float[Array, "*n D"]) -> tuple[_NormArrays]:
    (given, scale, _, weights), mean, inverse = saved
    x, rows = given.astype(jnp.float32), tuple(range(grad.ndim - 1))
    spread = _spread(inverse, x)
    y, inner = (x - _spread(mean, x)) * spread, grad * _as_row(scale, x)
    parts = [_group_means(part, groups) for part in (inner, inner * y)]
    if weights is not None:
        parts = [part.sum(axis=-2, keepdims=True) * weights for part in parts]
    grad_x = spread * (inner - _spread(parts[0], x) - y * _spread(parts[1], x))
    return (_NormArrays(grad_x.astype(given.dtype), (grad * y).sum(axis=rows), grad.sum(axis=rows), None),)


_normed.defvjp(_normed_forward, _normed_backward)


def _group_means(x: Float[Array, "*n D"], groups: int) -> Float[Array, "*n G"]:
    """Returns the mean of each group of neighbouring channels."""
    size = x.shape[-1] // groups

    def product(x: jax.Array) -> jax.Array:
        return x @ jnp.asarray(np.repeat(np.eye(groups, dtype=np.float32), size, axis=0) / size)

    # XLA's CPU code adds up a row one value at a time; its matrix products use all lanes.
    return jax.lax.platform_dependent(
        x, cpu=product, default=lambda x: x.reshape(*x.shape[:-1], groups, size).mean(axis=-1)
    )


def _over_dates(means: Float[Array, "*n G"], weights: Float[Array, "b 1 T 1"] | None) -> Float[Array, "*m G"]:
    return means if weights is None else (means * weights).sum(axis=-2, keepdims=True)


def _spread(means: Float[Array, "*m G"], x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Returns each group's value at each of its channels, and at each date."""
    groups = means.shape[-1]
    each = jnp.broadcast_to(means[..., None], (*x.shape[:-1], groups, x.shape[-1] // groups))
    return each.reshape(x.shape)


def _as_row(vector: Float[Array, "D"], x: Float[Array, "*n D"]) -> Float[Array, "... D"]:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def relu(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Returns max(x, 0), and NaN for NaN."""
    # XLA's CPU code may make 0 of it in a fused maximum: a pixel or weight that is not a number would go unnoticed.
    return jnp.where(x <= 0, 0, x)


COLUMNS, ROWS = (None, TENSOR), (TENSOR, None)  # axis of a kernel that a mesh shards


def relative_term(
    query: Float[Array, "B Q d"], table: Float[Array, "d 8"], buckets: Int[Array, "b Q K"]
) -> Float[Array, "B Q K"]:
    """Computes query_i . table[:, buckets_ij], the relative position term of the logits.

    Args:
      buckets: b is B, or 1 where all samples share them.
    """
    # Selects fuse into the logits in both passes. A gather would write its result to memory, and its gradient would be
    # a scatter-add.
    product = query @ table.astype(query.dtype)
    term = jnp.zeros((), product.dtype)
    for bucket in USED_BUCKETS:
        term = jnp.where(buckets == bucket, product[:, :, bucket : bucket + 1], term)
    return term


def attend(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K H d"],
    value: Float[Array, "B K H d"],
    bias: Float[Array, "B Q K"] | None = None,
    key_mask: Bool[Array, "B K"] | None = None,
) -> Float[Array, "B Q H*d"]:
    """Computes scaled dot-product attention, softmax in float32; `bias` is added to every head's logits.

    Args:
      key_mask: True where a key may be attended to. At least one key of each sample must be.
    """
    # Heads are independent of one another, so a mesh shards them without any message.
    query, key, value = (constrain(x, BATCH_AXES, None, TENSOR, None) for x in (query, key, value))
    # Masked logits become a large finite number before the softmax: after it the other weights would not sum to 1.
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=None if bias is None else bias[:, None],
        mask=None if key_mask is None else key_mask[:, None, None, :],
    )
    return out.reshape(*out.shape[:2], -1)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    hidden: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        hidden = constrain(Linear(self.hidden, self.dtype, COLUMNS, name="up")(x), BATCH_AXES, None, TENSOR)
        # The published weights were trained with the exact GELU; JAX's default is the tanh approximation.
        return Linear(x.shape[-1], self.dtype, ROWS, name="down")(nn.gelu(hidden, approximate=False))


class HeadsProjection(nn.Module):
    """A Linear to every head's query, key and value."""

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], outputs: int | None = None
    ) -> tuple[Float[Array, "B Q H d"], Float[Array, "B N H d"], Float[Array, "B N H d"]]:
        dim = x.shape[-1]
        split = (3, self.num_heads, dim // self.num_heads)
        # Columns are (query | key | value, head, channel), as in the published weights.
        kernel, bias = declare(self, "kernel", dim, 3 * dim), declare(self, "bias", 3 * dim)
        # The heads get an axis of their own before the product, so that a mesh can shard the product over them.
        kernel = constrain(kernel.astype(self.dtype), TENSOR, None).reshape(dim, *split)
        kernel = constrain(kernel, None, None, TENSOR, None)
        bias = bias.astype(self.dtype).reshape(1, 1, *split)
        if outputs is None:
            query, key, value = jnp.moveaxis(jnp.einsum("bnc,cshd->bnshd", x, kernel) + bias, 2, 0)
        else:
            query = jnp.einsum("bnc,chd->bnhd", x[:, :outputs], kernel[:, 0]) + bias[:, :, 0]
            key, value = jnp.moveaxis(jnp.einsum("bnc,cshd->bnshd", x, kernel[:, 1:]) + bias[:, :, 1:], 2, 0)
        return query, key, value


class SelfAttention(nn.Module):
    """Multi-head self-attention; with `relative`, the product of the first head's scaled query and a table of
    distance buckets is added to every head's logits, as in the training of the published weights.
    """

    num_heads: int
    relative: bool
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        buckets: Int[Array, "1 N N"] | None = None,
        key_mask: Bool[Array, "B N"] | None = None,
        outputs: int | None = None,
    ) -> Float[Array, "B Q D"]:
        dim = x.shape[-1]
        head_dim = dim // self.num_heads
        query, key, value = HeadsProjection(self.num_heads, self.dtype, name="qkv")(x, outputs)
        bias = None
        if self.relative:
            table = declare(self, "relative", head_dim, NUM_BUCKETS)
            # `attend` scales the logits, but not the bias that it adds to them.
            bias = relative_term(query[:, :, 0] * head_dim**-0.5, table, buckets[:, :outputs])
        out = attend(query, key, value, bias, key_mask)
        return Linear(dim, self.dtype, ROWS, name="out")(out)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), of the first `outputs` tokens (None: of all).

    With a `drop_path` rate each sequence drops each of the two branches at that rate (Huang et al. 2016, stochastic
    depth).
    """

    num_heads: int
    mlp_ratio: int
    epsilon: float
    relative: bool
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        buckets: Int[Array, "1 N N"] | None,
        key_mask: Bool[Array, "B N"] | None,
        drop_path: Float[Array, ""] | None = None,
        outputs: int | None = None,
    ) -> Float[Array, "B Q D"]:
        # Between blocks only the batch is sharded; left alone, the compiler may keep channels sharded, which every norm
        # would have to gather.
        x = constrain(x, BATCH_AXES, None, None)
        normed = Norm(self.epsilon, self.dtype, name="norm_attention")(x)
        attention = SelfAttention(self.num_heads, self.relative, self.dtype, name="attention")
        x = x[:, :outputs] + self._drop(attention(normed, buckets, key_mask, outputs), drop_path)
        normed = Norm(self.epsilon, self.dtype, name="norm_mlp")(x)
        branch = Mlp(self.mlp_ratio * x.shape[-1], self.dtype, name="mlp")(normed)
        return constrain(x + self._drop(branch, drop_path), BATCH_AXES, None, None)

    def _drop(self, branch: Float[Array, "B N D"], rate: Float[Array, ""] | None) -> Float[Array, "B N D"]:
        if rate is None:
            return branch
        # A kept branch is scaled up, so that its expectation is that of evaluation, in which none is dropped.
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (branch.shape[0], 1, 1))
        return jnp.where(keep, branch / (1 - rate).astype(branch.dtype), 0)


def drop_path_rates(last: float, depth: int) -> tuple[Float[np.ndarray, "depth"] | None, ...]:
    """Returns the rates of the spatial transformer's and of the combiner's blocks: from 0 linearly to `last` over both,
    or None for each where `last` is 0.

    Raises:
      ValueError: `last` is not in [0, 1).
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path = {last} must be at least 0 and less than 1")
    if last == 0:
        return None, None
    # Early blocks, whose features all later ones read, are dropped least (Huang et al. 2016, section 3).
    spatial, combiner = np.split(np.linspace(0, last, 2 * depth, dtype=np.float32), 2)
    return spatial, combiner


# Values of the widest activation of a part: 8 MiB of float32, and 4 GiB.
CPU_PART, ACCELERATOR_PART = 2**21, 2**30


def num_parts(count: int, values: float) -> int:
    """Returns the number of equal parts in which `count` rows are handled, whose widest activation has `values` values.

    On a CPU the activations of a part stay in the cache; on one accelerator their memory stays bounded; on a mesh the
    rows, which are on several devices, are one part, as is a number of rows that an exported program leaves open.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if jax.export.is_symbolic_dim(values) or (not mesh.empty and mesh.size > 1):
        return 1
    wanted = values / (CPU_PART if jax.default_backend() == "cpu" else ACCELERATOR_PART)
    # Of the numbers that divide the rows, the nearest in proportion.
    return min((n for n in range(1, count + 1) if count % n == 0), key=lambda n: max(n / wanted, wanted / n))


def in_parts(run: Callable[[jax.Array], jax.Array], x: Float[Array, "B N D"], ratio: int) -> Float[Array, "B Q D"]:
    """Applies a function to parts of the sequences, see `num_parts`; its widest activation is `ratio` * D wide."""
    # Where no mesh is known, several devices may have the sequences, each of them neighbours: a part takes as many of
    # each device, so that none moves.
    devices = 1 if jax.export.is_symbolic_dim(x.shape[0]) else math.gcd(len(x), jax.device_count())
    parts = num_parts(x.shape[0] // devices, x.size * ratio)
    if parts == 1:
        return run(x)
    cut = jnp.moveaxis(x.reshape(devices, parts, -1, *x.shape[1:]), 1, 0)
    out = jax.lax.map(run, cut.reshape(parts, -1, *x.shape[1:]))
    out = out.reshape(parts, devices, -1, *out.shape[2:])
    return jnp.moveaxis(out, 0, 1).reshape(len(x), *out.shape[3:])


class BlockStack(nn.Module):
    """`depth` blocks; their parameters are those of one block, with a leading depth axis.

    Without masks and dropping, many sequences are handled in parts, see `num_parts`.
    """

    config: ModelConfig
    depth: int
    num_heads: int
    epsilon: float
    relative: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        buckets: Int[Array, "1 N N"] | None = None,
        key_mask: Bool[Array, "B N"] | None = None,
        drop_path: Float[np.ndarray, "depth"] | None = None,
        outputs: int | None = None,
    ) -> Float[Array, "B Q D"]:
        """Returns the first `outputs` tokens of the last block, all if None.

        Args:
          drop_path: rate at which each block is dropped; needs an rng "dropout". None for never.
        """
        config = self.config
        block = Block(self.num_heads, config.mlp_ratio, self.epsilon, self.relative, config.compute_dtype, parent=None)
        if self.is_initializing():
            shapes = jax.eval_shape(block.init, jax.random.key(0), x, buckets, key_mask)["params"]
            for name, tree in shapes.items():
                self.param(
                    name, lambda _, tree: jax.tree.map(lambda one: jnp.zeros((self.depth, *one.shape)), tree), tree
                )
        keys = None if drop_path is None else jax.random.split(self.make_rng("dropout"), self.depth)
        each = (self.variables["params"], drop_path, keys)

        def step(x: jax.Array, each: Any, outputs: int | None = None) -> tuple[jax.Array, None]:
            params, rate, key = each
            rngs = None if key is None else {"dropout": key}
            return block.apply({"params": params}, x, buckets, key_mask, rate, outputs, rngs=rngs), None

        # Inside a scan XLA cannot merge the recomputation with the forward pass, so barriers against that are not
        # needed. A scan compiles the code of one block instead of `depth` copies of it.
        scan = functools.partial(jax.lax.scan, rematerialised(step, config.remat, prevent_cse=False))

        # Outside of `run`, which would copy the parameters of all blocks but the last for each part.
        first, last = jax.tree.map(lambda leaf: leaf[:-1], each), jax.tree.map(lambda leaf: leaf[-1], each)

        def run(x: jax.Array) -> jax.Array:
            if outputs is None:
                return scan(x, each)[0]
            return rematerialised(functools.partial(step, outputs=outputs), config.remat)(scan(x, first)[0], last)[0]

        return run(x) if key_mask is not None or drop_path is not None else in_parts(run, x, config.mlp_ratio)
