"""Checks of a user's dict of arrays, and the Batch made of it: arrays, dates, masks, extent."""

import difflib
import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from anysat_jax.batch import Batch, Observation
from anysat_jax.inputs import days_of_year, is_traced, plain_data, to_numpy, where
from anysat_jax.normalise import BandStatistics, clean
from anysat_jax.sensors import SENSORS, Sensor, get_sensor

LAST_DAY = 731  # of a series that runs into a second year, whose days are counted on
PADDED_DATE = "1970-01-01"  # in place of what padding holds
MICRONS = 1_000_000
LARGEST_PATCH = 1e9  # metres, more than the Earth has
LARGEST_ARRAY = 2**31  # values of a sensor in a call, 8 GiB of float32
# "date_mask" before "mask", with which it ends.
SUFFIXES = ("date_mask", "dates", "mask", "present")


def to_batch(
    data: Mapping[str, Any],
    patch_size: float,
    sensors: Sequence[str],
    statistics_of: Callable[[str], BandStatistics | None] = lambda name: None,
) -> Batch:
    """Checks a dict of arrays and returns it as a Batch.

    Args:
      data: values by sensor, with dates and masks: see `AnySat.__call__`.
      patch_size: side of a patch in metres.
      sensors: names of the sensors that the model has.
      statistics_of: returns, for a sensor's name, what standardises its values; None where they are standardised.

    Returns:
      A batch of numpy arrays without labels. Of arrays that jax traces, inside of jit, grad or vmap, shapes and dtypes
      are checked, not values, and they stay traced.

    Raises:
      TypeError: `data` is not a dict, or `patch_size` is not a number.
      ValueError: an array does not fit; the message names it, the expectation and the remedy.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"data is a {type(data).__name__}; expected a dict of arrays by sensor name")
    data = plain_data(data)
    grouped = _group(data, sensors)
    if not grouped:
        raise ValueError(f"data is empty; give at least one of the model's sensors: {', '.join(sensors)}")
    observations = {}
    # A loop: Python 3.11 gives a comprehension a frame of its own, which would count in the warning's stacklevel.
    for name, companions in grouped.items():
        observations[name] = to_observation(get_sensor(name), data[name], companions, statistics_of(name))
    _check_batch_sizes(observations)
    extent = check_extents(observations)
    check_patch_size(patch_size, extent, tuple(observations))
    _check_presence(observations)
    return Batch(observations, patch_size=float(patch_size))


def _check_batch_sizes(observations: Mapping[str, Observation]) -> None:
    (first, expected), *others = ((name, observation.batch_size) for name, observation in observations.items())
    for name, size in others:
        if size != expected:
            raise ValueError(
                f"batch sizes differ: {first!r} has {expected} tiles, {name!r} has {size}; "
                f"where a tile lacks a sensor, fill in zeros and mark it in <sensor>_present (B,)"
            )


def _group(data: Mapping[str, Any], sensors: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns, for each sensor of `data`, its companions (dates, masks) by suffix."""
    suffixes = {
        key: next((s for s in SUFFIXES if isinstance(key, str) and key.endswith(f"_{s}")), None) for key in data
    }
    for name in (key for key, suffix in suffixes.items() if suffix is None):
        _check_sensor(name, sensors)
    grouped: dict[str, dict[str, Any]] = {name: {} for name, suffix in suffixes.items() if suffix is None}
    for key, suffix in suffixes.items():
        if suffix is None:
            continue
        name = key.removesuffix(f"_{suffix}")
        if name not in grouped:
            _check_sensor(name, sensors)
            raise ValueError(f"data has {key!r} but no {name!r}; give both or neither")
        grouped[name][suffix] = data[key]
    return grouped


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


