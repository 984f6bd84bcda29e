"""From native values to colours between 0 and 1, and the hatching of what is not valid."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Num

PERCENTILES = (2.0, 98.0)  # become black and white
LARGEST_POWER = 10.0  # most pixels of a tile stay below it, even of a city; ALOS's digital numbers are hundreds
SMALLEST_SHOWN = 1e-6  # linear power below it is as dark as it
STRIPE = 5  # width in pixels of the display
HAZE = 0.7  # share of the darkest reflectance that is taken for haze
DECIBELS = 8.0  # range that radar is stretched over at least: speckle alone fills some
HATCH = ((1.0, 1.0, 1.0), (0.62, 0.62, 0.66))

Scale = Literal["bytes", "reflectance", "decibel"]


def limits(
    values: Num[np.ndarray, "*T C H W"], use: Bool[np.ndarray, "*T H W"], scale: Scale
) -> tuple[Float32[np.ndarray, "C"], Float32[np.ndarray, "C"]]:
    """What becomes black and what white in each channel, from percentiles over the pixels to use.

    All channels span the same range, so that colours keep their strength, and a uniform tile is not blown up to a
    mosaic: "bytes", balanced for the eye before, have one black; of "reflectance", most of the darkest value is taken
    off, which is haze; "decibel" has its grey in the middle of each channel and spans DECIBELS at least.

    Args:
      values: native values.
      use: pixels to count, True; where none is, the limits are 0 and 1.
      scale: what the values are.

    Returns:
      Lower and upper limit of each channel; the upper one is larger.
    """
    channels = np.moveaxis(values, -3, 0).reshape(values.shape[-3], -1)[:, use.reshape(-1)].astype(np.float32)
    if not channels.size:
        return np.zeros(len(channels), np.float32), np.ones(len(channels), np.float32)
    low, high = np.percentile(channels, PERCENTILES, axis=1).astype(np.float32)
    if scale == "decibel":
        span = max(float((high - low).max()), DECIBELS)
        low = (low + high - span) / 2
    else:
        low = np.full_like(low, low.min()) if scale == "bytes" else np.minimum(low, HAZE * low)
        span = float((high - low).max())
    if span <= 1e-6 * float(np.abs(high).max()):
        low, span = low - 0.5, 1.0  # no contrast: mid-grey
    return low.astype(np.float32), (low + span).astype(np.float32)


def stretched(
    values: Num[np.ndarray, "*T C H W"], low: Float32[np.ndarray, "C"], high: Float32[np.ndarray, "C"]
) -> Float32[np.ndarray, "*T H W 3"]:
    """Colours between 0 and 1 of one channel (grey) or three (red, green, blue); NaN becomes 0."""
    scaled = (np.moveaxis(values, -3, -1).astype(np.float32) - low) / (high - low)
    colours = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    return np.broadcast_to(colours, (*colours.shape[:-1], 3))


def decibels(values: Num[np.ndarray, "*T C H W"], valid: Bool[np.ndarray, "*T C H W"]) -> Float32[np.ndarray, "..."]:
    """Radar backscatter in dB, as the values tell what they are: what has negative values is in dB and stays.

    Linear power, and an amplitude in digital numbers, whose power is its square, are never negative; only an amplitude
    is large. Its dB lack the constant of its calibration, which no stretch shows.
    """
    shown = values[valid]
    if (shown < 0).any():
        return values.astype(np.float32)
    factor = 20 if shown.size and np.median(shown) > LARGEST_POWER else 10
    return (factor * np.log10(np.maximum(values.astype(np.float32), SMALLEST_SHOWN))).astype(np.float32)


def quantile_over_dates(
    values: Num[np.ndarray, "T C H W"], use: Bool[np.ndarray, "T H W"], share: float
) -> tuple[Float32[np.ndarray, "C H W"], Bool[np.ndarray, "H W"]]:
    """The value that `share` of the dates to use stay below, and where there was a date; 0 where there was none."""
    ordered = np.sort(np.where(use[:, None], values, np.inf).astype(np.float32), axis=0)  # what is left out comes last
    position = np.floor(share * np.maximum(use.sum(axis=0) - 1, 0)).astype(np.int64)
    picked = np.take_along_axis(ordered, position[None, None], axis=0)[0]
    seen = use.any(axis=0)
    return np.where(seen, picked, 0).astype(np.float32), seen


def hatched(
    colours: Float32[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], display: int
) -> Float32[np.ndarray, "H W 3"]:
    """An image with diagonal stripes where it is not valid, enlarged to about `display` pixels where it is smaller."""
    factor = max(1, display // max(valid.shape))
    image, mask = (a.repeat(factor, axis=0).repeat(factor, axis=1) for a in (colours, valid))
    rows, columns = np.indices(mask.shape)
    width = max(1, round(STRIPE * max(mask.shape) / display))
    stripes = np.asarray(HATCH, np.float32)[(rows + columns) // width % 2]
    return np.where(mask[..., None], image, stripes)
