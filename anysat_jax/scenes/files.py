"""GeoTIFF and JPEG 2000 files as layers: bands of a sensor and masks, each with its day and what the file declares."""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from rasterio.enums import Interleaving
from rasterio.windows import Window

from anysat_jax.scenes.naming import band_in, days_in, is_auxiliary, key_of, mask_in
from anysat_jax.scenes.warping import RasterBand
from anysat_jax.sensors import Sensor
from data_pipelines.bands import LETTERS
from data_pipelines.dates import parse_day
from data_pipelines.prepare.leaks import IDENTITY
from data_pipelines.rasters import open_raster

# Tags of the day of acquisition, the best first; the last one is often the day on which the file was written.
DAY_TAGS = ("ACQUISITION_DATE", "ACQUISITIONDATETIME", "DATE_ACQUIRED", "SENSING_TIME", "PRODUCT_START_TIME")
WRITTEN_TAG = "TIFFTAG_DATETIME"
# Steps of reflectance: values in them become reflectance x 10000. Of other quantities (kelvins) they are larger.
LARGEST_STEP = 1e-3
FEW = 512  # pixels along a side of what is looked at to tell transparency from a band


@dataclasses.dataclass(frozen=True)
class Layer:
    """A band of a file."""

    raster: RasterBand
    band: str  # of the sensor; "" of a mask
    mask: str  # kind of mask; "" of a band
    day: datetime.date | None  # None of images


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of a file."""

    path: pathlib.Path
    name: str  # path below the source, without suffix
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]  # what was assumed, without the file's name: the same for files alike
    declares_nothing: bool  # neither nodata nor a mask
    scaled: bool  # whether bands have a scale

    @property
    def key(self) -> str:
        """The words that the paths of all files of an acquisition have in common."""
        (first, *others) = self.layers
        return key_of(self.name, first.band if not others else "", first.mask if not others else "")


def needed_bands(sensor: Sensor) -> tuple[str, ...]:
    """Returns the bands that files must have: all but a radar's ratio, which is computed."""
    return tuple(band for band in sensor.bands if "/" not in band)


def describe(path: pathlib.Path, root: pathlib.Path, sensor: Sensor, days: Sequence[datetime.date]) -> Layers | None:
    """Returns the layers of a file that are a sensor's; None where it is known to hold others, such as a preview.

    Args:
      path: of the file.
      root: the folder below which names are looked at.
      days: those that a table lists for the file, in its order; () without.

    Raises:
      ValueError: it cannot be read, has no place, or its bands or days are not known.
    """
    name = path.relative_to(root).with_suffix("").as_posix()
    with open_raster(path, "a GeoTIFF", whole=False) as file:
        _check_place(path, file)
        scaled = any(scale != 1 for scale in file.scales) or any(file.offsets)
        texts = [text or "" for text in file.descriptions]
        alpha = [number for number, colour in enumerate(file.colorinterp) if colour.name == "alpha"]
        hidden = [band for band in alpha if file.count != len(needed_bands(sensor)) or _is_transparency(file, band)]
        visible = [number for number in range(file.count) if number not in hidden]
        names, notes = _name_layers(path, name, sensor, file, texts, visible, len(days))
        if not any(names.values()):
            return None
        flags = {flag.name for flags in file.mask_flag_enums for flag in flags}
        alpha_band = hidden[0] + 1 if hidden and "alpha" not in flags else None
        is_masked = len(hidden) == len(alpha)  # otherwise a band called alpha is one of the sensor's
        layers = [
            Layer(_layer_raster(path, sensor, file, number, mask, is_masked, alpha_band), band, mask, None)
            for number, (band, mask) in names.items()
        ]
        tags, by_pixel = file.tags(), file.interleaving == Interleaving.pixel
    if sensor.has_dates:
        layers, more = _dated(path, root, tags, texts, layers, days)
        notes += more
    if by_pixel and len({(layer.day, layer.mask) for layer in layers}) > 1:
        together = tuple(layer.raster.number for layer in layers)
        rasters = [dataclasses.replace(layer.raster, together=together) for layer in layers]
        layers = [dataclasses.replace(layer, raster=raster) for layer, raster in zip(layers, rasters, strict=True)]
    return Layers(path, name, tuple(layers), tuple(notes), flags <= {"all_valid"} and not hidden, scaled)


