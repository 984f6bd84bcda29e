"""Checks of one sensor's arrays: values, dates, masks."""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from anysat_jax.batch import Observation
from anysat_jax.sensors import Sensor

LAST_DAY = 731
"""The latest date: days of a following year are counted on, for two years."""

MEAN_LIMIT, STD_LIMIT = (
    10.0,
    20.0,
)  # a standardised band has mean 0 and deviation 1; a cloudy tile stays far below these


def to_observation(sensor: Sensor, values: Any, companions: dict[str, Any]) -> Observation:
    """One sensor's arrays, checked, as an Observation.

    Args:
      values: (B, C, H, W) for an image, (B, T, C, H, W) for a series.
      companions: what comes with them, by suffix: "dates" (B, T), "mask" (pixels), "date_mask" (B, T), "present" (B,).

    Returns:
      The observation; whatever is not valid is 0 in `values`.

    Raises:
      ValueError: an array has the wrong shape, dtype or values; the message names the sensor.
    """
    values = _values(sensor, values)
    batch_size = values.shape[0]
    if not sensor.has_dates:
        for suffix in {"dates", "date_mask"} & companions.keys():
            raise ValueError(f"{sensor.name}_{suffix} is given, but {sensor.name!r} is an image: images have no dates")
    present = _mask(sensor, companions, "present", {(batch_size,): "(B,)"})
    pixel_mask = _pixel_mask(sensor, companions, values.shape)
    if not sensor.has_dates:
        values = _clean(sensor, values, _valid(values.ndim, None, pixel_mask, present))
        return Observation(values, pixel_mask=pixel_mask, present=present)
    date_mask = _mask(sensor, companions, "date_mask", {values.shape[:2]: "(B, T)"})
    _check_some_date(sensor, date_mask, present)
    real = _valid(2, date_mask, None, present)
    dates = _dates(sensor, companions.get("dates"), values.shape[:2], real)
    values = _clean(sensor, values, _valid(values.ndim, date_mask, pixel_mask, present))
    return Observation(values, dates=dates, date_mask=date_mask, pixel_mask=pixel_mask, present=present)


def _values(sensor: Sensor, values: Any) -> Float[np.ndarray, "B *T C H W"]:
    """The values as float32 in the sensor's rank, with its number of bands."""
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{sensor.name!r}: the values are not a rectangular array: {error}") from None
    axes = ("B", "T", "C", "H", "W") if sensor.has_dates else ("B", "C", "H", "W")
    if values.ndim != len(axes):
        raise ValueError(
            f"{sensor.name!r} has shape {values.shape}; a{'n image' if sensor.kind == 'image' else ' series'} has "
            f"{len(axes)} axes ({', '.join(axes)}). A single tile is a batch of one: values[None]"
        )
    if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
        raise ValueError(f"{sensor.name!r} has dtype {values.dtype}; its values must be real numbers, best float32")
    for axis, length in zip(axes, values.shape, strict=True):
        if length == 0:
            raise ValueError(f"{sensor.name!r} has shape {values.shape}: it is empty along {axis}")
    bands = values.shape[-3]
    if bands != sensor.num_bands:
        raise ValueError(
            f"{sensor.name!r} has {bands} bands (shape {values.shape}, axes {', '.join(axes)}); "
            f"expected {sensor.num_bands}, in this order: {', '.join(sensor.bands)}"
        )
    if sensor.kind == "context" and values.shape[-2:] != (1, 1):
        raise ValueError(
            f"{sensor.name!r} has {values.shape[-2]} x {values.shape[-1]} pixels; it is a context sensor, "
            "whose one pixel covers the whole tile: give (B, T, C, 1, 1)"
        )
    return values.astype(np.float32)


def _dates(
    sensor: Sensor, dates: Any, shape: tuple[int, int], real: Bool[np.ndarray, "B T"] | None
) -> Int[np.ndarray, "B T"]:
    """Dates as int32 days of the year; 0 where there is no real date."""
    name, batch_size, num_dates = f"{sensor.name}_dates", *shape
    if dates is None:
        raise ValueError(
            f"{name!r} is missing: {sensor.name!r} is a series and needs ({batch_size}, {num_dates}) dates, "
            "days of the year as integers, 1 January = 0"
        )
    try:
        dates = np.asarray(dates)
    except ValueError as error:
        raise ValueError(
            f"{name!r} is not a rectangular array (pad, and give {sensor.name}_date_mask): {error}"
        ) from None
    if dates.shape != shape:
        raise ValueError(f"{name!r} has shape {dates.shape}; expected {shape}: (B, T) as in {sensor.name!r}")
    if dates.dtype.kind not in "iuf":
        raise ValueError(f"{name!r} has dtype {dates.dtype}; dates are integers, days of the year, 1 January = 0")
    dates = dates if real is None else np.where(np.broadcast_to(real, shape), dates, 0)
    if not np.array_equal(dates, np.round(dates)):
        bad = dates[dates != np.round(dates)][0]
        raise ValueError(f"{name!r} holds {bad}; dates are whole days of the year, 1 January = 0")
    if dates.min() < 0 or dates.max() > LAST_DAY:
        bad = dates.min() if dates.min() < 0 else dates.max()
        raise ValueError(
            f"{name!r} holds {bad:g}; dates are days of the year from 0 (1 January) on, and at most {LAST_DAY} "
            f"where a series runs into following years. Padding is marked in {sensor.name}_date_mask, not here"
        )
    return dates.astype(np.int32)


