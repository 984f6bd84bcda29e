"""Colours of sensors and labels: band combinations, contrast stretches, validity and clouds, palettes of classes."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Num

from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import calendar_days
from data_pipelines.windows import in_list, without_margin

PERCENTILES = (2.0, 98.0)  # become black and white
LARGEST_POWER = 10.0  # most pixels of a tile stay below it, even of a city; ALOS's digital numbers are hundreds
SMALLEST_SHOWN = 1e-6  # linear power below it is as dark as it
STRIPE = 5  # width in pixels of the display
HAZE = 0.7  # fraction of the darkest reflectance that is treated as haze
DECIBELS = 8.0  # range that radar is stretched over at least: speckle alone fills some
HATCH = ((1.0, 1.0, 1.0), (0.62, 0.62, 0.66))

Scale = Literal["bytes", "reflectance", "decibel"]


def limits(
    values: Num[np.ndarray, "*T C H W"], use: Bool[np.ndarray, "*T H W"], scale: Scale
) -> tuple[Float32[np.ndarray, "C"], Float32[np.ndarray, "C"]]:
    """Returns the black and white points of each channel, from percentiles over the pixels to use; 0 and 1 without any.

    All channels span the same range, so that colours keep their strength and noise of a uniform tile is not amplified:
    "bytes", balanced for the eye already, share one black point; from "reflectance", most of the darkest value is
    subtracted as haze; "decibel" puts grey in the middle of each channel and spans at least DECIBELS. The upper limit
    of a channel is always larger than the lower one.
    """
    channels = np.moveaxis(values, -3, 0).reshape(values.shape[-3], -1)[:, use.reshape(-1)].astype(np.float32)
    if not channels.size:
        return np.zeros(len(channels), np.float32), np.ones(len(channels), np.float32)
    # Percentiles: a few glints or dead pixels would take the whole range.
    low, high = np.percentile(channels, PERCENTILES, axis=1).astype(np.float32)
    if scale == "decibel":
        span = max(float((high - low).max()), DECIBELS)
        low = (low + high - span) / 2
    else:
        low = np.full_like(low, low.min()) if scale == "bytes" else np.minimum(low, HAZE * low)
        span = float((high - low).max())
    if span <= 1e-6 * float(np.abs(high).max()):
        # A constant image has no contrast; draw it in mid-grey.
        low, span = low - 0.5, 1.0
    return low.astype(np.float32), (low + span).astype(np.float32)


def stretched(
    values: Num[np.ndarray, "*T C H W"], low: Float32[np.ndarray, "C"], high: Float32[np.ndarray, "C"]
) -> Float32[np.ndarray, "*T H W 3"]:
    """Returns colours in [0, 1] of one channel (grey) or three (red, green, blue); NaN becomes 0."""
    scaled = (np.moveaxis(values, -3, -1).astype(np.float32) - low) / (high - low)
    colours = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    return np.broadcast_to(colours, (*colours.shape[:-1], 3))


def decibels(values: Num[np.ndarray, "*T C H W"], valid: Bool[np.ndarray, "*T C H W"]) -> Float32[np.ndarray, "..."]:
    """Returns radar backscatter in dB; values of which some are negative are in dB already.

    Linear power and amplitudes in digital numbers, whose power is their square, are never negative; only amplitudes are
    large. Their dB lack the calibration constant, which a stretch removes anyway.
    """
    shown = values[valid]
    if (shown < 0).any():
        return values.astype(np.float32)
    factor = 20 if shown.size and np.median(shown) > LARGEST_POWER else 10
    return (factor * np.log10(np.maximum(values.astype(np.float32), SMALLEST_SHOWN))).astype(np.float32)


def quantile_over_dates(
    values: Num[np.ndarray, "T C H W"], use: Bool[np.ndarray, "T H W"], fraction: float
) -> tuple[Float32[np.ndarray, "C H W"], Bool[np.ndarray, "H W"]]:
    """Returns the quantile over the dates to use, 0 where there are none, and where there are some (True)."""
    # Dates that are not used sort last, so that the quantile is a position among the first ones.
    ordered = np.sort(np.where(use[:, None], values, np.inf).astype(np.float32), axis=0)
    position = np.floor(fraction * np.maximum(use.sum(axis=0) - 1, 0)).astype(np.int64)
    picked = np.take_along_axis(ordered, position[None, None], axis=0)[0]
    seen = use.any(axis=0)
    return np.where(seen, picked, 0).astype(np.float32), seen


def hatched(
    colours: Float32[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], display: int
) -> Float32[np.ndarray, "H W 3"]:
    """Returns an image with diagonal stripes where it is not valid, repeated to about `display` pixels if smaller."""
    # Repeated before the stripes are drawn, which are of the display's pixels, not of a coarse image's.
    factor = max(1, display // max(valid.shape))
    image, mask = (a.repeat(factor, axis=0).repeat(factor, axis=1) for a in (colours, valid))
    rows, columns = np.indices(mask.shape)
    width = max(1, round(STRIPE * max(mask.shape) / display))
    stripes = np.asarray(HATCH, np.float32)[(rows + columns) // width % 2]
    return np.where(mask[..., None], image, stripes)


CLOUDY = 50.0  # percent from which a pixel is left out of stretch and median
MOST_DATES = {"decibel": (0.05, 0.95)}  # quantiles of a pixel's dates between which a series is stretched
MOST_OPTICAL_DATES = (0.1, 0.5)  # the bright end may be clouds that the archive does not mask
DAY_FORMATS = {"day": "%Y-%m-%d", "month": "%Y-%m", "none": ""}
HEADROOM = 1.3  # factor of the range of a series, so that bright dates are not clipped


@dataclasses.dataclass(frozen=True)
class View:
    """One sensor of one tile, ready to be drawn; an image counts as a series of one date."""

    sensor: Sensor
    how: str  # the bands and how they are shown, in words
    scale: Scale  # kind of the values, for their stretch
    planes: Num[np.ndarray, "T C H W"]  # one channel (grey) or three (red, green, blue), not stretched yet
    valid: Bool[np.ndarray, "T H W"]  # True where the shown bands are valid
    clear: Bool[np.ndarray, "T H W"]  # valid and not under clouds
    days: tuple[datetime.date, ...]  # the calendar date of each T; empty for an image, and if the archive has no dates
    day_format: str  # `strftime` format of the part of a day that is known
    # Mean probability of cloud in percent over valid pixels; None if the archive has no cloud layer.
    cloud: Float32[np.ndarray, "T"] | None

    @property
    def is_pixel(self) -> bool:
        """True if it is a single pixel, which is drawn as curves, not as an image."""
        return self.valid.shape[1:] == (1, 1)

    @property
    def best(self) -> Bool[np.ndarray, "T H W"]:
        """The dates of each pixel that stretch and median use: the clear ones, or the valid ones if none is clear."""
        return self.clear | (self.valid & ~self.clear.any(axis=0))

    def colours(self, dates: Sequence[int]) -> Float32[np.ndarray, "n H W 3"]:
        """Returns some dates with one stretch; most dates of a pixel lie between black and white.

        Single clouds, shadows and snow may be clipped.
        """
        fractions = MOST_DATES.get(self.scale, MOST_OPTICAL_DATES)
        ends = [quantile_over_dates(self.planes, self.best, fraction) for fraction in fractions]
        low, high = limits(np.stack([values for values, _ in ends]), np.stack([seen for _, seen in ends]), self.scale)
        return stretched(self.planes[list(dates)], low, low + HEADROOM * (high - low))

    def summary(self) -> tuple[Float32[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
        """Returns colours and validity of one image; of a series, the median over the clear dates."""
        values, seen = self.planes[0], self.valid[0]
        if len(self.valid) > 1:
            values, seen = quantile_over_dates(self.planes, self.best, 0.5)
        return stretched(values, *limits(values, seen, self.scale)), seen


def view_of(card: DatasetCard, name: str, example: Example) -> View | None:
    """Returns the view of a sensor of an example; None if the tile lacks the sensor."""
    if name not in example:
        return None
    sensor, keys = get_sensor(name), (name, f"{name}_mask", f"{name}_cloud")
    inner = {key: without_margin(card, name, example[key]) for key in keys if key in example}
    if not sensor.has_dates:
        inner = {key: array[None] for key, array in inner.items()}
    values, cloud = inner[name], inner.get(f"{name}_cloud")
    mask = np.broadcast_to(inner.get(f"{name}_mask", np.True_), values.shape) & np.isfinite(values)
    planes, valid, scale, how = _planes(card, sensor, values, mask)
    clear, mean = valid, None
    if cloud is not None:
        percent = cloud[:, 0].astype(np.float32)
        clear = valid & (percent < CLOUDY)
        # Of valid pixels only; a date without any counts as clear.
        mean = (percent * valid).sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    precision = card.date_precision.get(name, "day")
    days: list[datetime.date] = []
    if sensor.has_dates and precision != "none":
        days = calendar_days(example[f"{name}_dates"], example[f"{name}_years"])
    cloud = None if mean is None else mean.astype(np.float32)
    return View(sensor, how, scale, planes, valid, clear, tuple(days), DAY_FORMATS[precision], cloud)


def _planes(
    card: DatasetCard, sensor: Sensor, values: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, Bool[np.ndarray, "T H W"], Scale, str]:
    """Returns the channels to show, where all of them are valid, their scale, and a description in words."""
    if sensor.bands[:2] in (("VV", "VH"), ("HH", "HV")):
        first, second = sensor.bands[:2]
        power = decibels(values[:, :2], mask[:, :2])
        # The ratio of powers is a difference of decibels; it separates plants, which depolarise, from bare ground.
        planes = np.concatenate([power, power[:, :1] - power[:, 1:]], axis=1)
        return planes, mask[:, :2].all(axis=1), "decibel", f"false colour ({first}, {second}, {first}/{second}; dB)"
    channels = list(card.natural_colour.get(sensor.name, (0,)))
    names = " ".join(sensor.bands[channel] for channel in channels)
    how = "natural colour" if len(channels) == 3 else "grey"
    scale = "bytes" if values.dtype == np.uint8 else "reflectance"
    return values[:, channels], mask[:, channels].all(axis=1), scale, f"{how} ({names})"


NO_LABEL = "#ffffff"


def paint(colours: Sequence[str], classes: Num[np.ndarray, "h w"], ignore: int = -1) -> Float[np.ndarray, "h w 3"]:
    """Returns a class map in colours; `ignore` and all numbers that are not a class are white."""
    from matplotlib.colors import to_rgb

    # The last colour is for all numbers that are not a class.
    palette = np.asarray([to_rgb(colour) for colour in (*colours, NO_LABEL)])
    return palette[np.where(_known(classes, len(colours), ignore), classes, len(colours))]


def _known(classes: np.ndarray, count: int, ignore: int) -> np.ndarray:
    return (classes >= 0) & (classes < count) & (classes != ignore)


def legend_entries(card: DatasetCard, classes: Num[np.ndarray, "h w"]) -> list[tuple[str, str]]:
    """Returns text and colour of the classes on the map, in the card's order, then of pixels without a label."""
    known = _known(classes, len(card.dense_classes), card.ignore_label)
    counts = np.bincount(classes[known].astype(np.int64), minlength=len(card.dense_classes))
    entries = [
        (f"{card.dense_classes[number]}, {_percent(counts[number] / classes.size)}", card.dense_colours[number])
        for number in np.flatnonzero(counts)
    ]
    return entries if known.all() else [*entries, (f"no label, {_percent(1 - known.mean())}", NO_LABEL)]


def _percent(fraction: float) -> str:
    # Rounded, these would read "100%" and "0%", as if there were no other pixels.
    if 0.995 <= fraction < 1:
        return "> 99%"
    return f"{fraction:.0%}" if fraction >= 0.01 else "< 1%"


def tile_label(card: DatasetCard, example: Example) -> str:
    """Returns the label "tile" in words; "" if the dataset has none."""
    if card.tile_label == "none":
        return ""
    if card.tile_label == "regression":
        return f"{float(example['tile']):.4g} {card.label_unit}"
    if card.tile_label == "class":
        return card.tile_classes[int(example["tile"])]
    names = [in_list(card.tile_classes[number]) for number in np.flatnonzero(example["tile"])]
    return ", ".join(names) if names else "none of the classes"
