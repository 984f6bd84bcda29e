"""Names of files and bands: the band, the mask, the day and the product in them."""

import datetime
import itertools
import re
from typing import NamedTuple

from anysat_jax.sensors import Sensor
from data_pipelines.bands import band_key, common_names
from data_pipelines.dates import parse_day, parse_day_of_year

# Of products, what is neither a band of a sensor nor a mask of clouds.
_AUXILIARY = {
    "TCI",
    "AOT",
    "WVP",
    "PVI",
    "RADSAT",
    "AEROSOL",
    "VAA",
    "VZA",
    "SAA",
    "SZA",
    "PREVIEW",
    "THUMB",
    "QUICKLOOK",
}
# Words that differ between the files of one product.
_WORDS_OF_FILES = {"SR", "ST", "TOA", "QA", "PIXEL", "10M", "20M", "60M", "R10M", "R20M", "R60M", "VCID"}


class MaskKind(NamedTuple):
    """A kind of classification: the classes that are valid, and what they are, for a note."""

    clear: tuple[int, ...]
    meaning: str


def _without_bits(count: int, *forbidden: int) -> tuple[int, ...]:
    """Returns the numbers of `count` bits that do not have all bits of one of some others."""
    return tuple(value for value in range(2**count) if all(value & bits != bits for bits in forbidden))


# Dark features (2) are ground, often water or forest; cloud shadows (3) hide it.
_SCL = MaskKind((2, 4, 5, 6, 7, 11), "clouds, cirrus, cloud shadows, saturated and missing pixels are left out")
_QA_PIXEL = MaskKind(
    _without_bits(16, *(1 << bit for bit in range(5))),
    "fill, clouds, dilated clouds, cirrus and cloud shadows are left out",
)
# Of collection 1: shadows and cirrus have two bits of confidence.
_BQA = MaskKind(_without_bits(16, 1, 1 << 4, 3 << 7, 3 << 11), "fill, clouds, cloud shadows and cirrus are left out")
_FMASK = MaskKind(_without_bits(8, 1 << 1, 1 << 2, 1 << 3), "clouds, their surroundings and shadows are left out")
_ZERO = MaskKind((0,), "0 is taken as clear, all other values as hidden")
MASKS = {"SCL": _SCL, "QA_PIXEL": _QA_PIXEL, "BQA": _BQA, "FMASK": _FMASK}
MASKS |= dict.fromkeys(("QA60", "QA", "MASK", "CLOUD", "CLOUDS", "CLOUDMASK", "CLM"), _ZERO)


MISSIONS = ("s2", "l7", "l8", "s1", "s1-asc")  # sensors whose products have names


class Product(NamedTuple):
    """A product by its operator's name."""

    name: str
    sensors: tuple[str, ...]  # names of the sensors that it can be of
    level: str
    day: datetime.date  # of sensing
    identity: tuple[str, ...]  # the same for all that were processed of one observation
    version: tuple[str, ...]  # grows with processing
    baseline: int = 0  # of Sentinel-2: 400 is 04.00


_S2 = re.compile(
    r"(S2[A-D])_MSI(L1C|L2A)_(\d{8})T(\d{6})_N(\d{4})_R(\d{3})_T(\w{5})_(\d{8}T\d{6})", re.ASCII | re.IGNORECASE
)
_S1 = re.compile(r"(S1[A-D]_\w\w_\w{4}_\w{4}_(\d{8})T\d{6}_\d{8}T\d{6}_\d{6}_\w{6})_(\w{4})", re.ASCII | re.IGNORECASE)
_LANDSAT = re.compile(r"(L[COET]0\d)_(L\w\w\w)_(\d{6})_(\d{8})_(\d{8})_(\d\d)_(T1|T2|RT)", re.ASCII | re.IGNORECASE)
_LANDSAT_SENSORS = {"LC08": "l8", "LC09": "l8", "LE07": "l7", "LT05": "l7", "LT04": "l7"}


