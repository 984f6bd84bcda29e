"""From raw values to standardised ones: statistics, the units that values must have for them, and what is invalid."""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from anysat_jax.inputs import is_traced, where
from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.bands import band_key
from data_pipelines.registry import dataset_names, get_entry
from data_pipelines.units import (
    GREY,
    SCALED,
    STANDARD_MEAN,
    STANDARD_TOP,
    STANDARDISED,
    OtherUnit,
    SeenBand,
    other_unit,
    seen_bands,
    unit_of_statistics,
)

# A standardised band has mean 0 and deviation 1 over its data set; a single cloudy tile stays far below these.
MEAN_LIMIT, STD_LIMIT = 10.0, 20.0
UNIT_SHARE, FEW = 0.99, 16  # share of values in 0..1 that standardised bands do not have, unless they are few
# Of Sentinel-2's reflectance x 10000: its offset, the dark bands of ten that show it, and the values of a band below
# which a cloud or snow may fill the tile.
OFFSET, DARK_BANDS, FEW_OF_SCENE = 1000.0, 3, 400
MOST_SAMPLED = 200_000  # values of a band of which quantiles are taken
CURE = (
    "`anysat data statistics FOLDER --out statistics.json` computes those of your data, for "
    "normalise='statistics.json' (--normalise statistics.json); or standardise the values yourself, with normalise=None"
)


class BandStatistics(NamedTuple):
    """Statistics of one sensor's bands, in native units."""

    mean: Float32[np.ndarray, "C"]
    std: Float32[np.ndarray, "C"]
    source: str  # for messages: where they are from


def choose_statistics(normalise: Any, own: Mapping[str, Any], name: str) -> BandStatistics | None:
    """Returns the statistics that standardise a sensor's values; None for values that are standardised already.

    Args:
      normalise: see `AnySat.__call__`.
      own: those of the weights, by sensor or "sensor@dataset".
      name: of the sensor.

    Raises:
      TypeError: `normalise` is none of these.
      ValueError: it has no statistics of the sensor, or they do not fit its bands; the message has the remedy.
      FileNotFoundError: it is a file that does not exist.
    """
    if isinstance(normalise, str | os.PathLike):
        text = str(normalise)
        if text == "auto":
            found, source = _own_statistics(own, name), "the weights' statistics"
        elif text.endswith(".json"):
            found, source = read_statistics(pathlib.Path(text)).get(name), text
        else:
            published = get_entry(text).card.statistics if text in dataset_names() else {}
            found, source = own.get(f"{name}@{text}", published.get(name)), f"the statistics of {text!r}"
    elif isinstance(normalise, Mapping):
        found, source = normalise.get(name), "the given statistics"
        if (found is None and name in normalise) or isinstance(found, str | os.PathLike):
            return choose_statistics(found, own, name)
    elif normalise is None:
        return None
    else:
        raise TypeError(
            f"normalise is a {type(normalise).__name__}; expected None, 'auto', the name of a dataset, a .json file, "
            "or a dict of statistics by sensor"
        )
    if found is None:
        having = sorted({key.partition("@")[2] for key in own if key.startswith(f"{name}@")})
        having += [one for one in dataset_names() if name in get_entry(one).card.statistics]
        others = f" Named datasets that have them: {', '.join(map(repr, having))}." if having else ""
        raise ValueError(f"normalise={normalise!r} has no statistics of {name!r}.{others} {CURE}")
    return _checked(get_sensor(name), found, source)


def _own_statistics(own: Mapping[str, Any], name: str) -> Any:
    """Returns the weights' statistics of a sensor; None where there are none."""
    keys = [key for key in own if key == name or key.startswith(f"{name}@")]
    if len(keys) > 1:
        datasets = [key.partition("@")[2] for key in keys]
        raise ValueError(
            f"the weights were trained on {name!r} of {', '.join(datasets)}, each standardised by its own statistics: "
            f"name the one that your values are like, such as normalise={datasets[0]!r} (--normalise {datasets[0]}), "
            f"or give your own: {CURE}"
        )
    return own[keys[0]] if keys else None


