"""Inputs of the model: an Observation for each sensor, and a Batch of them.

Both are pytrees of numpy or jax arrays. Masks are True where valid; `None` means that everything is valid.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Bool, Float, Int

from anysat_jax.sensors import Sensor, get_sensor

Array = Any  # numpy on the host, jax on the device


@flax.struct.dataclass
class Observation:
    """Values of one sensor for B tiles.

    Attributes:
      values: standardised values, float32. An image is (B, C, H, W), a series (B, T, C, H, W).
      dates: days of the year, 1 January = 0; values past 365 are days of a following year. Series only.
      date_mask: True for real dates, False for padding, which does not affect the model. Dates without a valid pixel
        count as padding.
      pixel_mask: True for valid values; the channel axis has length C, or 1 if all bands share one mask. An image has
        (B, C|1, H, W), a series (B, T, C|1, H, W).
      present: True for tiles with a valid pixel of this sensor; for the others its tokens are masked.
    """

    values: Float[Array, "B *T C H W"]
    dates: Int[Array, "B T"] | None = None
    date_mask: Bool[Array, "B T"] | None = None
    pixel_mask: Bool[Array, "B *T c H W"] | None = None
    present: Bool[Array, "B"] | None = None

    @property
    def batch_size(self) -> int:
        return self.values.shape[0]


@flax.struct.dataclass
class Batch:
    """A homogeneous batch: B tiles of one dataset with one patch size.

    Attributes:
      observations: by sensor name. jax sorts the keys, so their order has no meaning.
      labels: targets and bookkeeping, e.g. "tile" (B, K) or (B,), "dense" (B, H, W) on a 10 m grid or that of the
        dataset's card, "valid" (B,) bool: False for the padding of an evaluation's last batch.
      dataset: the dataset's name. Static: a compiled step belongs to one (dataset, patch size).
      patch_size: side of a patch in metres. Static.
    """

    observations: dict[str, Observation]
    labels: dict[str, Array] = dataclasses.field(default_factory=dict)
    dataset: str = flax.struct.field(pytree_node=False, default="")
    patch_size: float = flax.struct.field(pytree_node=False, default=10.0)

    @property
    def batch_size(self) -> int:
        return next(iter(self.observations.values())).batch_size

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensor names in sorted order, which is their order inside jit."""
        return tuple(sorted(self.observations))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the tile's rows and columns."""
        height, width = tile_extent(self.observations)
        return round(height / self.patch_size), round(width / self.patch_size)


def tile_extent(observations: Mapping[str, Observation]) -> tuple[float, float]:
    """Returns height and width of the tile in metres, from the first spatial sensor.

    Raises:
      ValueError: all sensors are context sensors, which do not have an extent.
    """
    for name, observation in observations.items():
        sensor = get_sensor(name)
        if sensor.kind != "context":
            height, width = observation.values.shape[-2:]
            return height * sensor.metres_per_pixel, width * sensor.metres_per_pixel
    raise ValueError(f"no sensor with a spatial extent among {sorted(observations)}; give at least one image or series")


def fake_observation(
    sensor: Sensor, batch_size: int, extent: tuple[float, float], num_dates: int, rng: np.random.Generator
) -> Observation:
    """Returns normal noise in the shape of `sensor` for a tile of `extent` (height, width) metres."""
    height, width = (sensor.pixels(side) for side in extent)
    if not sensor.has_dates:
        return Observation(rng.standard_normal((batch_size, sensor.num_bands, height, width), dtype=np.float32))
    shape = (batch_size, num_dates, sensor.num_bands, height, width)
    dates = np.sort(rng.integers(0, 365, (batch_size, num_dates)), axis=1).astype(np.int32)
    return Observation(
        rng.standard_normal(shape, dtype=np.float32), dates=dates, date_mask=np.ones(dates.shape, np.bool_)
    )


def fake_batch(
    sensors: tuple[str, ...],
    *,
    batch_size: int = 2,
    extent: float | tuple[float, float] = 60.0,
    patch_size: float = 10.0,
    num_dates: int = 4,
    dataset: str = "fake",
    seed: int = 0,
) -> Batch:
    """Returns a batch of noise in the right shapes, for initialisation, tests and ahead-of-time compilation.

    Args:
      extent: side of the tile, or its height and width, in metres.
    """
    rng = np.random.default_rng(seed)
    sides = extent if isinstance(extent, tuple) else (extent, extent)
    observations = {name: fake_observation(get_sensor(name), batch_size, sides, num_dates, rng) for name in sensors}
    return Batch(observations=observations, dataset=dataset, patch_size=float(patch_size))
