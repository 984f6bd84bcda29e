"""Sources of a sensor's rasters, files and folders of all kinds, opened as a stack of acquisitions."""

import collections
import dataclasses
import datetime
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from anysat_jax.scenes.files import Layer, Layers, describe, needed_bands
from anysat_jax.scenes.landsat import in_reflectance
from anysat_jax.scenes.naming import MASKS, MISSIONS, Product, find_product
from anysat_jax.scenes.projections import at, footprint
from anysat_jax.scenes.reading import Acquisition, Band, RasterBand, Stack
from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.bands import in_decibels
from data_pipelines.dates import parse_day
from data_pipelines.files import read_table
from data_pipelines.rasters import DRIVERS
from data_pipelines.units import DECIBELS, POWER

TABLE = "dates.csv"
# Sentinel-2 since baseline 04.00: subtracted from digital numbers, unless values below show that it has been.
BASELINE, OFFSET = 400, 1000.0
SAMPLE, ENOUGH = 128, 400  # pixels along a side of a window that is looked at, and valid ones that suffice
DARK = 0.9 * OFFSET


def open_stack(sensor: str, source: str | os.PathLike[str] | Any, units: str = "") -> Stack:
    """Opens a sensor's rasters.

    Args:
      sensor: its name.
      source: a GeoTIFF, a folder of GeoTIFFs or of .SAFE products, a .SAFE product, a zarr store, a STAC item
        collection (.json, .geojson), or a Dataset of xarray.
      units: of the statistics that will standardise values of Landsat, a name of `data_pipelines.units`, if known.

    Raises:
      FileNotFoundError, ValueError: there is nothing, or it is not the sensor's; the message names file and remedy.
    """
    from anysat_jax.scenes import arrays, catalogues, stac  # which make stacks with functions of this module

    get_sensor(sensor)
    if not isinstance(source, str | os.PathLike):
        return arrays.open_dataset(sensor, source)
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no {path}, the source of {sensor!r}")
    if path.suffix.lower() in (".json", ".geojson"):
        return stac.open_items(sensor, path)
    if path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return arrays.open_zarr(sensor, path)
    if catalogues.find_products(path)[0]:
        return catalogues.open_products(sensor, path)
    return open_rasters(sensor, path, units)


def open_rasters(name: str, source: pathlib.Path, units: str = "") -> Stack:
    """Opens a GeoTIFF, or a folder of them: one a date, one a band, or stacked.

    Raises:
      FileNotFoundError, ValueError: as `open_stack`.
    """
    sensor = get_sensor(name)
    root = source if source.is_dir() else source.parent
    listed = list_rasters(source) if source.is_dir() else [source]
    paths = [path for path in listed if is_of(name, find_product(path.as_posix()))]
    table = read_days(root / TABLE) if sensor.has_dates else {}
    described = []
    for path in paths:
        listed_as = (path.relative_to(root).as_posix(), path.name, path.stem)
        days = next((table[name.lower()] for name in listed_as if name.lower() in table), ())
        described.append(describe(path, root, sensor, days))
    files = [file for file in described if file]
    check_same_scales(files)
    acquisitions, offsets = without_offset(name, make_acquisitions(sensor, files))
    acquisitions, scaled = in_reflectance(name, acquisitions, units)
    notes = [f"{name}: {note}" for note in dict.fromkeys(note for file in files for note in file.notes)]
    if left := len(listed) - len(paths):
        notes.append(f"{name}: {left} files of products of other sensors are left out")
    if sensor.kind != "image" and any(file.declares_nothing for file in files):
        notes.append(f"{name}: pixels that are 0 in all bands count as missing, as files declare no nodata")
    return complete_stack(name, acquisitions, [*notes, *(f"{name}: {note}" for note in offsets + scaled)])