def _check_place(path: pathlib.Path, file: Any) -> None:
    """Refuses rasters that have no place, or values that are not real numbers."""
    if file.crs is None:
        how = "gdalwarp warps it by them" if file.gcps[0] or file.rpcs else "gdal_edit.py -a_srs writes one"
        placed = "is placed by control points" if file.gcps[0] or file.rpcs else "has no coordinate system"
        raise ValueError(f"{path} {placed}; expected a raster with a coordinate system: {how}")
    if wrong := [dtype for dtype in file.dtypes if dtype.startswith("complex")]:
        raise ValueError(f"{path} has values of {wrong[0]}; expected detected values, of whole numbers or floats")
    if tuple(file.transform[:6]) == IDENTITY:
        raise ValueError(f"{path} has a coordinate system and no position in it; expected a georeferenced raster")


def _layer_raster(
    path: pathlib.Path, sensor: Sensor, file: Any, number: int, mask: str, is_masked: bool, alpha: int | None
) -> RasterBand:
    """Returns a band of an open file, as values in the sensor's units, or as classes without the file's nodata."""
    place = path, number + 1, file.crs.to_string(), file.transform, file.shape
    if mask:
        return RasterBand(*place, masked=False)
    scale, offset = in_units(path, sensor, file.scales[number], file.offsets[number])
    return RasterBand(
        *place,
        nodata=None if is_masked else file.nodatavals[number],
        masked=is_masked,
        alpha=alpha,
        scale=scale,
        offset=offset,
        zero=None if sensor.kind == "image" else offset,
    )