def _check_presence(observations: Mapping[str, Observation]) -> None:
    """Refuses tiles without any image or series: a context sensor alone has no patches."""
    present = [observations[sensor.name].present for sensor in _spatial(observations)]
    if is_traced(*present):
        return
    if all(flags is not None for flags in present) and (empty := ~np.any(present, axis=0)).any():
        raise ValueError(
            f"tile {int(np.flatnonzero(empty)[0])} has no image or series: every <sensor>_present is False there, or "
            "<sensor>_mask (True where valid) leaves no pixel. Leave the tile out"
        )


def to_observation(
    sensor: Sensor, values: Any, companions: dict[str, Any], statistics: BandStatistics | None = None
) -> Observation:
    """Checks one sensor's arrays and returns them as an Observation.

    Args:
      values: (B, C, H, W) for an image, (B, T, C, H, W) for a series.
      companions: by suffix: "dates" (B, T), "mask" (pixels), "date_mask" (B, T), "present" (B,).
      statistics: what standardises the values; None where they are standardised.

    Returns:
      The observation; invalid values are 0.

    Raises:
      ValueError: an array has the wrong shape, dtype or values; the message names the sensor.
    """
    values = to_numpy(sensor.name, values)
    hidden = np.ma.getmask(values)  # of a masked array, True where invalid
    values = _values(sensor, values)
    if not sensor.has_dates:
        for suffix in {"dates", "date_mask"} & companions.keys():
            raise ValueError(f"{sensor.name}_{suffix} is given, but {sensor.name!r} is an image: images have no dates")
    present = _mask(sensor, companions, "present", {values.shape[:1]: "(B,)"})
    pixel_mask = _pixel_mask(sensor, companions, values.shape)
    if np.any(hidden):
        pixel_mask = ~hidden if pixel_mask is None else pixel_mask & ~hidden
    # What the pixel mask leaves nothing of has no part, by its date or its sensor neither.
    observed = None if pixel_mask is None else pixel_mask.any(axis=(-3, -2, -1))
    dates = date_mask = None
    if sensor.has_dates:
        date_mask = _mask(sensor, companions, "date_mask", {values.shape[:2]: "(B, T)"})
        _check_some_date(sensor, date_mask, present)
        date_mask = _narrowed(date_mask, observed)
        observed = None if date_mask is None else date_mask.any(axis=1)
    present = _narrowed(present, observed)
    if sensor.has_dates:
        real = _valid(2, date_mask, None, present)
        dates = _dates(sensor, companions.get("dates"), values.shape[:2], real)
    values = clean(sensor, values, _valid(values.ndim, date_mask, pixel_mask, present), statistics)
    return Observation(values, dates, date_mask, pixel_mask, present)


def _values(sensor: Sensor, values: np.ndarray) -> Float[np.ndarray, "B *T C H W"]:
    """Returns the values as float32, once rank, dtype, bands and pixels are those of the sensor."""
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
    # Such as a broadcast array, which takes memory only where it is copied. The size of a traced one may be symbolic.
    if not is_traced(values) and values.size > LARGEST_ARRAY:
        size, most = (f"{count / 2**28:.3g} GiB" for count in (values.size, LARGEST_ARRAY))
        what = f"{sensor.name!r} has shape {values.shape}, {size} of float32; expected at most {most} in a call"
        raise ValueError(f"{what}: give fewer tiles, dates or pixels at a time")
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
    return (values if is_traced(values) else np.asarray(values)).astype(np.float32)


