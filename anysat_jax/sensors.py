"""The sensors: one record each, and a registry to which users add their own.

A record has only facts (bands, metres per pixel, kind, sub-patch); every layer of the library reads them from here.
Facts of the eleven GeoPlex sensors: paper, section 3 and Table C, and the shapes of the published weights.
"""

import dataclasses
import math
import numbers
import re
from typing import Literal

Kind = Literal["image", "series", "context"]

CELL_METRES = 10.0  # the published code's unit of length: "scale" 4 there is a patch of 40 m here


@dataclasses.dataclass(frozen=True)
class Sensor:
    """Facts of a sensor.

    Attributes:
      name: the key in a `data` dict, e.g. "s2"; its dates are `<name>_dates`.
      kind: "image" (B, C, H, W), "series" (B, T, C, H, W) with dates, or "context": a series of one pixel that
        covers the whole tile and enters the combiner as one token without a position (MODIS).
      bands: band names, in the order of the channel axis.
      metres_per_pixel: ground sampling distance of the array that the model takes, in metres.
      subpatch_pixels: pixels along one side of a sub-patch, the smallest token (paper: delta).
      date_period: base of the frequencies of the date encoding, in days (series only).
      normalise_over_dates: whether a GroupNorm with statistics over all dates precedes the date encoding (s2 only).
      dropout: dropout rate of the projector in training (series only).
    """

    name: str
    kind: Kind
    bands: tuple[str, ...]
    metres_per_pixel: float
    subpatch_pixels: int = 1
    date_period: float = 367.0
    normalise_over_dates: bool = False
    dropout: float = 0.2

    def __post_init__(self) -> None:
        kinds = {"name": str, "metres_per_pixel": numbers.Real, "subpatch_pixels": numbers.Integral}
        for field, kind in {**kinds, "date_period": numbers.Real, "dropout": numbers.Real}.items():
            if isinstance(value := getattr(self, field), bool) or not isinstance(value, kind):
                expected = {str: "a text", numbers.Real: "a number", numbers.Integral: "a whole number"}[kind]
                raise ValueError(f"sensor {self.name!r}: {field} is {value!r}; it must be {expected}")
        if isinstance(self.bands, str) or not all(isinstance(band, str) for band in self.bands):
            raise ValueError(f"sensor {self.name!r}: bands is {self.bands!r}; it must be a tuple of names")
        if not self.name or any(self.name.endswith(s) for s in ("_dates", "_mask", "_date_mask", "_present")):
            raise ValueError(f"sensor name {self.name!r} must not be empty or end like the key of dates or a mask")
        if re.search(r"[\s/\\]", self.name):  # names of parameters and of files are made of it
            raise ValueError(f"sensor name {self.name!r} must not contain a slash or a space")
        if self.kind not in ("image", "series", "context"):
            raise ValueError(f"sensor {self.name!r}: kind is {self.kind!r}; it must be 'image', 'series' or 'context'")
        if not self.bands:
            raise ValueError(f"sensor {self.name!r}: bands is empty; name at least one band")
        if not (math.isfinite(self.metres_per_pixel) and self.metres_per_pixel > 0):
            raise ValueError(f"sensor {self.name!r}: metres_per_pixel is {self.metres_per_pixel}; it must be positive")
        if not (math.isfinite(self.date_period) and self.date_period > 0):
            raise ValueError(f"sensor {self.name!r}: date_period is {self.date_period}; it must be a positive number")
        if self.subpatch_pixels < 1 or (self.kind != "image" and self.subpatch_pixels != 1):
            raise ValueError(
                f"sensor {self.name!r}: subpatch_pixels is {self.subpatch_pixels}; images take 1 or more, "
                "series exactly 1"
            )

    @property
    def num_bands(self) -> int:
        return len(self.bands)

    @property
    def has_dates(self) -> bool:
        return self.kind != "image"

    @property
    def subpatch_metres(self) -> float:
        """Side of a sub-patch in metres (paper: R * delta)."""
        return self.metres_per_pixel * self.subpatch_pixels

    def subpatches_per_side(self, patch_size: float) -> int:
        """Sub-patches along one side of a patch of `patch_size` metres; a context sensor always has one.

        Raises:
          ValueError: the patch is not a whole number of sub-patches.
        """
        if self.kind == "context":
            return 1
        count = whole_number(patch_size / self.subpatch_metres)
        if count is None or count < 1:
            raise ValueError(
                f"a patch of {patch_size:g} m is not a whole number of {self.name!r} sub-patches of "
                f"{self.subpatch_metres:g} m"
            )
        return count

    def pixels(self, extent: float) -> int:
        """Pixels along a tile side of `extent` metres; one for a context sensor.

        Raises:
          ValueError: the extent is not a whole number of pixels.
        """
        if self.kind == "context":
            return 1
        count = whole_number(extent / self.metres_per_pixel)
        if count is None or count < 1:
            raise ValueError(
                f"an extent of {extent:g} m is not a whole number of {self.name!r} pixels of "
                f"{self.metres_per_pixel:g} m"
            )
        return count


