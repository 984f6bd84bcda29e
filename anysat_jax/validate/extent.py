"""Checks in metres: do the sensors cover the same tile, and does the patch size fit tile and sensors?"""

import math
import numbers
from collections.abc import Mapping

from anysat_jax.batch import Observation
from anysat_jax.sensors import Sensor, get_sensor

_MICRONS = 1_000_000  # lengths are compared as whole micrometres: 0.2 m is not exact in binary


def check_extents(observations: Mapping[str, Observation]) -> tuple[float, float]:
    """Height and width of the tile in metres, on which all spatial sensors must agree.

    Raises:
      ValueError: two sensors cover different extents, or there are context sensors only.
    """
    spatial = {name: o for name, o in observations.items() if get_sensor(name).kind != "context"}
    if not spatial:
        raise ValueError(
            f"only context sensors are given ({', '.join(observations)}); they say nothing about the tile's extent: "
            "give at least one image or series with them"
        )
    (first, reference), *others = ((name, _extent(name, o)) for name, o in spatial.items())
    for name, extent in others:
        if [_microns(side) for side in extent] != [_microns(side) for side in reference]:
            raise ValueError(
                f"sensors disagree on the tile's extent: {_describe(first, spatial[first])}, but "
                f"{_describe(name, spatial[name])}. Crop or resample one of them; all must cover the same ground"
            )
    return reference


def check_patch_size(patch_size: float, extent: tuple[float, float], sensors: tuple[str, ...]) -> None:
    """Whether a patch of `patch_size` metres divides the tile and is a whole number of every sensor's sub-patches.

    Raises:
      TypeError: the patch size is not a number.
      ValueError: it does not fit; the message names the patch sizes that would do.
    """
    if not isinstance(patch_size, numbers.Real) or isinstance(patch_size, bool):
        raise TypeError(f"patch_size is {patch_size!r}; it must be a number of metres")
    if not (math.isfinite(patch_size) and patch_size > 0):
        raise ValueError(f"patch_size is {patch_size}; it must be a positive number of metres")
    tile = f"{extent[0]:g} x {extent[1]:g} m"
    if _microns(patch_size) > min(_microns(side) for side in extent):
        problem = f"a patch of {patch_size:g} m is larger than the tile ({tile}, height x width)"
    elif any(_microns(side) % _microns(patch_size) for side in extent):
        problem = f"a patch of {patch_size:g} m does not divide the tile ({tile}, height x width)"
    else:
        problem = _subpatch_problem(patch_size, sensors)
    if problem:
        raise ValueError(f"{problem}. {_advice(extent, sensors)}")


def fitting_patch_sizes(extent: tuple[float, float], sensors: tuple[str, ...]) -> list[float]:
    """The patch sizes, in metres, that divide a tile of `extent` (height, width) and hold whole sub-patches only."""
    step = math.lcm(*(_microns(s.subpatch_metres) for s in _spatial(sensors)))
    side = math.gcd(*(_microns(length) for length in extent))
    if side % step:
        return []
    steps = side // step
    return [count * step / _MICRONS for count in range(1, steps + 1) if steps % count == 0]


def _subpatch_problem(patch_size: float, sensors: tuple[str, ...]) -> str | None:
    for sensor in _spatial(sensors):
        if _microns(patch_size) % _microns(sensor.subpatch_metres):
            what = "pixels" if sensor.subpatch_pixels == 1 else f"sub-patches ({sensor.subpatch_pixels} pixels)"
            metres = f"{sensor.subpatch_metres:g} m"
            return f"a patch of {patch_size:g} m is not a whole number of {sensor.name!r} {what} of {metres}"
    return None


def _advice(extent: tuple[float, float], sensors: tuple[str, ...]) -> str:
    """Which patch sizes would do for this tile and these sensors, or what keeps every one from doing."""
    names = ", ".join(s.name for s in _spatial(sensors))
    sizes = fitting_patch_sizes(extent, sensors)
    coarsest = max(_spatial(sensors), key=lambda s: s.subpatch_metres)
    if sizes:
        text = (
            f"Patch sizes that would do for this tile and its sensors ({names}): {', '.join(f'{s:g}' for s in sizes)} m"
        )
    else:
        text = f"No patch size does for this tile and its sensors ({names}): crop it to a multiple of all sub-patches"
    if coarsest.subpatch_metres > 10:
        text += (
            f". {coarsest.name!r} has pixels of {coarsest.metres_per_pixel:g} m and wants patches of multiples of "
            f"{coarsest.subpatch_metres:g} m; for finer ones, resample it and register the result as another sensor"
        )
    return text


def _spatial(sensors: tuple[str, ...]) -> list[Sensor]:
    return [sensor for sensor in map(get_sensor, sensors) if sensor.kind != "context"]


def _extent(name: str, observation: Observation) -> tuple[float, float]:
    height, width = observation.values.shape[-2:]
    metres = get_sensor(name).metres_per_pixel
    return height * metres, width * metres


def _describe(name: str, observation: Observation) -> str:
    height, width = observation.values.shape[-2:]
    extent = _extent(name, observation)
    return (
        f"{name!r} covers {extent[0]:g} x {extent[1]:g} m ({height} x {width} pixels of "
        f"{get_sensor(name).metres_per_pixel:g} m)"
    )


def _microns(metres: float) -> int:
    return max(round(metres * _MICRONS), 1)