def list_rasters(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the GeoTIFF and JPEG 2000 files below a folder, without hidden ones (._NAME), sorted.

    Raises:
      FileNotFoundError: there is none; the message has what there is.
    """
    found, others = [], []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in names:
            path = pathlib.Path(parent, name)
            if not name.startswith("."):
                (found if path.suffix.lower() in DRIVERS else others).append(path)
    if not found:
        there = ", ".join(sorted(path.name for path in others)[:5]) or "nothing"
        raise FileNotFoundError(f"{folder} has no {', '.join(DRIVERS)} file; there is {there}")
    return sorted(found)


def read_days(path: pathlib.Path) -> dict[str, tuple[datetime.date, ...]]:
    """Reads the days of files by path or name in small letters, of a stacked file in its order; {} without a table.

    Raises:
      ValueError: it is not a table with the columns file and date.
    """
    if not path.is_file():
        return {}
    days: dict[str, list[datetime.date]] = {}
    expected = "the columns file and date"
    for number, row in enumerate(read_table(path, ("file", "date"), expected, delimiters=",;\t"), start=2):
        name = pathlib.PurePosixPath(row["file"].strip().replace("\\", "/"))
        days.setdefault(name.as_posix().lower(), []).append(parse_day(row["date"], f"{path}, line {number}"))
    return {name: tuple(found) for name, found in days.items()}


def check_same_scales(files: Sequence[Layers]) -> None:
    """Refuses bands with a scale beside others without: their values have different units.

    Raises:
      ValueError: the message names two files.
    """
    scaled = {file.scaled: file for file in files if any(layer.band for layer in file.layers)}
    if len(scaled) > 1:
        raise ValueError(
            f"{scaled[True].path} declares a scale of its values, {scaled[False].path} does not; expected all files of "
            "a sensor in the same units: write them anew"
        )


# ---------------------------------------------------------------- from files to acquisitions


def make_acquisitions(sensor: Sensor, files: Sequence[Layers]) -> list[Acquisition]:
    """Returns the acquisitions that files hold, each with all of the sensor's bands.

    Raises:
      ValueError: a band is missing, or two files have the same.
    """
    bands: dict[tuple[str, datetime.date | None], dict[str, RasterBand]] = {}
    masks: dict[tuple[str, datetime.date | None], Layer] = {}
    names: dict[tuple[str, datetime.date | None], Layers] = {}
    for file in files:
        for layer in file.layers:
            key = file.key, layer.day
            if layer.mask:
                masks.setdefault(key, layer)
                continue
            names.setdefault(key, file)
            known = bands.setdefault(key, {}).setdefault(layer.band, layer.raster)
            if known is layer.raster:
                continue
            # Products have some bands in several resolutions.
            if known.shape == layer.raster.shape:
                raise ValueError(f"{known.name}, and {layer.raster.name} are both {layer.band!r} of {key[1] or 'it'}")
            if known.shape < layer.raster.shape:
                bands[key][layer.band] = layer.raster
    acquisitions = []
    for key, found in bands.items():
        mask = masks.get(key) or _mask_of_day(
            next(iter(found.values())), [m for m in masks.values() if m.day == key[1]]
        )
        acquisitions.append(_complete_acquisition(sensor, names[key], key[1], found, mask))
    return acquisitions


def _complete_acquisition(
    sensor: Sensor, file: Layers, day: datetime.date | None, found: dict[str, RasterBand], mask: Layer | None
) -> Acquisition:
    """Returns an acquisition once it has all bands; `file` is the first of its files."""
    needed = needed_bands(sensor)
    if missing := [band for band in needed if band not in found]:
        where = f"{file.path}{f', of {day},' if day else ''}"
        raise ValueError(f"{where} lacks {sensor.name!r}'s bands {', '.join(missing)}; there are {', '.join(found)}")
    product = find_product(file.path.as_posix())
    return Acquisition(
        product.name if product else file.name,
        day,
        tuple(found[band] for band in needed),
        mask.raster if mask else None,
        MASKS[mask.mask].clear if mask else (),
    )


def _mask_of_day(band: RasterBand, masks: Sequence[Layer]) -> Layer | None:
    """Returns the mask of a series' date that covers a band's centre; None where there is none, or no date."""
    row, column = (side / 2 for side in band.shape)
    x, y = at(band.transform, column, row)
    for mask in masks:
        box = footprint(mask.raster.crs, mask.raster.transform, mask.raster.shape, band.crs)
        if mask.day and box.left <= x <= box.right and box.bottom <= y <= box.top:
            return mask
    return None


def complete_stack(name: str, acquisitions: Iterable[Acquisition], notes: Sequence[str] = ()) -> Stack:
    """Returns a stack in time order, without outdated twins, and in known units.

    Raises:
      ValueError: there is no acquisition, or products are another sensor's or of two levels.
    """
    ordered = sorted(acquisitions, key=lambda one: (one.day or datetime.date.min, one.name))
    if not ordered:
        raise FileNotFoundError(f"no file has bands of {name!r}: {', '.join(get_sensor(name).bands)}")
    levels = check_products(name, ordered)
    ordered, twins = without_twins(ordered)
    days = collections.Counter(one.day for one in ordered if one.day)
    merged = [f"{count} of {day}" for day, count in days.items() if count > 1]
    shown = f"{', '.join(merged[:3])}{f' and {len(merged) - 3} more days' if len(merged) > 3 else ''}"
    merging = [f"acquisitions of one day become one date: {shown}"] if merged else []
    kinds = {kind.clear: f"{key}: {kind.meaning}" for key, kind in reversed(MASKS.items())}
    masks = [kinds[clear] for clear in dict.fromkeys(one.clear for one in ordered if one.mask) if clear in kinds]
    bare = [one.name for one in ordered if not one.mask] if masks else []
    masks += [f"{len(bare)} acquisitions have no mask, such as {bare[0]}: all their pixels count"] if bare else []
    added = [f"{name}: {note}" for note in (*levels, *masks, *twins, *merging)]
    return Stack(name, tuple(ordered), (*notes, *added), radar_units(name, ordered))


def check_products(name: str, acquisitions: Sequence[Acquisition]) -> list[str]:
    """Refuses products of another sensor, or of two levels of processing, which only names tell apart; returns notes.

    Raises:
      ValueError: the message has the products' names.
    """
    levels: dict[str, Product] = {}
    for product in (product for one in acquisitions if (product := find_product(one.name))):
        if not is_of(name, product):
            raise ValueError(f"{product.name} is a product of {', '.join(product.sensors)}, not of {name!r}")
        levels.setdefault(product.level, product)
    if len(levels) > 1:
        (one, first), (other, second), *_ = levels.items()
        raise ValueError(
            f"{name!r} has products of level {one} ({first.name}) and of {other} ({second.name}), whose values differ; "
            "give those of one level"
        )
    return [f"products are of level {one}, as seen at the top of the atmosphere" for one in levels if one[:2] == "L1"]


def is_of(name: str, product: Product | None) -> bool:
    """Returns whether a product can be a sensor's, by its name; sensors of one's own may be of any."""
    return product is None or name not in MISSIONS or name in product.sensors


def without_twins(acquisitions: Sequence[Acquisition]) -> tuple[list[Acquisition], list[str]]:
    """Returns acquisitions without products of which a later processing is there, and notes."""
    products = [find_product(one.name) for one in acquisitions]
    latest: dict[tuple[str, ...], tuple[str, ...]] = {}
    for product in filter(None, products):
        latest[product.identity] = max(product.version, latest.get(product.identity, product.version))
    kept, notes = [], []
    for one, product in zip(acquisitions, products, strict=True):
        if product and product.version != latest[product.identity]:
            notes.append(f"{one.name} is left out, as a later processing is there")
        else:
            kept.append(one)
    return kept, notes


def without_offset(name: str, acquisitions: Sequence[Acquisition]) -> tuple[list[Acquisition], list[str]]:
    """Returns acquisitions of Sentinel-2 without the offset of baseline 04.00, and notes on which had it.

    Products' names have the baseline. Where the file declares an offset, that counts; and where more than a hundredth
    of a band is below the offset, it has been subtracted already.
    """
    if name != "s2":
        return list(acquisitions), []
    done, counts, undone = [], 0, []
    for one in acquisitions:
        product = find_product(one.name)
        declared = any(getattr(band, "offset", 0.0) for band in one.bands)
        if not product or product.baseline < BASELINE or declared:
            done.append(one)
            continue
        if any(np.quantile(seen, 0.01) < DARK for band in one.bands[::4] if (seen := sample(band)).size):
            undone.append(one.name)
            done.append(one)
            continue
        counts += 1
        bands = [dataclasses.replace(band, offset=-OFFSET, zero=-OFFSET) for band in one.bands]
        done.append(dataclasses.replace(one, bands=tuple(bands)))
    notes = [f"{counts} products of baseline 04.00 or later: 1000 is subtracted from their values"] if counts else []
    if undone:
        notes.append(f"{len(undone)} products of baseline 04.00 or later have values below 1000: nothing is subtracted")
    unknown = sum(1 for one in acquisitions if not find_product(one.name) and one.day and one.day >= SINCE)
    if unknown:
        notes.append(f"{unknown} dates since {SINCE} without a product's name: no offset of 1000 is subtracted")
    return done, notes


SINCE = datetime.date(2022, 1, 25)  # products of baseline 04.00


def sample(band: Band) -> np.ndarray:
    """Returns valid values of a band that are not 0, of a few windows: more than `ENOUGH`, or all that these have."""
    height, width = band.shape
    found = np.zeros(0, np.float32)
    for row, column in ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25)):
        top, left = (max(0, int(part * side) - SAMPLE // 2) for part, side in ((row, height), (column, width)))
        read = band.read(slice(top, min(top + SAMPLE, height)), slice(left, min(left + SAMPLE, width)))
        values = np.ma.filled(np.ma.asarray(read, np.float32), np.nan)
        found = np.concatenate([found, values[np.isfinite(values) & (values != 0)]])
        if found.size >= ENOUGH:
            break
    return found


def radar_units(name: str, acquisitions: Sequence[Acquisition]) -> str:
    """Returns whether a radar's values are "dB" or "linear power", by some of each; "" of other sensors.

    Raises:
      ValueError: they are neither, or some are one and some the other.
    """
    if not set(get_sensor(name).bands) & {"VV", "HH"}:
        return ""
    units: dict[str, str] = {}
    for one in acquisitions:
        values = np.concatenate([sample(band) for band in one.bands])[:, None, None]
        if not values.size:
            continue
        # Whole numbers were read as floats: digital numbers are refused by their size all the same.
        whole = bool((values == np.rint(values)).all())
        stored = values.astype(np.int64) if whole else values
        same = np.array_equal(in_decibels(one.bands[0].name, stored, np.ones(values.shape, np.bool_)), values)
        units.setdefault(DECIBELS.name if same else POWER.name, one.bands[0].name)
    if len(units) > 1:
        (unit, first), (other, second) = units.items()
        raise ValueError(f"{first} is in {unit}, {second} in {other}; expected all files of {name!r} in the same")
    return next(iter(units), DECIBELS.name)