def find_product(text: str) -> Product | None:
    """Returns the Sentinel or Landsat product that a path or name has in it."""
    if match := _S2.search(text):
        mission, level, day, time, baseline, orbit, tile, _ = match.groups()
        identity = mission, level, day, time, orbit, tile
        # Of one baseline both stay: a strip's end leaves a part of the tile in either.
        return Product(match[0], ("s2",), level.upper(), parse_day(day, text), identity, (baseline,), int(baseline))
    if match := _S1.search(text):
        return Product(match[0], ("s1", "s1-asc"), "", parse_day(match[2], text), (match[1],), (match[3],))
    if match := _LANDSAT.search(text):
        mission, level, place, day, processed, collection, _ = match.groups()
        sensor = _LANDSAT_SENSORS.get(mission.upper(), mission)
        identity = mission, level, place, day
        return Product(match[0], (sensor,), level[:2].upper(), parse_day(day, text), identity, (collection, processed))
    return None


_DAY = re.compile(r"(?<!\d)(?:(?P<a>(?:19|20)\d{6})(?!\d)|(?P<b>(?:19|20)\d\d([-_/])\d\d\3\d\d)(?!\d))", re.ASCII)
# Of HLS (2018285T101010), MODIS (A2020121, doy2020121) and Landsat's older names (LC81950252013188LGN01).
_DAY_OF_YEAR = re.compile(
    r"(?<!\d)((?:19|20)\d{5})T\d|(?:\bA|doy)((?:19|20)\d{5})(?!\d)|L[COETM]\d{7}((?:19|20)\d{5})[A-Z]{3}", re.ASCII
)


def days_in(text: str) -> list[datetime.date]:
    """Returns the different days that a name has in it: as yyyymmdd, yyyy-mm-dd, or as products have them."""
    if product := find_product(text):
        return [product.day]
    found = {}
    for match in _DAY.finditer(text):
        try:
            found[parse_day((match["a"] or match["b"]).replace("_", "-"), text)] = None
        except ValueError:  # other numbers of eight digits
            continue
    for match in _DAY_OF_YEAR.finditer(text):
        try:
            found[parse_day_of_year(next(filter(None, match.groups())), text)] = None
        except ValueError:
            continue
    return list(found)


def words(text: str) -> list[str]:
    """Returns the words of a name or path, in capitals."""
    return [word for word in re.split(r"[^A-Z0-9]+", text.upper()) if word]


def band_in(text: str, sensor: Sensor) -> str:
    """Returns the sensor's band that a name or description has in it, its last one; "" where there is none."""
    known = {band_key(band): band for band in sensor.bands}
    others = common_names(sensor)
    whole = band_key(text)
    if whole in known or others.get(whole) in known:
        return known[whole if whole in known else others[whole]]
    found = words(text)
    for last, word in zip([True] + [False] * len(found), reversed(found)):
        key = band_key(word)
        key = key if key in known else others.get(key, key)
        # A letter within a name is not a band.
        if key in known and (last or len(word) > 1):
            return known[key]
    return ""


def mask_in(text: str) -> str:
    """Returns the kind of mask that a name has in it, a key of `MASKS`; "" where there is none."""
    found = words(text)
    if set(found) & _AUXILIARY:
        return ""
    if ("QA", "PIXEL") in itertools.pairwise(found):
        return "QA_PIXEL"
    return next((word for word in reversed(found) if word in MASKS), "")


def is_auxiliary(text: str) -> bool:
    """Returns whether a file is of a product, but neither a band of the sensor nor a mask: an image, another band."""
    found = words(text)
    return bool(set(found) & _AUXILIARY) or any(re.fullmatch(r"B\d\d?A?", word) for word in found[-3:])


def key_of(text: str, band: str, mask: str) -> str:
    """Returns what the paths of all files of an acquisition have in common: their words without band and resolution."""
    without = _WORDS_OF_FILES | ({mask} if mask else set())
    return " ".join(
        word for word in words(text) if word not in without and (not band or band_key(word) != band_key(band))
    )
