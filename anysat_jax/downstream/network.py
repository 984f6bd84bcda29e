"""Network of a task: encoder and head in one parameter tree, and its pure functions."""

import dataclasses
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from anysat_jax.batch import Batch
from anysat_jax.downstream.task import Task
from anysat_jax.downstream.trainable import Params
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, is_context
from anysat_jax.model.init import initial_value
from anysat_jax.model.layers import Norm
from anysat_jax.sensors import get_sensor
from anysat_jax.train.config import POSITIVE, Section, checked, one_of

NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class HeadConfig(Section):
    """The section `head`: input and layers of a head."""

    NAME = "head"
    # "linear" for LayerNorm and Linear (the paper's probe), "mlp" for LayerNorm, Linear, exact GELU, Linear.
    kind: str = checked(one_of("linear", "mlp"), "linear")
    # "tile" for the tile's vector (D), "dense" for [patch vector, sub-patch feature] of each sub-patch (2D), "mean" for
    # their mean over the tile (2D), which gives So2Sat's probe the paper's 29K parameters.
    input: str = checked(one_of("tile", "dense", "mean"), "tile")
    hidden: int = checked(POSITIVE, 512)  # width between the two layers of an MLP
    # Prediction of a sub-patch of p x p label pixels: "shuffle" gives each pixel outputs of its own, "bilinear" gives
    # the sub-patch one output and interpolates between sub-patches.
    upsample: str = checked(one_of("shuffle", "bilinear"), "shuffle")

    def features(self, dim: int) -> int:
        """Returns the width of the head's input for an encoder of width `dim`."""
        return dim if self.input == "tile" else 2 * dim

    def check_fits(self, level: str) -> None:
        """Checks that the head's input is one for tasks of a level; raises ConfigError if it is not."""
        fitting = ("dense",) if level == "dense" else ("tile", "mean")
        if self.input not in fitting:
            wanted = " or ".join(map(repr, fitting))
            raise ConfigError(f"head.input = {self.input!r} does not fit task.level = {level!r}, which wants {wanted}")


class Head(nn.Module):
    """LayerNorm and one or two linear layers, on the tile or on each sub-patch.

    Parameters: "norm", "hidden" (an MLP only) and "out".
    """

    head: HeadConfig
    task: Task
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B *hw F"]) -> Float[Array, "B *HW K"]:
        """Returns logits, or a regression's values before `task.offset` and `task.scale`; float32.

        Args:
          features: (B, F) for a tile task, (B, h, w, F) for a dense one.

        Returns:
          (B, K), or (B, h * p, w * p, K) where a sub-patch has p x p label pixels, in raster order.
        """
        pixels, shuffled = self.task.pixels_per_subpatch, self.head.upsample == "shuffle"
        x = Norm(NORM_EPSILON, self.dtype, name="norm")(features)
        if self.head.kind == "mlp":
            x = nn.gelu(nn.Dense(self.head.hidden, dtype=self.dtype, name="hidden")(x), approximate=False)
        outputs = self.task.num_outputs * (pixels**2 if shuffled else 1)
        # Losses and means of logits lose too much in bfloat16.
        x = nn.Dense(outputs, dtype=self.dtype, name="out")(x).astype(jnp.float32)
        if pixels == 1:
            return x
        if shuffled:
            return shuffle_pixels(x, pixels)
        # The centres of the sub-patches keep their positions.
        return jax.image.resize(x, (len(x), x.shape[1] * pixels, x.shape[2] * pixels, x.shape[3]), "bilinear")


def shuffle_pixels(x: Float[Array, "B h w p*p*K"], pixels: int) -> Float[Array, "B H W K"]:
    """Arranges each sub-patch's outputs as its pixels x pixels pixels; the last axis is (row, column, K)."""
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, pixels, pixels, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * pixels, columns * pixels, -1)