def _checked(sensor: Sensor, found: Any, source: str) -> BandStatistics:
    """Returns the statistics of a sensor's bands in its order, by their names where these are given."""
    problem = f"{source}: of {sensor.name!r}"
    if not isinstance(found, Mapping) or not {"mean", "std"} <= set(found):
        raise ValueError(f'{problem} expected {{"mean": [...], "std": [...]}}, a number for each band; got {found!r}')
    bands = [str(band) for band in found.get("bands") or sensor.bands]
    names = [band_key(band) for band in bands]
    if missing := [band for band in sensor.bands if band_key(band) not in names]:
        raise ValueError(f"{problem} the band {missing[0]!r} is missing; there are {', '.join(bands)}")
    try:
        mean, std = (np.asarray(found[key], np.float32) for key in ("mean", "std"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{problem} mean and std must be numbers, for {', '.join(bands)} ({error})") from None
    if mean.shape != (len(bands),) or std.shape != (len(bands),):
        raise ValueError(
            f"{problem} mean and std have the shapes {mean.shape} and {std.shape}; expected a number for each of "
            f"{', '.join(bands)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"{problem} means must be finite and deviations above 0; got {mean} and {std}")
    order = [names.index(band_key(band)) for band in sensor.bands]
    return BandStatistics(mean[order], std[order], source)


def read_statistics(path: pathlib.Path) -> dict[str, Any]:
    """Reads statistics by sensor, or by "sensor@dataset": {"s2": {"mean": [...], "std": [...]}}.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not JSON of that form.
    """
    try:
        found = json.loads(path.read_bytes())
        return dict(found.get("sensors", found))  # "sensors": in the file of a prepared dataset
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{path} is not JSON like {{"s2": {{"mean": [...], "std": [...]}}}} ({error})') from error


def clean(
    sensor: Sensor,
    values: Float32[Any, "B *T C H W"],
    valid: Bool[Any, "B *t c h w"] | None,
    statistics: BandStatistics | None,
) -> Float32[Any, "B *T C H W"]:
    """Returns standardised values, 0 where invalid, once the valid ones are found finite and in their units.

    Of arrays that jax traces the values are not checked.

    Args:
      values: of numpy or jax, in native units.
      valid: True where valid; broadcasts against the values. None: everywhere.
      statistics: what standardises the values; None where they are standardised.

    Raises:
      ValueError: a valid value is not finite, or cannot be in the units of the statistics.
    """
    # Invalid values may be NaN, and the model multiplies them by masks of 0: 0 * nan is nan.
    values = values if valid is None else where(valid, values, np.float32(0))
    if not is_traced(values):
        if bad := values.size - int(np.isfinite(values).sum()):
            raise ValueError(
                f"{sensor.name!r} holds {bad} NaN or infinite values (of {values.size}); "
                f"mark them in {sensor.name}_mask (False), or replace them"
            )
        if statistics is not None:
            check_units(sensor, values, valid, statistics)
    if statistics is not None:
        mean, std = (one.reshape(-1, 1, 1)[(None,) * (values.ndim - 3)] for one in (statistics.mean, statistics.std))
        values = (values - mean) / std
        values = values if valid is None else where(valid, values, np.float32(0))
    if not is_traced(values):
        warn_unnormalised(sensor, values, valid, statistics)
    return values


def check_units(
    sensor: Sensor, values: Float32[np.ndarray, "B *T C H W"], valid: np.ndarray | None, statistics: BandStatistics
) -> None:
    """Refuses raw values that cannot be in the unit of the statistics; warns where an offset seems to differ.

    Raises:
      ValueError: the message has the band, what the statistics are of, what the values are like, and the conversion.
    """
    seen = seen_bands(sensor.name, values, np.True_ if valid is None else valid)
    if not seen:
        return
    unit = unit_of_statistics(sensor.name, statistics.mean)
    fractions = bool((values != np.rint(values)).any())
    other = other_unit(unit, seen, fractions) or _other_scale(sensor, seen, statistics, fractions)
    one = next((one for one in seen if one.low < unit.least or one.top > unit.most), seen[0])
    number = sensor.bands.index(one.band)
    expected = f"{unit.name}, mean {statistics.mean[number]:.4g} and std {statistics.std[number]:.4g}"
    problem = (
        f"{sensor.name!r} is not in the units of {statistics.source}: band {one.band!r} runs from {one.low:.4g} to "
        f"{one.top:.4g}, mean {one.mean:.4g}"
    )
    if other == STANDARDISED:
        raise ValueError(f"{problem}, like {other.name}; expected {expected}: give raw values, or normalise=None")
    if other:
        how = f"convert the values ({other.conversion}), or give statistics of such values"
        raise ValueError(f"{problem}, like {other.name}; expected {expected}: {how}")
    if one.low < unit.least or one.top > unit.most:
        mask = f"{sensor.name}_mask, False there"
        raise ValueError(f"{problem}; expected {expected}, {unit.least:g} to {unit.most:g}: mark fill values in {mask}")
    if {"B5", "B8A", "B12"} <= set(sensor.bands) and unit is SCALED:
        _warn_offset(sensor, values, valid, statistics)


def _other_scale(
    sensor: Sensor, seen: Sequence[SeenBand], statistics: BandStatistics, fractions: bool
) -> OtherUnit | None:
    """Returns the unit that values seem to have by comparison with the statistics' numbers; None where they fit."""
    expected = [float(statistics.mean[sensor.bands.index(one.band)]) for one in seen]
    low, tops, far = min(one.low for one in seen), [one.top for one in seen], max(abs(one.mean) for one in seen)
    # Dark water is below 255 in some bands; an image of 8 bits is so in all, and bright somewhere in each.
    if not fractions and max(expected) > 2 * GREY.most and GREY.most / 4 < min(tops) and max(tops) <= GREY.most:
        return OtherUnit("grey values of 8 bits", "take the product with reflectances; these cannot be regained")
    if fractions and min(expected) > STANDARD_TOP and low < 0 and max(tops) <= STANDARD_TOP and far < STANDARD_MEAN:
        return STANDARDISED
    return None


def _warn_offset(sensor: Sensor, values: np.ndarray, valid: np.ndarray | None, statistics: BandStatistics) -> None:
    """Warns of Sentinel-2 values with the offset of processing baseline 04.00 where the statistics have none, or so."""
    keep = None if valid is None else np.broadcast_to(valid, values.shape)
    darkest, middle = [], []
    for band in range(sensor.num_bands):
        one = values[..., band, :, :].ravel() if keep is None else values[..., band, :, :][keep[..., band, :, :]]
        if one.size < FEW_OF_SCENE:
            return
        one = one[:: max(1, one.size // MOST_SAMPLED)]
        darkest.append(np.quantile(one, 0.01))
        middle.append(np.median(one))
    darkest, middle = np.asarray(darkest), np.asarray(middle)
    # As reflectance is above 0, a mean is about 0.6 deviations or more above 0, and the offset lifts it; of statistics
    # without the offset some band is less above 1000.
    offset = ((statistics.mean - OFFSET) / statistics.std).min() > 0.5
    dark = (darkest > 0.9 * OFFSET) & (darkest < 1.8 * OFFSET)
    if not offset and darkest.min() > 0.9 * OFFSET and dark.sum() > DARK_BANDS:
        found, expected, cure = "no value near 0", "values without it", "subtract 1000"
    elif offset and (middle < np.minimum(0.9 * OFFSET, statistics.mean - statistics.std)).sum() >= DARK_BANDS:
        found, expected, cure = "values below 1000", "values with it", "add 1000"
    else:
        return
    band = sensor.bands[int(darkest.argmin())]
    warnings.warn(
        f"{sensor.name!r} has {found} (the darkest hundredth of {band!r} is {darkest.min():.4g}, its median "
        f"{middle[darkest.argmin()]:.4g}), and {statistics.source} seem to be of {expected}, the offset of 1000 that "
        f"Sentinel-2 products have since processing baseline 04.00 (25 January 2022): {cure} if so, or give statistics "
        "of such values",
        stacklevel=7,
    )


def warn_unnormalised(
    sensor: Sensor,
    values: Float32[np.ndarray, "B *T C H W"],
    valid: Bool[np.ndarray, "B *t c h w"] | None,
    statistics: BandStatistics | None,
) -> None:
    """Warns of bands whose valid standardised values are far from mean 0 and deviation 1.

    `statistics` are those that standardised them, None if they were given so.
    """
    axes = tuple(axis for axis in range(values.ndim) if axis != values.ndim - 3)
    keep = True if valid is None else np.broadcast_to(valid, values.shape)
    count = np.maximum(np.sum(keep, axis=axes) if valid is not None else values.size / values.shape[-3], 1)
    # Sums over millions of pixels lose digits in float32.
    mean = values.sum(axis=axes, dtype=np.float64) / count
    square = np.square(values, dtype=np.float64).sum(axis=axes) / count
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    texts = [f"{band} (mean {m:.4g}, std {s:.4g})" for band, m, s in zip(sensor.bands, mean, std, strict=True)]
    far = (abs(mean) > MEAN_LIMIT) | (std > STD_LIMIT)
    suspects = [text for text, is_far in zip(texts, far, strict=True) if is_far]
    if statistics is not None:
        if suspects:
            warnings.warn(
                f"{sensor.name!r} is far from {statistics.source}: with these, {', '.join(suspects)}; expected "
                "about 0 and 1: give statistics of such values",
                stacklevel=6,
            )
        return
    # Invalid values are 0, which is inside.
    outside, total = np.count_nonzero((values < 0) | (values > 1)), values.shape[-3] * int(np.min(count))
    if not suspects and total >= FEW and values.any() and outside <= (1 - UNIT_SHARE) * total:
        suspects = [f"its values lie between 0 and 1 as those of reflectance or of an image / 255: {', '.join(texts)}"]
    if suspects:
        warnings.warn(
            f"{sensor.name!r} looks unnormalised: {', '.join(suspects)}; the model takes each band standardised to "
            "mean 0 and standard deviation 1 with the statistics of its data set",
            stacklevel=6,
        )