def _mask(
    sensor: Sensor, companions: dict[str, Any], suffix: str, shapes: dict[tuple[int, ...], str]
) -> np.ndarray | None:
    """A boolean companion in one of the allowed shapes (with their axes' names), or None where there is none."""
    if companions.get(suffix) is None:
        return None
    name, mask = f"{sensor.name}_{suffix}", np.asarray(companions[suffix])
    if mask.dtype != np.bool_:
        raise ValueError(
            f"{name!r} has dtype {mask.dtype}; masks are boolean, True where valid: give mask.astype(bool)"
        )
    if mask.shape not in shapes:
        allowed = " or ".join(f"{shape} = {axes}" for shape, axes in shapes.items())
        raise ValueError(f"{name!r} has shape {mask.shape}; expected {allowed}")
    return mask


def _pixel_mask(
    sensor: Sensor, companions: dict[str, Any], shape: tuple[int, ...]
) -> Bool[np.ndarray, "B *T c H W"] | None:
    """The pixel mask with a channel axis, of length 1 where all bands share one mask."""
    lead, (bands, height, width), axes = shape[:-3], shape[-3:], "B, T" if sensor.has_dates else "B"
    shared = (*lead, height, width)
    shapes = {shared: f"({axes}, H, W)", (*lead, bands, height, width): f"({axes}, C, H, W)"}
    shapes.setdefault((*lead, 1, height, width), f"({axes}, 1, H, W)")
    mask = _mask(sensor, companions, "mask", shapes)
    return mask[..., None, :, :] if mask is not None and mask.shape == shared else mask


def _valid(
    ndim: int, date_mask: np.ndarray | None, pixel_mask: np.ndarray | None, present: np.ndarray | None
) -> np.ndarray | None:
    """Where all the masks hold, with `ndim` axes that broadcast against the values; None where there is no mask."""
    masks = [mask for mask in (date_mask, pixel_mask, present) if mask is not None]
    valid = None
    for mask in masks:
        mask = mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))
        valid = mask if valid is None else valid & mask
    return valid


def _check_some_date(sensor: Sensor, date_mask: np.ndarray | None, present: np.ndarray | None) -> None:
    """A tile whose every date is padding has no features of this sensor: it must be marked as absent."""
    if date_mask is None:
        return
    empty = ~date_mask.any(axis=1) & (True if present is None else present)
    if empty.any():
        raise ValueError(
            f"{sensor.name}_date_mask leaves no date of tile {_first(empty)}; "
            f"mark such tiles as without {sensor.name!r} by {sensor.name}_present (B,)"
        )


def _clean(sensor: Sensor, values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Values with 0 where they are not valid, once those that are valid have been looked at."""
    if valid is not None:
        values = np.where(valid, values, np.float32(0))
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ValueError(
            f"{sensor.name!r} holds {bad} NaN or infinite values (of {values.size}); "
            f"mark them in {sensor.name}_mask (False), or replace them"
        )
    _warn_unnormalised(sensor, values, valid)
    return values


def _warn_unnormalised(sensor: Sensor, values: np.ndarray, valid: np.ndarray | None) -> None:
    """Warns of bands whose valid values are far from mean 0 and deviation 1."""
    axes = tuple(axis for axis in range(values.ndim) if axis != values.ndim - 3)
    where = True if valid is None else np.broadcast_to(valid, values.shape)
    count = np.maximum(np.sum(where, axis=axes) if valid is not None else values.size / values.shape[-3], 1)
    mean = values.sum(axis=axes, dtype=np.float64) / count
    square = np.square(values, dtype=np.float64).sum(axis=axes) / count
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    suspects = [
        f"{band} (mean {mean[i]:.4g}, std {std[i]:.4g})"
        for i, band in enumerate(sensor.bands)
        if abs(mean[i]) > MEAN_LIMIT or std[i] > STD_LIMIT
    ]
    if suspects:
        warnings.warn(
            f"{sensor.name!r} looks unnormalised: {', '.join(suspects)}; the model takes each band standardised to "
            "mean 0 and standard deviation 1 with the statistics of its data set",
            stacklevel=6,
        )


def _first(flags: np.ndarray) -> int:
    return int(np.flatnonzero(flags)[0])