# Scale of a fresh head's kernel: large first gradients would spoil a trained encoder.
FIRST_LOGITS = 0.1


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Model, head and task. Hashable: a static argument of jitted functions.

    Raises:
      ConfigError: the head does not fit the task, or the task's sensor has no projector.
    """

    model: ModelConfig
    head: HeadConfig
    task: Task

    def __post_init__(self) -> None:
        self.head.check_fits(self.task.level)
        if self.task.sensor and self.task.sensor not in self.model.sensors:
            raise ConfigError(
                f"task.sensor = {self.task.sensor!r} has no projector in this model; "
                f"it has {', '.join(self.model.sensors)}"
            )


class Network(nn.Module):
    """Encoder and head. Parameters: {"encoder": as `Encoder`, "head": as `Head`}."""

    config: NetworkConfig

    def setup(self) -> None:
        config = self.config
        self.encoder = Encoder(config.model)
        self.head = _head(config)

    def __call__(self, batch: Batch, **dropping: Any) -> Float[Array, "B *HW K"]:
        """Returns the head's outputs, float32: (B, K) for a tile task, (B, H, W, K) for a dense one; see `features`."""
        return self.head(self.features(batch, **dropping))

    def features(
        self, batch: Batch, *, training: Collection[str] = (), drop_path: float = 0.0
    ) -> Float[Array, "B *hw F"]:
        """Returns the head's input, float32: (B, D), (B, 2D) or (B, h, w, 2D).

        A tile without the sensor of the dense vectors has zeros in place of its sub-patch features.

        Args:
          training: names of the sensors whose projectors apply dropout; needs an rng "dropout" unless empty.
          drop_path: probability of skipping the encoder's last block, see `anysat_jax.model.layers`; needs an rng
            "dropout" unless 0.

        Raises:
          ValueError: a sensor of the batch has no projector, or the task's sensor is not in the batch.
        """
        dropping = dict(training=training, drop_path=drop_path)
        if self.config.head.input == "tile":
            return self.encoder(batch, "tile", **dropping).astype(jnp.float32)
        sensor = self.config.task.sensor or finest_sensor(batch)
        dense = self.encoder(batch, "dense", sensor, **dropping).astype(jnp.float32)
        # The sub-patch features of an absent sensor are those of its padding: a head would take them for real ones.
        present = batch.observations[sensor].present
        if present is not None:
            of_patch = jnp.arange(dense.shape[-1]) < self.config.model.dim
            dense = jnp.where(present[:, None, None, None] | of_patch[None, None, None], dense, 0)
        return dense if self.config.head.input == "dense" else dense.mean(axis=(1, 2))


def finest_sensor(batch: Batch) -> str:
    """Returns the sensor with the smallest sub-patches (of several: Sentinel-2), which the input "mean" uses."""
    spatial = [name for name in batch.sensors if not is_context(name)]
    return min(spatial, key=lambda name: (get_sensor(name).subpatch_metres, name != "s2"))


def head_shapes(network: NetworkConfig) -> Params:
    """Returns shapes and dtypes of the head's parameters."""
    side = (1, 1) if network.task.level == "dense" else ()
    features = jax.ShapeDtypeStruct((1, *side, network.head.features(network.model.dim)), jnp.float32)
    return jax.eval_shape(_head(network).init, jax.random.key(0), features)["params"]


def init_head(network: NetworkConfig, seed: int) -> Params:
    """Returns initial parameters of the head, float32 numpy arrays, sampled leaf by leaf like the model's."""
    shapes = flax.traverse_util.flatten_dict(head_shapes(network))
    # Leaf by leaf from its name, so that a leaf does not depend on which others there are.
    values = {path: initial_value(("head", *path), leaf.shape, seed) for path, leaf in shapes.items()}
    values["out", "kernel"] *= np.float32(FIRST_LOGITS)
    return flax.traverse_util.unflatten_dict(values)


def apply_network(
    network: NetworkConfig,
    params: Params,
    batch: Batch,
    rng: jax.Array | None = None,
    training: Collection[str] = (),
    drop_path: float = 0.0,
) -> Float[Array, "B *HW K"]:
    """Applies the network to a batch, see `Network`; without `rng`, as in an evaluation, nothing is dropped."""
    dropping = {} if rng is None else dict(training=tuple(training), drop_path=drop_path, rngs={"dropout": rng})
    return Network(network).apply({"params": params}, batch, **dropping)


def network_features(network: NetworkConfig, params: Params, batch: Batch) -> Float[Array, "B *hw F"]:
    """Returns the head's input in evaluation mode; needs params["encoder"] only."""
    return Network(network).apply({"params": params}, batch, method=Network.features)


def apply_head(network: NetworkConfig, head_params: Params, features: Float[Array, "B *hw F"]) -> Array:
    """Applies the head to `network_features` of any float dtype: the same as `apply_network` on their batch."""
    return _head(network).apply({"params": head_params}, features.astype(np.float32))


def _head(network: NetworkConfig) -> Head:
    return Head(network.head, network.task, network.model.compute_dtype)
