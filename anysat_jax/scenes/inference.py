"""The model on tiles of a scene: what a pixel of the result is, and the compiled program."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32

from anysat_jax.batch import Batch, Observation
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, apply_network
from anysat_jax.downstream.task import Task
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import encode
from anysat_jax.normalise import BandStatistics
from anysat_jax.sensors import get_sensor
from anysat_jax.serve import predictions
from anysat_jax.weights.exported import Exported


@dataclasses.dataclass(frozen=True)
class Product:
    """The meaning of a pixel of the result."""

    output: str  # "patch" or "dense" features, "map" or "tile": a dense or a tile task's predictions
    metres: float  # side of a pixel
    bands: int  # features, classes or 1
    channels: int  # numbers that the model gives for it: as many, or a probability of each class
    sensor: str | None = None  # whose sub-patches "dense" describes
    classes: bool = False  # whether the one band is the number of the most probable class


def choose_features(
    sensors: Sequence[str], patch_size: float, resolution: float, dim: int, sensor: str | None = None
) -> Product:
    """Returns the features whose pixels have a side of `resolution` metres.

    Args:
      sensors: those of the request.
      dim: width of the model.
      sensor: whose sub-patches the pixels are; None: the first with such sub-patches, Sentinel-2 before others.

    Raises:
      ConfigError: there are none; the message lists the resolutions that there are.
    """
    sides = {name: get_sensor(name).subpatch_metres for name in sensors}
    ordered = sorted(sensors, key=lambda name: (name != "s2", sensors.index(name)))
    if sensor is not None and sensor not in sides:
        raise ConfigError(f"--output-modality {sensor}: the request has {', '.join(sensors)}; choose one of them")
    fitting = [name for name in ([sensor] if sensor else ordered) if math.isclose(sides[name], resolution)]
    if fitting:
        return Product("dense", resolution, 2 * dim, 2 * dim, fitting[0])
    if math.isclose(resolution, patch_size) and sensor is None:
        return Product("patch", resolution, dim, dim)
    possible = ", ".join(f"{side:g} (sub-patches of {name})" for name, side in sides.items())
    raise ConfigError(
        f"--resolution {resolution:g} is no size of what the model describes{f' of {sensor}' if sensor else ''}; "
        f"possible are {possible} and {patch_size:g} (patches, without --output-modality)"
    )


def task_of(weights: Exported) -> Task:
    """Returns the task of the weights' head.

    Raises:
      ConfigError: they have none.
    """
    if weights.head is None:
        raise ConfigError("the weights have no head: give those of a finished fine-tuning or probing, or use embed")
    return Task.from_json(weights.head.task)


def choose_predictions(task: Task, tile: float, sensors: Sequence[str], probabilities: bool) -> Product:
    """Returns the predictions of a task: pixels of its label map, or one for each tile of `tile` metres.

    Raises:
      ConfigError: the request lacks the sensor of whose sub-patches the map is made.
    """
    if task.sensor and task.sensor not in sensors:
        raise ConfigError(
            f"the weights' map is made of the sub-patches of {task.sensor!r}, and the request has "
            f"{', '.join(sensors)}; give --{task.sensor}"
        )
    classes = task.kind == "class" and not probabilities
    dense = task.level == "dense"
    bands = 1 if classes else task.num_outputs
    return Product("map" if dense else "tile", task.metres if dense else tile, bands, task.num_outputs, classes=classes)


def class_colours(task: Task) -> tuple[tuple[int, int, int], ...]:
    """Returns the colours of a task's classes, red, green and blue in 0..255; some for a task without."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    colours = task.colours or [colormaps["tab20"](number % 20)[:3] for number in range(len(task.classes))]
    return tuple(tuple(round(255 * part) for part in to_rgb(colour)) for colour in colours)


# ---------------------------------------------------------------- the program

Program = Callable[[Batch], jax.Array]  # of a batch in native units: the pixels of each tile, (B, h, w, K)


def make_program(
    weights: Exported,
    product: Product,
    statistics: Mapping[str, BandStatistics | None],
    devices: int = 1,
) -> Program:
    """Returns the function of batches, compiled for each set of shapes; their tiles are divided between the devices.

    Raises:
      ConfigError: there are fewer devices.
    """
    local = jax.local_devices()
    if not 1 <= devices <= len(local):
        raise ConfigError(f"--devices {devices}: this machine has {len(local)} ({local[0].platform})")
    mesh = Mesh(np.asarray(local[:devices]), ("data",))
    by_tile, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    params, network = {"encoder": weights.encoder_params}, None
    if product.output in ("map", "tile"):
        network = NetworkConfig(weights.model, HeadConfig(**weights.head.config), task_of(weights))
        params["head"] = weights.head.params
    moments = {name: one and (one.mean, one.std) for name, one in statistics.items()}
    params, moments = jax.device_put((params, moments), whole)
    return lambda batch: _run(network or weights.model, product, params, moments, jax.device_put(batch, by_tile))


Moments = Mapping[str, tuple[Float[Array, "C"], Float[Array, "C"]] | None]


@functools.partial(jax.jit, static_argnames=("network", "product"))
def _run(
    network: NetworkConfig | ModelConfig, product: Product, params: Any, moments: Moments, batch: Batch
) -> Float32[Array, "B h w K"]:
    """Returns the result on a batch's tiles."""
    observations = {
        name: one.replace(values=_standardised(one, moments[name])) for name, one in batch.observations.items()
    }
    batch = batch.replace(observations=observations)
    if isinstance(network, ModelConfig):
        out = encode(network, params["encoder"], batch, product.output, product.sensor).astype(jnp.float32)
    else:
        out = apply_network(network, params, batch)
        out = predictions(network.task, out[:, None, None] if product.output == "tile" else out)
    return out


def _standardised(one: Observation, moments: tuple[Array, Array] | None) -> Float[Array, "B *T C H W"]:
    if moments is None:
        return one.values
    mean, std = (each.reshape((1,) * (one.values.ndim - 3) + (-1, 1, 1)) for each in moments)
    return jnp.where(one.pixel_mask, (one.values - mean) / std, 0)
