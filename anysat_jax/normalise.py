"""Statistics that standardise raw values: which they are, and whether values are in their units."""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.bands import band_key
from data_pipelines.registry import dataset_names, get_entry

# A standardised band has mean 0 and deviation 1 over its data set; a single cloudy tile stays far below these.
MEAN_LIMIT, STD_LIMIT = 10.0, 20.0
UNIT_SHARE, FEW = 0.99, 16  # share of values in 0..1 that standardised bands do not have, unless they are few
CURE = (
    "`anysat data statistics FOLDER --out statistics.json` computes those of your data, for "
    "normalise='statistics.json'; or standardise the values yourself, with normalise=None"
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
            f"name the one that your values are like, such as normalise={datasets[0]!r}, or give your own: {CURE}"
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


def standardise(values: Float[Any, "B *T C H W"], statistics: BandStatistics) -> Float[Any, "B *T C H W"]:
    """Returns float32 values, of numpy or jax, with mean 0 and standard deviation 1 for each band."""
    mean, std = (one.reshape(-1, 1, 1)[(None,) * (values.ndim - 3)] for one in (statistics.mean, statistics.std))
    return (values - mean) / std


def warn_unnormalised(sensor: Sensor, values: np.ndarray, valid: Bool[np.ndarray, "B *t c h w"] | None) -> None:
    """Warns of bands whose valid values are far from mean 0 and deviation 1."""
    axes = tuple(axis for axis in range(values.ndim) if axis != values.ndim - 3)
    where = True if valid is None else np.broadcast_to(valid, values.shape)
    count = np.maximum(np.sum(where, axis=axes) if valid is not None else values.size / values.shape[-3], 1)
    # Sums over millions of pixels lose digits in float32.
    mean = values.sum(axis=axes, dtype=np.float64) / count
    square = np.square(values, dtype=np.float64).sum(axis=axes) / count
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    texts = [f"{band} (mean {m:.4g}, std {s:.4g})" for band, m, s in zip(sensor.bands, mean, std, strict=True)]
    far = (abs(mean) > MEAN_LIMIT) | (std > STD_LIMIT)
    suspects = [text for text, is_far in zip(texts, far, strict=True) if is_far]
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
