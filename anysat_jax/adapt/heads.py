"""Heads: from the encoder's features to a task's answers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from anysat_jax.adapt.tasks import Task

HeadKind = Literal["linear", "mlp"]
HeadInput = Literal["tile", "dense", "mean"]
Upsample = Literal["shuffle", "bilinear"]
NORM_EPSILON = 1e-6

Dtype = Any


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What a head reads, and its layers.

    Attributes:
      kind: "linear" for LayerNorm and Linear (the paper's probe), "mlp" for LayerNorm, Linear, exact GELU, Linear.
      input: "tile" for the tile's vector (D), "dense" for [patch vector, sub-patch feature] of each sub-patch (2D),
        "mean" for their mean over the tile (2D), which gives So2Sat's probe the paper's 29K parameters.
      hidden: width between the two layers of an MLP.
      upsample: how a sub-patch of p x p label pixels is answered: "shuffle" gives each pixel outputs of its own,
        "bilinear" gives the sub-patch one answer and interpolates between sub-patches.
    """

    kind: HeadKind = "linear"
    input: HeadInput = "tile"
    hidden: int = 512
    upsample: Upsample = "shuffle"

    def __post_init__(self) -> None:
        for field, choices in (("kind", HeadKind), ("input", HeadInput), ("upsample", Upsample)):
            if getattr(self, field) not in get_args(choices):
                expected = ", ".join(repr(choice) for choice in get_args(choices))
                raise ValueError(f"head.{field} = {getattr(self, field)!r} must be one of {expected}")
        if self.hidden < 1:
            raise ValueError(f"head.hidden = {self.hidden} must be at least 1")

    def features(self, dim: int) -> int:
        """Width of what the head reads, for an encoder of width `dim`."""
        return dim if self.input == "tile" else 2 * dim

    def to_json(self) -> dict[str, Any]:
        """The head as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The head of `to_json`."""
        return cls(**values)


class Head(nn.Module):
    """LayerNorm and one or two linear layers, on the tile or on each sub-patch.

    Parameters: "norm", "hidden" (an MLP only) and "out".
    """

    head: HeadConfig
    task: Task
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B *hw F"]) -> Float[Array, "B *HW K"]:
        """Logits, or a regression's values before `task.offset` and `task.scale`; always float32.

        Args:
          features: (B, F) for a tile task, (B, h, w, F) for a dense one.

        Returns:
          (B, K), or (B, h * p, w * p, K) where a sub-patch has p x p label pixels, in raster order.
        """
        pixels = self.task.pixels_per_subpatch if self.task.level == "dense" else 1
        shuffled = self.head.upsample == "shuffle"
        x = nn.LayerNorm(NORM_EPSILON, dtype=self.dtype, name="norm")(features)
        if self.head.kind == "mlp":
            x = nn.gelu(nn.Dense(self.head.hidden, dtype=self.dtype, name="hidden")(x), approximate=False)
        outputs = self.task.num_outputs * (pixels**2 if shuffled else 1)
        x = nn.Dense(outputs, dtype=self.dtype, name="out")(x).astype(jnp.float32)
        if pixels == 1:
            return x
        return shuffle_pixels(x, pixels) if shuffled else resize_bilinear(x, pixels)


def shuffle_pixels(x: Float[Array, "B h w p*p*K"], pixels: int) -> Float[Array, "B H W K"]:
    """Lays each sub-patch's outputs out as its pixels x pixels pixels; the last axis runs (row, column, K)."""
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, pixels, pixels, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * pixels, columns * pixels, -1)


def resize_bilinear(x: Float[Array, "B h w K"], pixels: int) -> Float[Array, "B H W K"]:
    """A map on a grid `pixels` times as fine; the sub-patches' centres keep their places."""
    batch, rows, columns, width = x.shape
    return jax.image.resize(x, (batch, rows * pixels, columns * pixels, width), "bilinear")
