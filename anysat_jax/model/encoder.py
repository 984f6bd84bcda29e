"""The encoder: projectors, spatial transformer, combiner, and the four outputs."""

import math
from collections.abc import Collection, Mapping
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from anysat_jax.batch import Batch, Observation
from anysat_jax.model.combiner import Combiner, PatchTokens
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.layers import BlockStack, Norm, declare, drop_path_rates
from anysat_jax.model.positions import subpatch_buckets, subpatch_positions
from anysat_jax.model.projectors import make_projector, merge_patches, split_patches
from anysat_jax.sensors import get_sensor

NORM_EPSILON = 1e-5


class SpatialTransformer(nn.Module):
    """[class token; sub-patch tokens + positions], blocks with relative positions, a final norm (paper: phi^trans)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "S n D"],
        subpatch_metres: float,
        drop_path: Float[np.ndarray, "depth"] | None = None,
        dense: bool = True,
    ) -> tuple[Float[Array, "S D"], Float[Array, "S n D"] | None]:
        """Embeds S patches of n sub-patches each.

        Args:
          drop_path: rate at which each block is dropped, patch by patch; needs an rng "dropout". None for never.
          dense: whether to compute the sub-patches' features.

        Returns:
          The patch embeddings (the class token's output), and the sub-patches' features in raster order, or None.
        """
        config, dtype = self.config, self.config.compute_dtype
        # Patches are square, so n is a square number.
        side = math.isqrt(tokens.shape[1])
        position = subpatch_positions(side, subpatch_metres, config.dim, config.positions)
        class_token = declare(self, "class_token", config.dim)
        first = jnp.broadcast_to(class_token.astype(dtype), (tokens.shape[0], 1, config.dim))
        x = jnp.concatenate([first, tokens.astype(dtype) + jnp.asarray(position, dtype)[None]], axis=1)
        blocks = BlockStack(config, config.depth, config.num_heads, NORM_EPSILON, relative=True, name="blocks")
        buckets = jnp.asarray(subpatch_buckets(side, subpatch_metres, config.positions))[None]
        # Without the sub-patches the last block has one output. Beside a single one that saves little.
        outputs = None if dense or side == 1 else 1
        x = Norm(NORM_EPSILON, dtype, name="norm")(blocks(x, buckets, None, drop_path, outputs))
        return x[:, 0], x[:, 1:] if dense else None


Output = Literal["tile", "patch", "dense", "all"]
OUTPUTS: tuple[Output, ...] = ("tile", "patch", "dense", "all")


@flax.struct.dataclass
class Embedded:
    """Embeddings of each sensor by itself, before the combiner."""

    patches: dict[str, Float[Array, "B N D"]]  # (B, N, D) patch embeddings by sensor; N is 1 for a context sensor
    # (B, N, n, D) sub-patch features of the sensors of which they were wanted, raster order.
    subpatches: dict[str, Float[Array, "B N n D"]]


def is_context(sensor: str) -> bool:
    """Returns whether a sensor enters the combiner as one token of the whole tile."""
    return get_sensor(sensor).kind == "context"


def subpatch_kind(sensor: str, patch_size: float) -> tuple[int, float]:
    """Returns the sub-patches along a side of a patch, and their side in metres.

    Sensors of one kind go through the spatial transformer together.
    """
    if is_context(sensor):
        return 1, patch_size
    known = get_sensor(sensor)
    return known.subpatches_per_side(patch_size), known.subpatch_metres


def grid_sensors(batch: Batch) -> tuple[str, ...]:
    """Returns the sensors with a patch grid, sorted; context sensors such as MODIS have one vector for the tile."""
    return tuple(name for name in batch.sensors if not is_context(name))


def valid_patches(batch: Batch) -> Bool[Array, "B M N"] | None:
    """Returns True for (tile, sensor, patch) with the sensor present and at least one valid pixel; the sensors are
    `grid_sensors`. None where no sensor of the batch has a mask.
    """
    masks = [_valid(batch.observations[name], batch.grid) for name in grid_sensors(batch)]
    if all(mask is None for mask in masks):
        return None
    full = jnp.ones((batch.batch_size, batch.grid[0] * batch.grid[1]), bool)
    return jnp.stack([full if mask is None else jnp.broadcast_to(mask, full.shape) for mask in masks], axis=1)


def _valid(observation: Observation, grid: tuple[int, int]) -> Bool[Array, "B N"] | None:
    """Returns the valid patches of one sensor, (B, N) or (B, 1); None for all."""
    present, pixels = observation.present, observation.pixel_mask
    if pixels is None:
        return None if present is None else jnp.asarray(present)[:, None]
    pixels = jnp.asarray(pixels)
    if observation.date_mask is not None:
        pixels = pixels & observation.date_mask[:, :, None, None, None]
    maps = pixels.any(axis=tuple(range(1, pixels.ndim - 2)))  # over dates and bands
    patches = split_patches(maps[:, None], grid, 1).any(axis=(2, 3))
    return patches if present is None else patches & present[:, None]


def stack_patches(batch: Batch, patches: Mapping[str, Float[Array, "B N D"]]) -> PatchTokens:
    """Stacks all patches of all sensors, in sorted order of the sensors, as the combiner's input.

    Raises:
      ValueError: there are several context sensors.
    """
    # In sorted order, which jit keeps: the student's masks count sensors by it.
    names = grid_sensors(batch)
    contexts = [name for name in batch.sensors if is_context(name)]
    if len(contexts) > 1:
        raise ValueError(f"one context sensor at a time, got {', '.join(contexts)}")
    values = jnp.stack([patches[name] for name in names], axis=1)
    return PatchTokens(
        values=values,
        mask=valid_patches(batch),
        context=patches[contexts[0]] if contexts else None,
        context_mask=batch.observations[contexts[0]].present if contexts else None,
        grid=batch.grid,
        patch_size=batch.patch_size,
    )


class Encoder(nn.Module):
    """AnySat's encoder (paper: section 3). Any subset of `config.sensors` may be in a batch."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.projector = {name: make_projector(get_sensor(name), config) for name in config.sensors}
        self.spatial = SpatialTransformer(config)
        self.combiner = Combiner(config)

    def project(
        self, batch: Batch, deterministic: bool = True, training: Collection[str] = ()
    ) -> dict[str, Float[Array, "B N n D"]]:
        """Returns sub-patch tokens of each sensor (paper: phi^proj), raster patches, raster sub-patches inside each.

        Args:
          deterministic: False applies dropout in every projector; needs an rng "dropout".
          training: sensors whose projectors apply dropout in any case.
        """
        tokens = {}
        for name in batch.sensors:
            if name not in self.projector:
                raise ValueError(f"this model has no projector for sensor {name!r}; it has {', '.join(self.projector)}")
            # The one pixel of a context sensor covers the whole tile, whatever the patches.
            grid = (1, 1) if is_context(name) else batch.grid
            tokens[name] = self.projector[name](batch.observations[name], grid, deterministic and name not in training)
        return tokens

    def embed(
        self,
        batch: Batch,
        deterministic: bool = True,
        training: Collection[str] = (),
        drop_path: Float[np.ndarray, "depth"] | None = None,
        dense: Collection[str] = (),
    ) -> Embedded:
        """Returns patch embeddings of each sensor, and sub-patch features of some, before any mixing of sensors.

        Args:
          deterministic, training: as of `project`.
          drop_path: as of `SpatialTransformer`.
          dense: sensors whose sub-patch features are wanted.
        """
        tokens = self.project(batch, deterministic, training)
        # Sensors whose patches have the same sub-patches go through the spatial transformer together: fewer and larger
        # products use a device better.
        groups: dict[tuple[int, float], list[str]] = {}
        for name in batch.sensors:
            groups.setdefault(subpatch_kind(name, batch.patch_size), []).append(name)
        patches, subpatches = {}, {}
        for (_, metres), names in groups.items():
            # Concatenated within each tile: a mesh shards the tiles, so none of them moves to another device.
            x = jnp.concatenate([tokens[name] for name in names], axis=1)
            wanted = not set(names).isdisjoint(dense)
            patch, subpatch = self.spatial(x.reshape(-1, *x.shape[2:]), metres, drop_path, wanted)
            ends = np.cumsum([tokens[name].shape[1] for name in names])[:-1]
            patches |= zip(names, jnp.split(patch.reshape(*x.shape[:2], -1), ends, axis=1), strict=True)
            if wanted:
                subpatches |= zip(names, jnp.split(subpatch.reshape(x.shape), ends, axis=1), strict=True)
        return Embedded(patches, subpatches)

    def combine(
        self, tokens: PatchTokens, drop_path: Float[np.ndarray, "depth"] | None = None
    ) -> Float[Array, "B 1+K D"]:
        """Returns the tile's vector, then one for each patch (paper: phi^comb). `drop_path`: as of `Combiner`."""
        return self.combiner(tokens, drop_path)

    def __call__(
        self,
        batch: Batch,
        output: Output = "tile",
        output_modality: str | None = None,
        deterministic: bool = True,
        training: Collection[str] = (),
        drop_path: float = 0.0,
    ) -> Float[Array, "..."]:
        """Encodes a batch.

        Args:
          output: "tile" (B, D); "patch" (B, rows, columns, D); "all" (B, 1 + rows * columns, D), the tile's vector
            first; "dense" (B, h, w, 2 D): for each sub-patch of `output_modality`, its patch's vector and its own
            feature, raster order.
          output_modality: the sensor whose sub-patches "dense" describes.
          deterministic: False applies dropout in every projector; needs an rng named "dropout".
          training: sensors whose projectors apply dropout in any case (those that a fine-tuning trains).
          drop_path: rate at which the last block is dropped, the others less, see `drop_path_rates`; needs an rng named
            "dropout" unless 0.

        Raises:
          ValueError: an unknown output, "dense" of a sensor that is not in the batch, or a rate that is not in [0, 1).
        """
        if output not in OUTPUTS:
            raise ValueError(f"unknown output {output!r}; there are {', '.join(OUTPUTS)}")
        if output == "dense" and (output_modality not in batch.observations or is_context(output_modality)):
            spatial = ", ".join(name for name in batch.sensors if not is_context(name))
            raise ValueError(f"output 'dense' needs output_modality, one of {spatial}; got {output_modality!r}")
        spatial_rates, combiner_rates = drop_path_rates(drop_path, self.config.depth)
        dense = (output_modality,) if output == "dense" else ()
        embedded = self.embed(batch, deterministic, training, spatial_rates, dense)
        combined = self.combine(stack_patches(batch, embedded.patches), combiner_rates)
        if output == "all":
            return combined
        if output == "tile":
            return combined[:, 0]
        patch = combined[:, 1:]
        if output == "patch":
            return patch.reshape(patch.shape[0], *batch.grid, -1)
        return dense_features(patch, embedded.subpatches[output_modality], batch.grid)


def dense_features(
    patch: Float[Array, "B N D"], subpatch: Float[Array, "B N n D"], grid: tuple[int, int]
) -> Float[Array, "B h w 2*D"]:
    """Returns [patch vector, sub-patch feature] of every sub-patch, as a map."""
    patch = jnp.broadcast_to(patch[:, :, None], subpatch.shape)
    return merge_patches(jnp.concatenate([patch, subpatch], axis=-1), grid)


def encode(
    config: ModelConfig, params: Mapping, batch: Batch, output: Output = "tile", output_modality: str | None = None
) -> jax.Array:
    """Applies `Encoder(config)` to a batch without dropout: a pure function of the parameters."""
    return Encoder(config).apply({"params": params}, batch, output, output_modality)
