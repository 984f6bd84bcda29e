"""Units of sensors' values: the values that cannot be in each, and which zeros are nothing observed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example


class Unit(NamedTuple):
    """A unit of a sensor's values."""

    name: str  # for messages
    # least, most: values outside cannot be in it.
    least: float
    most: float
    empty_zeros: bool  # whether 0 in all bands is nothing observed


DECIBELS = Unit("dB", -101.0, 60.0, True)  # beyond any backscatter
# Noise that was subtracted leaves powers slightly below 0.
POWER = Unit("linear power", -0.1, 1e6, True)
RADAR = Unit("dB or linear power", DECIBELS.least, POWER.most, True)
# Corrections of the atmosphere go below 0, glint and clouds beyond 1; a fill of -9999 x 0.0001 is -1.
REFLECTANCE = Unit("reflectance", -0.5, 10.0, True)
SCALED = Unit("reflectance x 10000", -5000.0, 1e5, True)
OPTICAL = Unit("reflectance of any scale", SCALED.least, SCALED.most, True)
GREY = Unit("grey values", 0.0, 255.0, False)
DIGITAL = Unit("digital numbers of Landsat 8, level 1", 0.0, 65535.0, True)
UNKNOWN = Unit("any unit", -1e19, 1e19, False)

# By the first of these that a card's words contain.
_WORDS = {"x 10000": SCALED, "linear": POWER, "grey": GREY}
_WORDS |= dict.fromkeys(("digital numbers", "as stored", "as the archive scales"))  # None: by the sensor
_WORDS |= {"dB": DECIBELS, "decibel": DECIBELS, "reflectance": REFLECTANCE}
_SENSORS = dict.fromkeys(("s2", "l7", "l8", "modis", "hls"), OPTICAL) | dict.fromkeys(("s1", "s1-asc"), RADAR)
_HIGH_POWER = 10.0  # no scene has half of its values above 10 dB
# Of the bands of a standardised tile: the least is below, the greatest and all means are within these, however cloudy.
STANDARD_LOW, STANDARD_TOP, STANDARD_MEAN = -0.1, 50.0, 3.0
# The band of Landsat 8 that is dark but for high clouds, and the digital number of level 1 that no light has.
CIRRUS, NO_LIGHT = "B9", 5000.0
_LOUD = 1.5  # dB that no scene reaches in the mean of all its polarisations


def unit_of(card: DatasetCard, name: str) -> Unit:
    """Returns the unit of a sensor's values by the card's words, or what a sensor of that name can have."""
    words = card.units.get(name, "")
    found = next((unit for word, unit in _WORDS.items() if word in words), None)
    return found or _SENSORS.get(name.removesuffix("-series"), UNKNOWN)


def check_values(card: DatasetCard, where: str, example: Example) -> Example:
    """Checks the values of an example and returns it without zeros and dates that are nothing observed.

    Pixels that are 0 in all bands become invalid where the unit implies it and the card has a mask; dates without a
    valid pixel are left out and counted in `<sensor>_empty`.

    Raises:
      ValueError: a valid value cannot be in its unit, or a sensor that is not optional has no valid pixel, or none
        of the sensors has one.
    """
    checked = dict(example)
    there = [name for name in card.sensors if name in example and example.get(f"{name}_present", True)]
    for name in there:
        unit = unit_of(card, name)
        if unit is OPTICAL and not card.units.get(name) and (values := example[name]).dtype.kind == "f":
            # Fractions are of reflectance of 0 to 1, as are then all values; 1 is the least of the other scale.
            fractions = np.count_nonzero((values > 0) & (values < 2) & (values != 1))
            unit = REFLECTANCE if fractions > 0.1 * np.count_nonzero(values) else unit
        if unit.empty_zeros and f"{name}_mask" in example:
            _leave_out_zeros(card, name, where, checked)
        if name in checked:
            _check_unit(unit, name, where, checked[name], checked.get(f"{name}_mask", np.True_))
    if not any(name in checked and checked.get(f"{name}_mask", np.True_).any() for name in there):
        raise ValueError(f"{where}: {', '.join(card.sensors)} have no valid pixel that is not 0; leave the tile out")
    return checked


def _leave_out_zeros(card: DatasetCard, name: str, where: str, example: Example) -> None:
    mask = example[f"{name}_mask"]
    empty = (example[name] == 0).all(axis=-3, keepdims=True)
    if not (mask & empty).any():
        return
    example[f"{name}_mask"] = mask = mask & ~empty
    keys = [key for key in (name, *(f"{name}_{k}" for k in ("dates", "years", "mask", "cloud"))) if key in example]
    if not mask.any():
        if name not in card.optional:
            raise ValueError(f"{where}: {name!r} is 0 in all bands of all valid pixels; leave the tile out")
        for key in (*keys, f"{name}_present", f"{name}_empty"):
            example.pop(key, None)
    elif get_sensor(name).has_dates and not (seen := mask.any(axis=(1, 2, 3))).all():
        example |= {key: example[key][seen] for key in keys}
        example[f"{name}_empty"] = np.int32(example.get(f"{name}_empty", 0) + np.count_nonzero(~seen))


