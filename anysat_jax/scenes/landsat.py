"""Landsat's products in reflectance x 10000: collection 2 at the surface, level 1 at the top of the atmosphere."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

from anysat_jax.scenes.files import in_units
from anysat_jax.scenes.naming import find_product
from anysat_jax.scenes.reading import Acquisition
from anysat_jax.scenes.warping import RasterBand
from anysat_jax.sensors import get_sensor
from data_pipelines.files import explained
from data_pipelines.units import DIGITAL

SURFACE = 2.75e-5, -0.2  # scale and offset of collection 2's reflectance, which its files do not declare (USGS)
THERMAL = ("B10", "B11")  # of "l8"; "l7" has none
METADATA = "_MTL.txt"  # of a product, beside its bands
FILL = 0.0  # digital number of pixels outside of the scene or in gaps, in each band


def in_reflectance(name: str, acquisitions: Sequence[Acquisition], units: str = "") -> tuple[list[Acquisition], list]:
    """Returns acquisitions of Landsat in reflectance x 10000, thermal bands in kelvins, and notes on what was done.

    Args:
      name: of the sensor; acquisitions of other missions stay as they are.
      acquisitions: as their files declare them.
      units: `DIGITAL.name` where values of level 1 stay digital numbers.

    Raises:
      ValueError: a file of metadata lacks a number; the message has file and key.
    """
    done, notes = [], collections.Counter()
    for one in acquisitions:
        product, bands = find_product(one.name), one.bands
        is_stored = all(isinstance(band, RasterBand) and band.scale == 1 and not band.offset for band in bands)
        if name in ("l7", "l8") and product and is_stored:
            path = pathlib.Path(bands[0].path).with_name(product.name + METADATA)
            if (product.level, product.version[0]) == ("L2", "02"):
                scale, offset = in_units(one.name, get_sensor(name), *SURFACE)
                bands = tuple(dataclasses.replace(band, scale=scale, offset=offset, zero=offset) for band in bands)
                notes["of level 2 become reflectance x 10000"] += 1
            elif product.level == "L1" and units == DIGITAL.name:
                notes["of level 1 stay digital numbers, as the statistics are of these"] += 1
            elif product.level == "L1" and not path.is_file():
                notes[f"of level 1 without {METADATA} stay digital numbers: it has what makes them reflectance"] += 1
            elif product.level == "L1":
                bands = _at_top_of_atmosphere(name, bands, path)
                kelvins = ", thermal bands kelvins" if name == "l8" else ""
                notes[f"of level 1 become top-of-atmosphere reflectance x 10000{kelvins}, by {METADATA}"] += 1
        done.append(dataclasses.replace(one, bands=bands))
    return done, [f"{count} products {note}" for note, count in notes.items()]


def _at_top_of_atmosphere(name: str, bands: Sequence[RasterBand], path: pathlib.Path) -> tuple[RasterBand, ...]:
    """Returns bands of digital numbers with the scales of a file of metadata, as the Landsat 8 handbook has it."""
    facts = _read_metadata(path)
    elevation = _number(path, facts, "SUN_ELEVATION", most=90)
    times = 10_000 / math.sin(math.radians(elevation))
    scaled = []
    for band, raster in zip(get_sensor(name).bands, bands, strict=True):
        kind, suffix = ("RADIANCE", 1.0) if band in THERMAL else ("REFLECTANCE", times), band.removeprefix("B")
        scale = kind[1] * _number(path, facts, f"{kind[0]}_MULT_BAND_{suffix}")
        offset = kind[1] * _number(path, facts, f"{kind[0]}_ADD_BAND_{suffix}", least=-1e6)
        thermal = [_number(path, facts, f"{key}_CONSTANT_BAND_{suffix}") for key in ("K1", "K2") if band in THERMAL]
        scaled.append(
            dataclasses.replace(raster, scale=scale, offset=offset, nodata=FILL, zero=None, thermal=tuple(thermal))
        )
    return tuple(scaled)


def _read_metadata(path: pathlib.Path) -> dict[str, str]:
    """Reads the values of a file of metadata by key."""
    with explained(path, "the text file of metadata of a Landsat product"):
        text = path.read_text(encoding="utf-8", errors="replace")
    lines = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _number(path: pathlib.Path, facts: Mapping[str, str], key: str, least: float = 0.0, most: float = 1e6) -> float:
    """Returns a number of a file of metadata, above `least` and up to `most`."""
    try:
        value = float(facts[key])
    except (KeyError, ValueError):
        value = math.nan
    if not least < value <= most:
        raise ValueError(
            f"{path}: {key} is {facts.get(key, 'missing')[:40] or 'empty'}; expected a number above {least:g}, at most "
            f"{most:g}, as in the file that USGS ships with the product: without it digital numbers have no reflectance"
        )
    return value
