"""What is shown of one sensor of one tile: its colours, which pixels are valid, clouds and calendar dates."""

import dataclasses
import datetime
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Num, Shaped

from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines import crops
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import calendar_days
from data_pipelines.look.stretch import Scale, decibels, limits, quantile_over_dates, stretched

CLOUDY = 50.0  # percent, from which a pixel is left out of stretch and median
MOST_DATES = {"decibel": (0.05, 0.95)}  # shares of a pixel's dates between which a series is stretched
MOST_OPTICAL_DATES = (0.1, 0.5)  # where the bright end may be clouds that no layer tells of
DAY_FORMATS = {"day": "%Y-%m-%d", "month": "%Y-%m", "none": ""}
HEADROOM = 1.3  # white lies that much farther from black in a series


@dataclasses.dataclass(frozen=True)
class View:
    """One sensor of one tile, ready to be drawn; an image counts as a series of one date.

    Attributes:
      sensor: the sensor.
      how: which bands are shown how, in words.
      scale: what the shown values are, for their stretch.
      planes: (T, C, H, W) what is shown: one channel (grey) or three (red, green, blue), not stretched yet.
      valid: (T, H, W) bool, True where the shown bands are valid.
      clear: (T, H, W) bool, valid and not under clouds.
      days: the calendar date of each T; empty for an image, and where the archive tells none.
      day_format: how much of each day is known, as `strftime` takes it.
      cloud: (T,) mean probability of cloud in percent over valid pixels; None where the archive has no cloud layer.
    """

    sensor: Sensor
    how: str
    scale: Scale
    planes: Num[np.ndarray, "T C H W"]
    valid: Bool[np.ndarray, "T H W"]
    clear: Bool[np.ndarray, "T H W"]
    days: tuple[datetime.date, ...]
    day_format: str
    cloud: Float32[np.ndarray, "T"] | None

    @property
    def is_pixel(self) -> bool:
        """Whether it is one pixel, which makes no image."""
        return self.valid.shape[1:] == (1, 1)

    @property
    def best(self) -> Bool[np.ndarray, "T H W"]:
        """What each pixel is judged by: its clear dates, or its valid ones where it is never clear."""
        return self.clear | (self.valid & ~self.clear.any(axis=0))

    def colours(self, dates: Sequence[int]) -> Float32[np.ndarray, "n H W 3"]:
        """Some dates, all stretched alike.

        Black and white are where most dates of a pixel lie: single clouds, shadows and snow may be beyond.
        """
        shares = MOST_DATES.get(self.scale, MOST_OPTICAL_DATES)
        ends = [quantile_over_dates(self.planes, self.best, share) for share in shares]
        low, high = limits(np.stack([values for values, _ in ends]), np.stack([seen for _, seen in ends]), self.scale)
        return stretched(self.planes[list(dates)], low, low + HEADROOM * (high - low))

    def summary(self) -> tuple[Float32[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
        """Colours and validity of one image: of a series the median of what is clear."""
        values, seen = self.planes[0], self.valid[0]
        if len(self.valid) > 1:
            values, seen = quantile_over_dates(self.planes, self.best, 0.5)
        return stretched(values, *limits(values, seen, self.scale)), seen


def view_of(card: DatasetCard, name: str, example: Example) -> View | None:
    """What is shown of a sensor; None where the tile lacks it."""
    if name not in example:
        return None
    sensor = get_sensor(name)
    inner = {key: centre(card, name, example[key]) for key in (name, f"{name}_mask", f"{name}_cloud") if key in example}
    values = _with_dates(sensor, inner[name])
    mask = np.broadcast_to(_mask(sensor, inner), values.shape) & np.isfinite(values)
    planes, valid, scale, how = _planes(card, sensor, values, mask)
    cloud = inner[f"{name}_cloud"][:, 0].astype(np.float32) if f"{name}_cloud" in inner else None
    return View(
        sensor=sensor,
        how=how,
        scale=scale,
        planes=planes,
        valid=valid,
        clear=valid if cloud is None else valid & (cloud < CLOUDY),
        days=_days(card, sensor, example),
        day_format=DAY_FORMATS[card.date_precision.get(name, "day")],
        cloud=None if cloud is None else _mean_where(cloud, valid),
    )


def centre(card: DatasetCard, key: str, array: Shaped[np.ndarray, "*N h w"]) -> Shaped[np.ndarray, "*N H W"]:
    """What batches take of a stored array that reaches beyond the tile's extent."""
    return crops.without_margin(card, key, array)


def _days(card: DatasetCard, sensor: Sensor, example: Example) -> tuple[datetime.date, ...]:
    name = sensor.name
    if not sensor.has_dates or card.date_precision.get(name) == "none":
        return ()
    return tuple(calendar_days(example[f"{name}_dates"], example[f"{name}_years"]))


def _with_dates(sensor: Sensor, array: np.ndarray) -> np.ndarray:
    return array if sensor.has_dates else array[None]


def _mask(sensor: Sensor, inner: Example) -> np.ndarray:
    if f"{sensor.name}_mask" not in inner:
        return np.ones((1, 1, 1, 1), np.bool_)
    return _with_dates(sensor, inner[f"{sensor.name}_mask"])


def _mean_where(values: np.ndarray, where: np.ndarray) -> Float32[np.ndarray, "T"]:
    return ((values * where).sum(axis=(1, 2)) / np.maximum(where.sum(axis=(1, 2)), 1)).astype(np.float32)


def _planes(
    card: DatasetCard, sensor: Sensor, values: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, Bool[np.ndarray, "T H W"], Scale, str]:
    """The channels to show, where all of them are valid, their scale, and what they are in words."""
    if sensor.bands[:2] in (("VV", "VH"), ("HH", "HV")):
        first, second = sensor.bands[:2]
        power = decibels(values[:, :2], mask[:, :2])
        planes = np.concatenate([power, power[:, :1] - power[:, 1:]], axis=1)
        return planes, mask[:, :2].all(axis=1), "decibel", f"false colour ({first}, {second}, {first}/{second}; dB)"
    channels = list(card.natural_colour.get(sensor.name, (0,)))
    names = " ".join(sensor.bands[channel] for channel in channels)
    how = "natural colour" if len(channels) == 3 else "grey"
    scale = "bytes" if values.dtype == np.uint8 else "reflectance"
    return values[:, channels], mask[:, channels].all(axis=1), scale, f"{how} ({names})"
