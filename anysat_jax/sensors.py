"""The sensors: one record each, and a registry to which users add their own.

A record has only facts (bands, metres per pixel, kind, sub-patch); every layer of the library reads them from here.
Facts of the eleven GeoPlex sensors: paper, section 3 and Table C, and the shapes of the published weights.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable
from typing import Any, Literal

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
      wavelengths_nm: centre of each band in nanometres, 0 for one that is not light, such as elevation; () where it is
        not known, and for radar. See `nearest_sensor`.
    """

    name: str
    kind: Kind
    bands: tuple[str, ...]
    metres_per_pixel: float
    subpatch_pixels: int = 1
    date_period: float = 367.0
    normalise_over_dates: bool = False
    dropout: float = 0.2
    # It decides first values alone: records that differ in it, such as those of older files, are of the same sensor.
    wavelengths_nm: tuple[float, ...] = dataclasses.field(default=(), compare=False)

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
        centres = self.wavelengths_nm
        if not isinstance(centres, tuple | list) or not (
            len(centres) in (0, len(self.bands))
            and all(isinstance(one, numbers.Real) and 0 <= one < math.inf for one in centres)
        ):
            raise ValueError(
                f"sensor {self.name!r}: wavelengths_nm is {centres!r}; it must have a number of nanometres for each of "
                f"the bands {', '.join(self.bands)}, 0 for one that is not light, or be empty"
            )
        object.__setattr__(self, "wavelengths_nm", tuple(centres))  # files have lists

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


# Centres of bands in nanometres, as the operators publish them: ESA (Sentinel-2A), USGS and NASA (Landsat 7: middles of
# the bands' limits; Landsat 8; MODIS: middles), Airbus (SPOT 6 and 7: middles), Planet (PlanetScope: middles).
_S2 = dict(B2=493, B3=560, B4=665, B5=704, B6=741, B7=783, B8=833, B8A=865, B11=1614, B12=2202)
_L7 = dict(B1=485, B2=560, B3=660, B4=835, B5=1650, B7=2220)
_L8 = dict(B8=590, B1=443, B2=482, B3=561, B4=655, B5=865, B6=1609, B7=2201, B9=1373, B10=10895, B11=12005)
_MODIS = dict(B1=645, B2=859, B3=469, B4=555, B5=1240, B6=1640, B7=2130)
_HLS = {band: _S2[band] for band in ("B2", "B3", "B4", "B8A", "B11", "B12")}
_SPOT = dict(R=660, G=560, B=490)
_PLANET = dict(R=665, G=565, B=490)
_RADAR_BANDS = ("VV", "VH", "VV/VH")


def _optical(name: str, kind: Kind, centres: dict[str, float], metres_per_pixel: float, **facts: Any) -> Sensor:
    return Sensor(name, kind, tuple(centres), metres_per_pixel, wavelengths_nm=tuple(centres.values()), **facts)


SENSORS: dict[str, Sensor] = {
    sensor.name: sensor
    for sensor in (
        Sensor("aerial", "image", ("R", "G", "B", "NIR"), 0.2, subpatch_pixels=10),
        Sensor("aerial-flair", "image", ("R", "G", "B", "NIR", "elevation"), 0.2, subpatch_pixels=10),
        _optical("spot", "image", _SPOT, 1.0, subpatch_pixels=10),
        Sensor("naip", "image", ("R", "G", "B", "NIR"), 1.25, subpatch_pixels=8),
        _optical("s2", "series", _S2, 10.0, normalise_over_dates=True, dropout=0.0),
        Sensor("s1-asc", "series", ("VV", "VH"), 10.0),
        Sensor("s1", "series", _RADAR_BANDS, 10.0),
        Sensor("alos", "series", ("HH", "HV", "HH/HV"), 30.0),
        _optical("l7", "series", _L7, 30.0),
        _optical("l8", "series", _L8, 10.0, date_period=366.0, dropout=0.0),
        _optical("modis", "context", _MODIS, 250.0),
        _optical("hls", "series", _HLS, 30.0, date_period=366.0),
        _optical("planet", "image", _PLANET, 3.0, subpatch_pixels=4),
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


# ---------------------------------------------------------------- which sensor another one resembles

# Of the bands with these names in records without wavelengths: an aerial camera's (Leica ADS100, middles).
COLOURS_NM = {"R": 635.0, "G": 555.0, "B": 465.0, "NIR": 845.0}
POLARISATIONS = {"VV": "co", "HH": "co", "VH": "cross", "HV": "cross", "VV/VH": "ratio", "HH/HV": "ratio"}
# As the logarithm of a ratio of wavelengths: red and near infrared are nearer, thermal and visible are not.
FARTHEST = math.log(1.5)
# What a factor of e in the pixel size, and a norm over dates that one of the two lacks, count beside it.
OF_RESOLUTION, OF_NORM = 0.1, 0.1


def _measured(sensor: Sensor) -> list[float | str]:
    """Returns the quantity of each band: its wavelength in nm, a kind of polarisation, or its name."""
    centres = sensor.wavelengths_nm or [COLOURS_NM.get(band, 0.0) for band in sensor.bands]
    return [centre or POLARISATIONS.get(band, band) for centre, band in zip(centres, sensor.bands, strict=True)]


def _distance(one: float | str, other: float | str) -> float:
    if isinstance(one, str) or isinstance(other, str):
        return 0.0 if one == other else math.inf
    return abs(math.log(one / other))


def nearest_bands(wanted: Sensor, among: Sensor) -> tuple[int | None, ...]:
    """Returns the position in `among` of the band nearest to each of `wanted`: by wavelength, polarisation or name.

    None where the nearest wavelength is more than half longer or shorter, or no band has that polarisation or name.
    """
    rows = [[_distance(band, other) for other in _measured(among)] for band in _measured(wanted)]
    return tuple(row.index(min(row)) if min(row) <= FARTHEST else None for row in rows)


def nearest_sensor(new: Sensor, known: Iterable[str]) -> Sensor | None:
    """Returns the sensor among `known` whose projector suits a new sensor best; None where none has a band like its.

    Images and series have different projectors. Of the same kind, the nearest bands decide, then the pixel size.
    """

    def distance(sensor: Sensor) -> float:
        bands = [min(FARTHEST, *(_distance(one, other) for other in _measured(sensor))) for one in _measured(new)]
        metres = abs(math.log(sensor.metres_per_pixel / new.metres_per_pixel))
        norm = sensor.normalise_over_dates != new.normalise_over_dates
        return sum(bands) / len(bands) + OF_RESOLUTION * metres + OF_NORM * norm

    alike = [sensor for sensor in map(get_sensor, known) if sensor.has_dates == new.has_dates]
    alike = [sensor for sensor in alike if set(nearest_bands(new, sensor)) != {None}]
    return min(alike, key=distance, default=None)