def _is_transparency(file: Any, band: int) -> bool:
    """Returns whether a band called alpha is transparency: 0 or the largest value. GDAL calls any fourth one so."""
    height, width = (min(side, FEW) for side in file.shape)
    window = Window((file.width - width) // 2, (file.height - height) // 2, width, height)
    dtype = np.dtype(file.dtypes[band])
    most = np.iinfo(dtype).max if dtype.kind in "iu" else 1
    return bool(np.isin(file.read(band + 1, window=window), (0, most)).all())


def _name_layers(
    path: pathlib.Path, name: str, sensor: Sensor, file: Any, texts: list[str], visible: list[int], num_days: int
) -> tuple[dict[int, tuple[str, str]], list[str]]:
    """Returns, by position in the file, the sensor's band or the kind of mask, and notes on what was assumed."""
    needed = needed_bands(sensor)
    named = {number: (band_in(texts[number], sensor), mask_in(texts[number])) for number in visible}
    named = {number: (band, "" if band else mask) for number, (band, mask) in named.items() if band or mask}
    if any(band for band, _ in named.values()):
        return {number: one for number, one in named.items() if one[0] in needed or one[1]}, []
    if len(visible) == 1:
        band = band_in(name, sensor)
        mask = "" if band else mask_in(texts[visible[0]]) or mask_in(name)
        if band or mask:
            return {visible[0]: (band, mask)} if band in needed or mask else {}, []
    if is_auxiliary(name):
        return {}, []
    colours = {file.colorinterp[number].name.upper(): number for number in visible}
    by_colour = {LETTERS.get(colour, colour): number for colour, number in colours.items()}
    by_colour = {band: number for band, number in by_colour.items() if band in needed}
    if sensor.kind == "image" and {"R", "G", "B"} <= set(by_colour):
        lacking = [band for band in needed if band not in by_colour]
        unused = [number for number in visible if number not in by_colour.values()]
        if len(lacking) <= 1 and len(unused) >= len(lacking):
            by_colour |= dict(zip(lacking, unused))
            taken = ", ".join(f"{band} is band {by_colour[band] + 1}" for band in needed)
            return {by_colour[band]: (band, "") for band in needed}, [f"by the files' colours {taken}"]
    for bands in (needed, sensor.bands):
        dates = len(visible) // len(bands)
        if len(visible) == len(bands) * dates and dates in (1, num_days):
            order = [band for _ in range(dates) for band in bands]
            found = {number: (band, "") for number, band in zip(visible, order, strict=True) if band in needed}
            return found, [f"the files do not name their bands, which are taken as {', '.join(bands)}, in this order"]
    names = ", ".join(text for text in texts if text)
    raise ValueError(
        f"{path} has {len(visible)} bands {f'called {names}' if names else 'without names'}, of which none is known as "
        f"one of {sensor.name!r}: {', '.join(needed)}; expected them as descriptions of the bands, or in the file name"
    )


def in_units(path: pathlib.Path | str, sensor: Sensor, scale: float, offset: float) -> tuple[float, float]:
    """Returns scale and offset that give values in the sensor's units: reflectance as reflectance x 10000."""
    if not (np.isfinite([scale, offset]).all() and scale):
        raise ValueError(f"{path} declares a scale of {scale} and an offset of {offset}; expected numbers, not 0")
    if abs(scale) > LARGEST_STEP or set(sensor.bands) & {"VV", "HH"}:
        return scale, offset
    times = 10_000
    # 0.0001 * 10000 is 1 up to rounding only.
    return round(scale * times, 9), round(offset * times, 6)


def _dated(
    path: pathlib.Path,
    root: pathlib.Path,
    tags: dict[str, str],
    texts: list[str],
    layers: list[Layer],
    days: Sequence[datetime.date],
) -> tuple[list[Layer], list[str]]:
    """Returns the layers of a series with their days: of the table, the bands' names, the file's name, or its tags."""
    of_texts = [days_in(texts[layer.raster.number - 1]) for layer in layers]
    if not days and all(len(one) == 1 for one in of_texts):
        return [dataclasses.replace(layer, day=one[0]) for layer, one in zip(layers, of_texts, strict=True)], []
    days, notes = (days, []) if days else _days_of_file(path, root, tags)
    seen: dict[str, int] = {}
    dated = []
    for layer in layers:
        number = seen.setdefault(layer.band or layer.mask, 0)
        seen[layer.band or layer.mask] += 1
        dated.append(dataclasses.replace(layer, day=days[min(number, len(days) - 1)]))
    if set(seen.values()) != {len(days)}:
        counts = ", ".join(f"{count} of {band}" for band, count in seen.items())
        raise ValueError(f"{path} has the bands {counts}; expected {len(days)} of each, as it has {len(days)} dates")
    return dated, notes


def _days_of_file(
    path: pathlib.Path, root: pathlib.Path, tags: dict[str, str]
) -> tuple[Sequence[datetime.date], list[str]]:
    """Returns the day of a file without a table: of its name, its folders' names or its tags; and notes."""
    # The nearest of the names, from the file to the folder.
    parts = [path.stem, *(parent.name for parent in path.parents if parent.is_relative_to(root))]
    days, part = next(((found, part) for part in parts if (found := days_in(part))), ([], ""))
    if len(days) > 1:
        both = " and ".join(map(str, days[:2]))
        raise ValueError(
            f"{path} names the days {both}; list in dates.csv the one that counts, or all of a stack, columns file,date"
        )
    if days:
        return days, [] if part == path.stem else ["days are those of folders' names"]
    upper = {key.upper(): value for key, value in tags.items()}
    tag = next((tag for tag in (*DAY_TAGS, WRITTEN_TAG) if tag in upper), None)
    if tag is None:
        raise ValueError(
            f"{path} has no date, in its name, its tags or a table; put it into the name (20200503), or list it "
            "in dates.csv beside it, columns file,date"
        )
    day = parse_day(upper[tag].replace(":", "-", 2), f"{path}, tag {tag}")
    return [day], [f"days are those of the tag {tag}" + (", of writing perhaps" if tag == WRITTEN_TAG else "")]