def _dates(
    sensor: Sensor, dates: Any, shape: tuple[int, int], real: Bool[np.ndarray, "B T"] | None
) -> Int[np.ndarray, "B T"]:
    """Returns the dates as int32 days of the year, 1 January = 0; 0 for padding.

    Dates that are calendar days become the days of their years.
    """
    name, batch_size, num_dates = f"{sensor.name}_dates", *shape
    if dates is None:
        raise ValueError(
            f"{name!r} is missing: {sensor.name!r} is a series and needs ({batch_size}, {num_dates}) dates, "
            "days of the year as integers, 1 January = 0, or calendar days (datetime64, or texts like 2020-12-31)"
        )
    dates = to_numpy(name, dates)
    if np.any(np.ma.getmask(dates)):
        raise ValueError(f"{name!r} is a masked array: mark padding in {sensor.name}_date_mask (B, T), False there")
    if dates.shape != shape:
        raise ValueError(f"{name!r} has shape {dates.shape}; expected {shape}: (B, T) as in {sensor.name!r}")
    if dates.dtype.kind in "MOSU":
        if real is not None and not is_traced(real):
            dates = np.where(real, dates, np.array(PADDED_DATE, dates.dtype))
        return days_of_year(name, dates)
    if dates.dtype.kind not in "iuf":
        raise ValueError(f"{name!r} has dtype {dates.dtype}; dates are integers, days of the year, 1 January = 0")
    if is_traced(dates, real):
        return (dates if real is None else where(real, dates, 0)).astype(np.int32)
    # Padding may hold anything, so it is replaced before the days are checked.
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
    """Returns a boolean companion, which has one of `shapes` ({shape: its axes, for messages}), or None."""
    if companions.get(suffix) is None:
        return None
    name = f"{sensor.name}_{suffix}"
    mask = to_numpy(name, companions[suffix])
    mask = mask.filled(False) if isinstance(mask, np.ma.MaskedArray) else mask
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
    """Returns the pixel mask with a channel axis, of length 1 where all bands share one mask."""
    lead, (bands, height, width), axes = shape[:-3], shape[-3:], "B, T" if sensor.has_dates else "B"
    shared = (*lead, height, width)
    shapes = {shared: f"({axes}, H, W)", (*lead, bands, height, width): f"({axes}, C, H, W)"}
    shapes.setdefault((*lead, 1, height, width), f"({axes}, 1, H, W)")
    mask = _mask(sensor, companions, "mask", shapes)
    return mask[..., None, :, :] if mask is not None and mask.shape == shared else mask


def _valid(
    ndim: int, date_mask: np.ndarray | None, pixel_mask: np.ndarray | None, present: np.ndarray | None
) -> np.ndarray | None:
    """Returns the conjunction of the masks, with `ndim` axes that broadcast against the values; None without masks."""
    masks = [m.reshape(m.shape + (1,) * (ndim - m.ndim)) for m in (date_mask, pixel_mask, present) if m is not None]
    return functools.reduce(operator.and_, masks) if masks else None


def _narrowed(mask: np.ndarray | None, observed: np.ndarray | None) -> np.ndarray | None:
    """Returns a mask without what is not observed; as it was given where all is."""
    if observed is None or (not is_traced(observed) and observed.all()):
        return mask
    return observed if mask is None else mask & observed


def _check_some_date(sensor: Sensor, date_mask: np.ndarray | None, present: np.ndarray | None) -> None:
    """Refuses tiles whose every date is padding, unless they are marked absent: they have no features of the sensor."""
    if date_mask is None or is_traced(date_mask, present):
        return
    if (empty := ~date_mask.any(axis=1) & (True if present is None else present)).any():
        raise ValueError(
            f"{sensor.name}_date_mask leaves no date of tile {int(np.flatnonzero(empty)[0])}; "
            f"mark such tiles as without {sensor.name!r} by {sensor.name}_present (B,)"
        )


def check_extents(observations: Mapping[str, Observation]) -> tuple[float, float]:
    """Returns height and width of the tile in metres, on which all spatial sensors must agree.

    Raises:
      ValueError: two sensors cover different extents, or there are context sensors only.
    """
    spatial = _spatial(observations)
    if not spatial:
        raise ValueError(
            f"only context sensors are given ({', '.join(observations)}); they do not have the tile's extent: "
            "give at least one image or series with them"
        )
    extents, texts = [], []
    for sensor in spatial:
        (height, width), metres = observations[sensor.name].values.shape[-2:], sensor.metres_per_pixel
        extents.append((height * metres, width * metres))
        tile = "{:g} x {:g} m".format(*extents[-1])
        texts.append(f"{sensor.name!r} covers {tile} ({height} x {width} pixels of {metres:g} m)")
        if [_microns(side) for side in extents[-1]] != [_microns(side) for side in extents[0]]:
            raise ValueError(
                f"sensors disagree on the tile's extent: {texts[0]}, but {texts[-1]}. "
                "Crop or resample one of them; all must cover the same ground"
            )
    return extents[0]


