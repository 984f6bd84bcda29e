"""From a user's dict of arrays to a Batch."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anysat_jax.batch import Batch, Observation
from anysat_jax.sensors import SENSORS, get_sensor
from anysat_jax.validate.arrays import to_observation
from anysat_jax.validate.extent import check_extents, check_patch_size

SUFFIXES = ("date_mask", "dates", "mask", "present")  # "date_mask" before "mask", which it ends with


def to_batch(data: Mapping[str, Any], patch_size: float, sensors: Sequence[str]) -> Batch:
    """A dict of arrays, checked, as a Batch.

    Args:
      data: for each sensor its standardised values, (B, C, H, W) for an image and (B, T, C, H, W) for a series; for
        each series `<sensor>_dates` (B, T), integer days of the year, 1 January = 0. Optional masks, bool, True where
        valid: `<sensor>_mask` for pixels, (B, [T,] H, W) or (B, [T,] C, H, W); `<sensor>_date_mask` (B, T);
        `<sensor>_present` (B,).
      patch_size: side of a patch in metres.
      sensors: names of the sensors that the model has.

    Returns:
      A batch of numpy arrays without labels.

    Raises:
      TypeError: `data` is not a dict, or `patch_size` is not a number.
      ValueError: anything does not fit; the message names it, says what was expected and what to do.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"data is a {type(data).__name__}; expected a dict of arrays by sensor name")
    grouped = _group(data, sensors)
    if not grouped:
        raise ValueError(f"data is empty; give at least one of the model's sensors: {', '.join(sensors)}")
    observations = {}
    for name, companions in grouped.items():  # a loop, so that warnings know how far away the caller is
        observations[name] = to_observation(get_sensor(name), data[name], companions)
    _check_batch_sizes(observations)
    extent = check_extents(observations)
    check_patch_size(patch_size, extent, tuple(observations))
    _check_presence(observations)
    return Batch(observations, patch_size=float(patch_size))


def _group(data: Mapping[str, Any], sensors: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each sensor of `data` its companions by suffix."""
    grouped: dict[str, dict[str, Any]] = {}
    companions: list[tuple[str, str]] = []
    for key in data:
        name, suffix = _split(key)
        if suffix is None:
            _check_sensor(name, sensors)
            grouped[name] = {}
        else:
            companions.append((name, suffix))
    for name, suffix in companions:
        if name not in grouped:
            _check_sensor(name, sensors)
            raise ValueError(f"data has {f'{name}_{suffix}'!r} but no {name!r}; give both or neither")
        grouped[name][suffix] = data[f"{name}_{suffix}"]
    return grouped


def _split(key: str) -> tuple[str, str | None]:
    """A key's sensor, and its suffix if it is a companion's."""
    for suffix in SUFFIXES:
        if isinstance(key, str) and key.endswith(f"_{suffix}"):
            return key.removesuffix(f"_{suffix}"), suffix
    return key, None


def _check_sensor(name: str, sensors: Sequence[str]) -> None:
    if name in sensors:
        return
    if name in SENSORS:
        raise ValueError(
            f"the model has no sensor {name!r}; it has {', '.join(sensors)}. "
            "A model gets its sensors when it is made: AnySat.from_config(preset, sensors=(...))"
        )
    close = difflib.get_close_matches(str(name), sensors, n=1)
    raise ValueError(
        f"unknown sensor {name!r} in data{f' (did you mean {close[0]!r}?)' if close else ''}. Keys are the model's "
        f"sensors, {', '.join(sensors)}, and <sensor>_dates, <sensor>_mask, <sensor>_date_mask, <sensor>_present. "
        "anysat_jax.sensors.register adds a sensor"
    )


def _check_batch_sizes(observations: Mapping[str, Observation]) -> None:
    sizes = {name: observation.batch_size for name, observation in observations.items()}
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"batch sizes differ: {first!r} has {sizes[first]} tiles, {name!r} has {size}; "
                f"where a tile lacks a sensor, fill in zeros and say so by <sensor>_present (B,)"
            )


def _check_presence(observations: Mapping[str, Observation]) -> None:
    """Every tile must keep a sensor that has a place in it; context alone says nothing about its patches."""
    spatial = [o for name, o in observations.items() if get_sensor(name).kind != "context"]
    if any(observation.present is None for observation in spatial):
        return
    empty = ~np.any([observation.present for observation in spatial], axis=0)
    if empty.any():
        raise ValueError(
            f"tile {int(np.flatnonzero(empty)[0])} has no image or series: every <sensor>_present is False there. "
            "Leave the tile out"
        )