def _check_unit(unit: Unit, name: str, where: str, values: np.ndarray, mask: np.ndarray) -> None:
    seen = seen_bands(name, values, mask)
    for one in seen:
        if one.low < unit.least or one.top > unit.most:
            raise ValueError(
                f"{where}: band {one.band!r} of {name!r} runs from {one.low:g} to {one.top:g}; expected {unit.name}, "
                f"{unit.least:g} to {unit.most:g}: correct the units, or declare the value of missing pixels as nodata"
            )
    if found := other_unit(unit, seen, values.dtype.kind == "f"):
        low, top = min(one.low for one in seen), max(one.top for one in seen)
        raise ValueError(
            f"{where}: {name!r} runs from {low:g} to {top:g}, like {found.name}; expected {unit.name}: correct the "
            f"units, or convert the values ({found.conversion})"
        )


class SeenBand(NamedTuple):
    """The valid values of a band."""

    band: str
    low: float
    top: float
    mean: float
    high: float  # fraction of values above _HIGH_POWER


def seen_bands(name: str, values: np.ndarray, mask: np.ndarray) -> list[SeenBand]:
    """Returns what is seen of a sensor's bands (..., C, H, W); without ratios, and bands that are not finite.

    The mask is True where valid, and broadcasts against the values.
    """
    valid, found = np.broadcast_to(mask, values.shape), []
    for number, band in enumerate(get_sensor(name).bands):
        keep, seen = valid[..., number, :, :], values[..., number, :, :]
        seen = seen if keep.all() else seen[keep]
        # Ratios have no limits: their divisor may be as small as noise.
        if "/" in band or not seen.size or not np.isfinite([low := float(seen.min()), top := float(seen.max())]).all():
            continue
        high = np.count_nonzero(seen > _HIGH_POWER) / seen.size
        found.append(SeenBand(band, low, top, float(seen.mean(dtype=np.float64)), high))
    return found


class OtherUnit(NamedTuple):
    """The unit that values are in, and how to convert them into the expected one."""

    name: str
    conversion: str


STANDARDISED = OtherUnit("values that are standardised already", "standardise once only")


def other_unit(unit: Unit, seen: Sequence[SeenBand], fractions: bool) -> OtherUnit | None:
    """Returns the unit that values are in, where it is not the expected one; None where they can be in that.

    Args:
      fractions: whether there are others than whole numbers.
    """
    if not seen:
        return None
    low, top = min(one.low for one in seen), max(one.top for one in seen)
    means = [one.mean for one in seen]
    # Standardised bands have means near 0 and, of the one or the other band, values below.
    standardised = fractions and low < STANDARD_LOW and top <= STANDARD_TOP and max(map(abs, means)) < STANDARD_MEAN
    rules = {
        DECIBELS: [
            (low >= 0 and top > 0, OtherUnit("linear power", "10 log10(value)")),
            (standardised and top > 0 and max(map(abs, means)) < _LOUD, STANDARDISED),
        ],
        POWER: [
            (low < unit.least and max(means) <= -STANDARD_MEAN, OtherUnit("dB", "10^(value / 10)")),
            (low < unit.least and standardised, STANDARDISED),
            (
                2 * np.mean([one.high for one in seen]) > 1,
                OtherUnit("digital numbers", "by the product's calibration"),
            ),
        ],
        SCALED: [
            (standardised and (min(means) < 0 or low < REFLECTANCE.least), STANDARDISED),
            (fractions and 0 < top <= 2, OtherUnit("reflectance of 0 to 1", "x 10000")),
        ],
        DIGITAL: [
            (standardised, STANDARDISED),
            # In any scale of reflectance the band of cirrus is dark.
            (
                min((one.mean for one in seen if one.band == CIRRUS), default=NO_LIGHT) < NO_LIGHT / 2,
                OtherUnit("reflectance", "take the product of level 1, without scaling it"),
            ),
        ],
        REFLECTANCE: [
            (top > unit.most and max(means) > unit.most, OtherUnit("reflectance x 10000", "/ 10000")),
            (low < unit.least and standardised, STANDARDISED),
        ],
        GREY: [
            (low < unit.least and standardised, STANDARDISED),
            (fractions and 0 < top <= 1, OtherUnit("values divided by 255", "x 255")),
            (top > unit.most and low >= 0, OtherUnit("numbers of more than 8 bits", "scale them to 0 to 255")),
        ],
    }
    return next((other for applies, other in rules.get(unit, ()) if applies), None)


def unit_of_statistics(name: str, mean: Float[np.ndarray, "C"]) -> Unit:
    """Returns the unit of values with these means of a sensor's bands; UNKNOWN where it may be one or another."""
    sensor = get_sensor(name)
    means = [one for band, one in zip(sensor.bands, mean.tolist(), strict=True) if "/" not in band]
    if set(sensor.bands) & {"VV", "VH", "HH", "HV"}:
        return DECIBELS if max(means) < 0 else POWER if min(means) > 0 and max(means) < _HIGH_POWER else UNKNOWN
    if min(means) <= 0:
        return UNKNOWN
    if max(means) <= 1:
        return REFLECTANCE
    if max(means) > GREY.most:
        is_digital = name == "l8" and mean[sensor.bands.index(CIRRUS)] > 0.8 * NO_LIGHT
        return DIGITAL if is_digital else SCALED
    return GREY if sensor.kind == "image" and max(means) > STANDARD_TOP else UNKNOWN