def check_patch_size(patch_size: float, extent: tuple[float, float], sensors: tuple[str, ...]) -> None:
    """Checks that a patch divides the tile and is a whole number of every sensor's sub-patches.

    Args:
      patch_size: side of a patch in metres.
      extent: height and width of the tile in metres.
      sensors: their names.

    Raises:
      TypeError: the patch size is not a number.
      ValueError: it does not fit; the message lists the patch sizes that do.
    """
    if not isinstance(patch_size, numbers.Real) or isinstance(patch_size, bool):
        raise TypeError(f"patch_size is {patch_size!r}; it must be a number of metres")
    if not 0 < patch_size < LARGEST_PATCH:
        raise ValueError(f"patch_size is {patch_size}; it must be a positive number of metres, below {LARGEST_PATCH:g}")
    tile = f"{extent[0]:g} x {extent[1]:g} m"
    if _microns(patch_size) > min(_microns(side) for side in extent):
        problem = f"a patch of {patch_size:g} m is larger than the tile ({tile}, height x width)"
    elif any(_microns(side) % _microns(patch_size) for side in extent):
        problem = f"a patch of {patch_size:g} m does not divide the tile ({tile}, height x width)"
    else:
        cut = [s for s in _spatial(sensors) if _microns(patch_size) % _microns(s.subpatch_metres)]
        if not cut:
            return
        what = "pixels" if cut[0].subpatch_pixels == 1 else f"sub-patches ({cut[0].subpatch_pixels} pixels)"
        whole = f"a whole number of {cut[0].name!r} {what} of {cut[0].subpatch_metres:g} m"
        problem = f"a patch of {patch_size:g} m is not {whole}"
    raise ValueError(f"{problem}. {_advice(extent, sensors)}")


def fitting_patch_sizes(extent: tuple[float, float], sensors: tuple[str, ...]) -> list[float]:
    """Returns the patch sizes, in metres, that divide a tile of `extent` (height, width) and hold whole sub-patches."""
    step = math.lcm(*(_microns(s.subpatch_metres) for s in _spatial(sensors)))
    side = math.gcd(*(_microns(length) for length in extent))
    if side % step:
        return []
    steps = side // step
    return [count * step / MICRONS for count in range(1, steps + 1) if steps % count == 0]


def _advice(extent: tuple[float, float], sensors: tuple[str, ...]) -> str:
    """Returns the patch sizes that fit this tile and these sensors, or why none does."""
    spatial, sizes = _spatial(sensors), fitting_patch_sizes(extent, sensors)
    names, coarsest = ", ".join(s.name for s in spatial), max(spatial, key=lambda s: s.subpatch_metres)
    if sizes:
        fitting = ", ".join(f"{size:g}" for size in sizes)
        text = f"Patch sizes that fit this tile and its sensors ({names}): {fitting} m"
    else:
        text = f"No patch size fits this tile and its sensors ({names}): crop it to a multiple of all sub-patches"
    if coarsest.subpatch_metres > 10:
        text += (
            f". {coarsest.name!r} has pixels of {coarsest.metres_per_pixel:g} m and needs patches of multiples of "
            f"{coarsest.subpatch_metres:g} m; for finer ones, resample it and register the result as another sensor"
        )
    return text


def _spatial(sensors: Iterable[str]) -> list[Sensor]:
    return [sensor for sensor in map(get_sensor, sensors) if sensor.kind != "context"]


def _microns(metres: float) -> int:
    # 0.2 m is not exact in binary: lengths are compared, and divided, as whole micrometres.
    return max(round(metres * MICRONS), 1)
