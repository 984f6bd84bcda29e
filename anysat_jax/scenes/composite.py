"""The input of a scene as an image: natural colour, or radar in false colour, on the pixels of the result."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from anysat_jax.scenes.reading import Fields
from anysat_jax.scenes.tiles import cell_sums
from anysat_jax.sensors import COLOURS_NM, Sensor, get_sensor
from data_pipelines.bands import SMALLEST_POWER
from data_pipelines.plots.colours import limits, quantile_over_dates, stretched

NEAR_NM = 60.0  # from the middle of a colour, up to which a band counts as it
MOST_DATES = 24  # evenly spaced ones of a long series: a median of them is as good


@dataclasses.dataclass(frozen=True)
class Composite:
    """A sensor's bands as colours, with the stretch of the whole scene; JSON-able by `dataclasses.asdict`."""

    sensor: str
    channels: tuple[int, ...]  # of the sensor's bands
    power: bool  # whether values are linear power, shown in dB
    low: tuple[float, ...]  # becomes black, for each channel
    high: tuple[float, ...]  # becomes white

    @property
    def title(self) -> str:
        """The bands in words."""
        bands = get_sensor(self.sensor).bands
        return f"{self.sensor} {', '.join(bands[channel] for channel in self.channels)}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Composite":
        """Returns the composite that JSON holds."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def image(self, fields: Fields, shape: tuple[int, int]) -> UInt8[np.ndarray, "3 h w"]:
        """Returns red, green and blue of h x w pixels on the ground of the sensor's arrays; 0 where nothing is valid.

        A colour of a valid pixel is at least 1.
        """
        values, seen = _median(self.sensor, self.channels, self.power, fields, shape)
        low, high = (np.asarray(each, np.float32) for each in (self.low, self.high))
        colours = np.moveaxis(stretched(values, low, high), -1, 0)
        return np.where(seen, np.rint(1 + 254 * colours), 0).astype(np.uint8)


def fit_composite(sensors: Sequence[str], tiles: Sequence[Mapping[str, Fields]]) -> Composite:
    """Returns the composite of the sensor that shows colours best, stretched for sampled tiles, at least one."""

    def rank(name: str) -> tuple[int, float]:  # colours, then radar, then grey, and fine pixels
        return (1, 2, 3).index(len(_channels(get_sensor(name)))), -get_sensor(name).metres_per_pixel

    name = max((one for one in sensors if get_sensor(one).kind != "context"), key=rank)
    channels, radar = _channels(get_sensor(name)), _is_radar(get_sensor(name))
    of_sensor = [tile[name] for tile in tiles]
    # Powers are never below 0 but for subtracted noise.
    power = radar and not any((one.values * one.valid).min(initial=0) < -1 for one in of_sensor)
    images = [_median(name, channels, power, one, one.valid.shape[-2:]) for one in of_sensor]
    values = np.concatenate([values.reshape(len(values), -1) for values, _ in images], axis=1)
    seen = np.concatenate([seen.reshape(-1) for _, seen in images])
    low, high = limits(values[:, None], seen[None], "decibel" if radar else "reflectance")
    return Composite(name, channels, power, tuple(map(float, low)), tuple(map(float, high)))


def _is_radar(sensor: Sensor) -> bool:
    return sensor.bands[:2] in (("VV", "VH"), ("HH", "HV"))


def _channels(sensor: Sensor) -> tuple[int, ...]:
    """Returns the bands shown as red, green and blue, a radar's polarisations, or the first band as grey."""
    if _is_radar(sensor):
        return (0, 1)
    if {"R", "G", "B"} <= set(sensor.bands):
        return tuple(sensor.bands.index(band) for band in "RGB")
    centres = np.asarray(sensor.wavelengths_nm or [0.0])
    nearest = [int(abs(centres - COLOURS_NM[band]).argmin()) for band in "RGB"]
    if all(abs(centres[channel] - COLOURS_NM[band]) <= NEAR_NM for channel, band in zip(nearest, "RGB", strict=True)):
        return tuple(nearest)
    return (0,)


def _median(
    name: str, channels: tuple[int, ...], to_decibels: bool, fields: Fields, shape: tuple[int, int]
) -> tuple[Float32[np.ndarray, "C h w"], Bool[np.ndarray, "h w"]]:
    """Returns the median over dates of the shown channels, averaged to h x w pixels, and True where there is one."""
    dates = get_sensor(name).has_dates
    values, valid = (fields.values, fields.valid) if dates else (fields.values[None], fields.valid[None])
    some = np.unique(np.linspace(0, max(len(values) - 1, 0), min(MOST_DATES, len(values))).round().astype(int))
    values, valid = values[some][:, channels], valid[some, 0]
    if to_decibels:
        values = 10 * np.log10(np.maximum(values, np.float32(SMALLEST_POWER)))
    if _is_radar(get_sensor(name)):  # the ratio of powers is a difference of decibels
        values = np.concatenate([values, values[:, :1] - values[:, 1:]], axis=1)
    if not len(values):
        return np.zeros((values.shape[1], *shape), np.float32), np.zeros(shape, np.bool_)
    middle, seen = quantile_over_dates(values, valid, 0.5)
    count = cell_sums(seen, shape)
    means = cell_sums(np.where(seen, middle, 0), shape) / np.maximum(count, 1)
    return means.astype(np.float32), count > 0
