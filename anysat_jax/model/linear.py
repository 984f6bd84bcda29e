"""A Linear layer that says how a mesh cuts it."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from anysat_jax.model.partitioning import Axes, constrain

Dtype = Any


class Linear(nn.Module):
    """x @ kernel + bias, computed in `dtype`; parameters, their start and their names are those of `nn.Dense`.

    Along "fsdp" the kernel is collected before the product, already in `dtype`; left to itself, the compiler may
    collect the activations instead.

    Attributes:
      cut: mesh axes that cut the kernel's rows and columns while it is used.
      bias_start: how the bias starts.
    """

    features: int
    dtype: Dtype
    cut: tuple[Axes, Axes] = (None, None)
    bias_start: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n F"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_start, (self.features,))
        out = x.astype(self.dtype) @ constrain(kernel.astype(self.dtype), *self.cut)
        return out + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
