"""Sensor projectors: from standardised pixels to sub-patch tokens, raster patches, raster sub-patches inside each."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from anysat_jax.batch import Observation
from anysat_jax.model.config import ModelConfig, NormGroups, rematerialised
from anysat_jax.model.layers import Linear, Norm, declare, num_parts, relu
from anysat_jax.model.partitioning import BATCH_AXES, TENSOR, constrain
from anysat_jax.model.positions import date_code
from anysat_jax.sensors import Sensor

TEMPORAL_HEADS = 16
KEY_WIDTH = 8
ATTENTION_DROPOUT = 0.1
NORM_EPSILON = 1e-5

Dtype = Any


def split_patches(image: Float[Array, "B X H W"], grid: tuple[int, int], pixels: int) -> Float[Array, "B N n X*p*p"]:
    """Cuts maps into patches, and these into sub-patches of pixels x pixels; the last axis runs (row, column, X)."""
    batch, channels, height, width = image.shape
    rows, columns = grid
    per_side = (height // (rows * pixels), width // (columns * pixels))
    x = image.reshape(batch, channels, rows, per_side[0], pixels, columns, per_side[1], pixels)
    x = x.transpose(0, 2, 5, 3, 6, 4, 7, 1)
    return x.reshape(batch, rows * columns, per_side[0] * per_side[1], pixels * pixels * channels)


def merge_patches(tokens: Float[Array, "B N n F"], grid: tuple[int, int]) -> Float[Array, "B h w F"]:
    """Returns sub-patch features as a map: the inverse of `split_patches` for one feature vector a sub-patch."""
    batch, _, count, width = tokens.shape
    rows, columns = grid
    side = math.isqrt(count)
    x = tokens.reshape(batch, rows, columns, side, side, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * side, columns * side, width)


class SubpatchEmbed(nn.Module):
    """A convolution whose kernel is its stride, without bias, as one matrix product."""

    dim: int
    pixels: int
    bands: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B N n p*p*C"]) -> Float[Array, "B N n D"]:
        kernel = declare(self, "kernel", self.pixels, self.pixels, self.bands, self.dim)
        return x.astype(self.dtype) @ constrain(kernel.reshape(-1, self.dim).astype(self.dtype), None, None)


class ImageProjector(nn.Module):
    """Sub-patch embedding, then twice (Linear, LayerNorm, ReLU), D to 2D to D. Invalid pixels count as the mean."""

    sensor: Sensor
    dim: int
    dtype: Dtype

    @nn.compact
    def __call__(self, observation: Observation, grid: tuple[int, int], deterministic: bool) -> Float[Array, "B N n D"]:
        # Image projectors have no dropout; the argument is there for the call that all projectors share.
        del deterministic
        values = observation.values
        if observation.pixel_mask is not None:
            values = jnp.where(observation.pixel_mask, values, 0)
        x = constrain(split_patches(values, grid, self.sensor.subpatch_pixels), BATCH_AXES, TENSOR, None, None)
        x = SubpatchEmbed(self.dim, self.sensor.subpatch_pixels, self.sensor.num_bands, self.dtype, name="embed")(x)
        for layer, width in enumerate((2 * self.dim, self.dim)):
            x = Linear(width, self.dtype, name=f"hidden_{layer}")(x)
            x = relu(Norm(NORM_EPSILON, self.dtype, name=f"norm_{layer}")(x))
        return constrain(x, BATCH_AXES, None, None, None)


def num_groups(kind: NormGroups, published: int, channels: int) -> int:
    """Returns the number of groups of a norm: the published one or, with "width", at most a third of the channels."""
    if kind == "published":
        return published
    # The norm of one channel erases everything but the bias, that of two keeps their order alone. A power of two, since
    # these divide every width.
    return 1 << max(min(published, channels // 3), 1).bit_length() - 1


def usable_dates(date_mask: Bool[Array, "B T"] | None) -> Bool[Array, "B T"] | None:
    """Returns the mask, all True for a series without any date."""
    if date_mask is None:
        return None
    # Such a tile lacks the sensor and is masked out later; until then its features must stay finite (0 * nan is nan).
    return jnp.asarray(date_mask) | ~jnp.any(date_mask, axis=1, keepdims=True)


class TemporalAttention(nn.Module):
    """Attention over dates with one learned query a head; the values are the inputs, a slice of channels for each head
    (Garnot and Landrieu 2020, L-TAE).
    """

    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q T D"], date_mask: Bool[Array, "B T"] | None, deterministic: bool
    ) -> Float[Array, "B Q D"]:
        heads, dim = TEMPORAL_HEADS, x.shape[-1]
        query = declare(self, "query", heads, KEY_WIDTH)
        kernel, bias = KeyProjection(heads * KEY_WIDTH, name="key")(dim)
        # Query and key projection are multiplied into one D x 16 matrix first: an eighth of the products of the
        # published order.
        kernel = jnp.einsum("dhk,hk->dh", kernel.reshape(dim, heads, KEY_WIDTH), query)
        bias = jnp.einsum("hk,hk->h", bias.reshape(heads, KEY_WIDTH), query)
        # The softmax is taken in float32: bfloat16 keeps eight bits, too few to add the weights of a hundred dates.
        logits = (x @ kernel.astype(x.dtype)).astype(jnp.float32) + bias[None, None, None]
        logits = logits / math.sqrt(KEY_WIDTH)
        if date_mask is not None:
            # Before the softmax, so that the weights of real dates sum to 1; finite, since -inf - -inf would be NaN.
            logits = jnp.where(date_mask[:, None, :, None], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=2).astype(x.dtype)
        weights = nn.Dropout(self.dropout, deterministic=deterministic)(weights)
        values = x.reshape(*x.shape[:-1], heads, dim // heads)
        return jnp.einsum("bqth,bqthc->bqhc", weights, values).reshape(*x.shape[:2], dim)


class KeyProjection(nn.Module):
    """Holds the parameters of a Linear without applying it."""

    features: int

    @nn.compact
    def __call__(self, dim: int) -> tuple[Float[Array, "D F"], Float[Array, "F"]]:
        return declare(self, "kernel", dim, self.features), declare(self, "bias", self.features)


class SeriesProjector(nn.Module):
    """L-TAE on each pixel: an MLP on each date, a date code, attention over dates, an output MLP.

    Padded dates are excluded from the statistics over dates and from the attention; an invalid value is replaced by a
    learned scalar.
    """

    sensor: Sensor
    dim: int
    dtype: Dtype
    dropout: bool
    norm_groups: NormGroups

    def setup(self) -> None:
        dim, norm = self.dim, functools.partial(Norm, NORM_EPSILON, self.dtype)
        groups = functools.partial(num_groups, self.norm_groups)
        self.pad_value = declare(self, "pad_value")
        widths = (dim // 8, dim // 2, dim, 2 * dim, dim)
        self.hidden = [Linear(width, self.dtype) for width in widths]
        self.norm = [norm(groups(4, width)) for width in widths]
        if self.sensor.normalise_over_dates:
            self.date_norm = norm(groups(TEMPORAL_HEADS, dim))
        rate = self.sensor.dropout if self.dropout else 0.0
        # What they draw depends on their names.
        self.drop = [nn.Dropout(rate, name=f"Dropout_{number}") for number in range(len(widths) + 1)]
        self.attention = TemporalAttention(ATTENTION_DROPOUT if self.dropout else 0.0, self.dtype)
        self.out = Linear(dim, self.dtype)
        self.out_hidden_norm, self.out_norm = norm(groups(4, dim)), norm(groups(TEMPORAL_HEADS, dim))

    def __call__(self, observation: Observation, grid: tuple[int, int], deterministic: bool) -> Float[Array, "B N n D"]:
        pixels, shape = self._pixels(observation, grid)
        pixels = constrain(pixels, BATCH_AXES, TENSOR, None, None)
        mask = usable_dates(observation.date_mask)
        # In float32: bfloat16 holds whole days exactly up to 256 only.
        code = date_code(jnp.asarray(observation.dates, jnp.float32), self.dim, self.sensor.date_period)
        # The widest layer has twice the width. What dropout draws depends on the parts.
        parts = num_parts(pixels.shape[1], math.prod(pixels.shape[:3]) * 2 * self.dim)
        if parts == 1:
            x = self._embed(pixels, mask, code, deterministic)
        else:
            scanned = nn.scan(
                lambda module, _, part: (None, module._embed(part, mask, code, deterministic)),
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=1,
                out_axes=1,
            )
            _, x = scanned(self, None, pixels.reshape(pixels.shape[0], parts, -1, *pixels.shape[2:]))
        return constrain(x.reshape(*shape, self.dim), BATCH_AXES, None, None, None)

    def _embed(
        self,
        pixels: Float[Array, "B Q T C"],
        mask: Bool[Array, "B T"] | None,
        code: Float[Array, "B T D"],
        deterministic: bool,
    ) -> Float[Array, "B Q D"]:
        x = pixels.astype(self.dtype)
        for linear, norm, drop in zip(self.hidden, self.norm, self.drop[:-1], strict=True):
            x = drop(relu(norm(linear(x))), deterministic=deterministic)
        if self.sensor.normalise_over_dates:
            # Padded dates must not count in the mean over dates.
            counts = jnp.ones((1, x.shape[2])) if mask is None else mask.astype(jnp.float32)
            x = self.date_norm(x, (counts / counts.sum(axis=1, keepdims=True))[:, None, :, None])
        x = self.attention(x + code[:, None].astype(x.dtype), mask, deterministic)
        x = self.drop[-1](relu(self.out_hidden_norm(self.out(x))), deterministic=deterministic)
        return self.out_norm(x)

    def _pixels(
        self, observation: Observation, grid: tuple[int, int]
    ) -> tuple[Float[Array, "B Q T C"], tuple[int, int, int]]:
        """Returns the pixels of all patches, invalid values filled, and their shape (B, N, n)."""
        values = observation.values
        if observation.pixel_mask is not None:
            values = jnp.where(observation.pixel_mask, values, self.pad_value)
        batch, dates, bands, height, width = values.shape
        x = split_patches(values.reshape(batch, dates * bands, height, width), grid, 1)
        return x.reshape(batch, -1, dates, bands), x.shape[:3]


def make_projector(sensor: Sensor, config: ModelConfig) -> nn.Module:
    """Makes the projector of a sensor's kind."""
    static = dict(static_argnums=(2, 3))  # grid and deterministic
    if sensor.kind == "image":
        return rematerialised(ImageProjector, config.remat, **static)(sensor, config.dim, config.compute_dtype)
    projector = rematerialised(SeriesProjector, config.remat, **static)
    return projector(sensor, config.dim, config.compute_dtype, config.dropout, config.norm_groups)
