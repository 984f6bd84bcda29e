"""Bands by name: from the order of a file to the order of a sensor, and the radar's ratio band."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Num, UInt16

from anysat_jax.sensors import Sensor
from data_pipelines.units import DECIBELS

# Linear power below any real backscatter, so that a ratio stays finite.
SMALLEST_POWER = 1e-10


# Names of bands in catalogues (STAC), and of colours, by the sensors whose bands they are.
_VISIBLE = ("COASTAL", "BLUE", "GREEN", "RED")
COMMON_NAMES = {
    "s2": dict(zip(_VISIBLE[1:], ("B2", "B3", "B4")))
    | {
        "REDEDGE1": "B5",
        "REDEDGE2": "B6",
        "REDEDGE3": "B7",
        "NIR": "B8",
        "NIR08": "B8A",
        "SWIR16": "B11",
        "SWIR22": "B12",
    },
    "hls": dict(zip(_VISIBLE[1:], ("B2", "B3", "B4"))) | {"NIR08": "B8A", "SWIR16": "B11", "SWIR22": "B12"},
    "l7": dict(zip(_VISIBLE[1:], ("B1", "B2", "B3"))) | {"NIR": "B4", "NIR08": "B4", "SWIR16": "B5", "SWIR22": "B7"},
    "l8": dict(zip(_VISIBLE, ("B1", "B2", "B3", "B4")))
    | {"NIR08": "B5", "SWIR16": "B6", "SWIR22": "B7", "PAN": "B8", "CIRRUS": "B9", "LWIR11": "B10", "LWIR12": "B11"},
}
LETTERS = {"RED": "R", "GREEN": "G", "BLUE": "B"}


def band_key(name: str) -> str:
    """Returns a band's name in the spelling by which names are compared: "b02" is "B2"."""
    return re.sub(r"^B0+(?=\d)", "B", name.strip().upper())


def common_names(sensor: Sensor) -> dict[str, str]:
    """Returns a sensor's bands by their names in catalogues, in capitals; of one's own sensors by what bands it has."""
    return COMMON_NAMES.get(sensor.name) or (COMMON_NAMES["s2"] if "B8A" in sensor.bands else LETTERS)


def to_uint16(where: Any, values: Num[np.ndarray, "*axes"], what: str) -> UInt16[np.ndarray, "*axes"]:
    """Returns an archive's numbers, like reflectance x 10000, as uint16; floats are rounded.

    For the error, `where` is the file, or file and array, and `what` the expectation, with its range.

    Raises:
      ValueError: a number is not finite or lies outside 0 to 65535.
    """
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= np.iinfo(np.uint16).max):
        raise ValueError(f"{where} runs from {values.min():g} to {values.max():g}; expected {what}")
    return (values if values.dtype.kind in "iu" else np.rint(values)).astype(np.uint16)


def pick_bands(
    values: Num[np.ndarray, "*T c H W"], file_bands: Sequence[str], bands: Sequence[str]
) -> Num[np.ndarray, "*T C H W"]:
    """Returns a sensor's bands, in its order, out of those of a file.

    Raises:
      ValueError: the file has another number of bands than names, or lacks one.
    """
    missing = [band for band in bands if band not in file_bands]
    if values.shape[-3] != len(file_bands) or missing:
        raise ValueError(f"{values.shape[-3]} bands, expected {tuple(file_bands)} with all of {tuple(bands)}")
    order = [list(file_bands).index(band) for band in bands]
    return np.ascontiguousarray(values[..., order, :, :])


def with_ratio(power: Float32[np.ndarray, "*T 2 H W"]) -> Float32[np.ndarray, "*T 3 H W"]:
    """Returns two polarisations in linear power and their ratio, first over second."""
    first, second = power[..., :1, :, :], power[..., 1:2, :, :]
    ratio = first / np.maximum(second, np.float32(SMALLEST_POWER))
    return np.concatenate([power, ratio], axis=-3).astype(np.float32)


def with_ratio_of_decibels(decibels: Float32[np.ndarray, "*T 2 H W"]) -> Float32[np.ndarray, "*T 3 H W"]:
    """Returns two polarisations in dB and their ratio in dB."""
    # The ratio of powers is the difference of their dB; a quotient of dB means nothing.
    ratio = decibels[..., :1, :, :] - decibels[..., 1:2, :, :]
    return np.concatenate([decibels, ratio], axis=-3).astype(np.float32)


def in_decibels(
    where: str, backscatter: Num[np.ndarray, "*T C H W"], valid: Bool[np.ndarray, "*T c H W"]
) -> Float32[np.ndarray, "*T C H W"]:
    """Returns radar backscatter in dB, of files that hold dB or linear power without metadata on which.

    Raises:
      ValueError: it is neither, such as digital numbers, or decibels times 100.
    """
    values = np.asarray(backscatter, np.float32)
    seen = values[np.broadcast_to(valid, values.shape)]
    low, high = (float(limit) for limit in (seen.min(initial=0), seen.max(initial=0)))
    # Power is not negative, except slightly where noise was subtracted; a scene in dB always has values below -1 dB.
    linear = low >= -1
    numbers = linear and high > 1 and np.asarray(backscatter).dtype.kind in "iu"
    if numbers or low < DECIBELS.least or (10 * np.log10(max(high, 1.0)) if linear else high) > DECIBELS.most:
        kind = np.asarray(backscatter).dtype
        raise ValueError(f"{where}: backscatter runs from {low:g} to {high:g} ({kind}); expected dB or linear power")
    if not linear:
        return values
    return (10 * np.log10(np.maximum(values, np.float32(SMALLEST_POWER)))).astype(np.float32)


def doubled(values: Num[np.ndarray, "*axes H W"]) -> Float32[np.ndarray, "*axes 2*H 2*W"]:
    """Interpolates to pixels of half the side, bilinearly: 3/4 of the pixel itself, 1/4 of the nearer neighbour.

    Pixels are areas that keep their place, as in torchvision and OpenCV; at the border the pixel is its own neighbour.
    """
    doubled_rows = _along_last(np.swapaxes(np.asarray(values, np.float32), -1, -2))
    return np.ascontiguousarray(_along_last(np.swapaxes(doubled_rows, -1, -2)))


def _along_last(values: Float32[np.ndarray, "*axes W"]) -> Float32[np.ndarray, "*axes 2*W"]:
    before = np.concatenate([values[..., :1], values[..., :-1]], axis=-1)
    after = np.concatenate([values[..., 1:], values[..., -1:]], axis=-1)
    pairs = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis=-1)
    return pairs.reshape(*values.shape[:-1], -1)