def whole_number(value: float, tolerance: float = 1e-6) -> int | None:
    """Returns `value` as an int if it is whole up to rounding, else None."""
    nearest = round(value)
    # Pixel sizes such as 0.2 m are not exact in binary: 0.6 / 0.2 is below 3.
    return nearest if abs(value - nearest) <= tolerance * max(1.0, abs(value)) else None


_S2_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
_RADAR_BANDS = ("VV", "VH", "VV/VH")

SENSORS: dict[str, Sensor] = {
    sensor.name: sensor
    for sensor in (
        Sensor("aerial", "image", ("R", "G", "B", "NIR"), 0.2, subpatch_pixels=10),
        Sensor("aerial-flair", "image", ("R", "G", "B", "NIR", "elevation"), 0.2, subpatch_pixels=10),
        Sensor("spot", "image", ("R", "G", "B"), 1.0, subpatch_pixels=10),
        Sensor("naip", "image", ("R", "G", "B", "NIR"), 1.25, subpatch_pixels=8),
        Sensor("s2", "series", _S2_BANDS, 10.0, normalise_over_dates=True, dropout=0.0),
        Sensor("s1-asc", "series", ("VV", "VH"), 10.0),
        Sensor("s1", "series", _RADAR_BANDS, 10.0),
        Sensor("alos", "series", ("HH", "HV", "HH/HV"), 30.0),
        Sensor("l7", "series", ("B1", "B2", "B3", "B4", "B5", "B7"), 30.0),
        Sensor(
            "l8",
            "series",
            ("B8", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11"),
            10.0,
            date_period=366.0,
            dropout=0.0,
        ),
        Sensor("modis", "context", ("B1", "B2", "B3", "B4", "B5", "B6", "B7"), 250.0),
        Sensor("hls", "series", ("B2", "B3", "B4", "B8A", "B11", "B12"), 30.0, date_period=366.0),
        Sensor("planet", "image", ("R", "G", "B"), 3.0, subpatch_pixels=4),
    )
}
"""Every registered sensor by name; `register` adds more. The first eleven are those of GeoPlex.

The published weights do not have projectors for "hls" and "planet", which only downstream tasks use.
"""

GEOPLEX_SENSORS: tuple[str, ...] = tuple(SENSORS)[:11]
"""The eleven sensors of the published model."""


def register(sensor: Sensor) -> Sensor:
    """Adds a sensor to the registry, so that models, readers and configs can use it by name.

    Registering an equal record again is allowed, as when a notebook cell is run twice.

    Raises:
      ValueError: another record has the same name.
    """
    known = SENSORS.setdefault(sensor.name, sensor)
    if known != sensor:
        raise ValueError(f"sensor {sensor.name!r} is already registered as {known}; choose another name")
    return sensor


def get_sensor(name: str) -> Sensor:
    """Returns the record of a sensor.

    Raises:
      ValueError: the name is unknown; the message lists the known ones.
    """
    try:
        return SENSORS[name]
    except KeyError:
        raise ValueError(
            f"unknown sensor {name!r}; known sensors: {', '.join(SENSORS)}. anysat_jax.sensors.register adds one."
        ) from None
