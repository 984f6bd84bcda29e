"""Files of a tile: GeoTIFF, npy and npz as arrays, with validity, dates, labels and alignment."""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Num

from data_pipelines.bands import pick_bands, with_ratio, with_ratio_of_decibels
from data_pipelines.card import Example
from data_pipelines.dates import observed_series, parse_day
from data_pipelines.files import check_array, georeference, read_npy, read_npz, read_raster_and_nodata
from data_pipelines.own_tiles.description import DECIBELS, LINEAR, MaskFiles, SensorFiles


@dataclasses.dataclass(frozen=True)
class Read:
    """The content of a file.

    Attributes:
      path: the file.
      values: as stored.
      place: "crs" and "transform"; "" and NaN of a file without a georeference.
      nodata: the nodata value that the file declares.
      others: further arrays of an npz file.
    """

    path: pathlib.Path
    values: np.ndarray
    place: dict[str, Any]
    nodata: float | None = None
    others: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read_file(path: pathlib.Path, array: str = "", dates: str = "") -> Read:
    """Reads a file of numbers.

    Args:
      path: a .tif, .tiff, .npy or .npz file.
      array: name of the array in an npz file; "" for the only one besides `dates`.
      dates: name of an npz file's array of dates, if any.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, or holds no such array of numbers.
    """
    if path.suffix in (".tif", ".tiff"):
        values, place, nodata = read_raster_and_nodata(path, (None, None, None), "iuf", "a GeoTIFF of numbers")
        return Read(path, values, place, nodata)
    nowhere = georeference(None, None)
    if path.suffix == ".npy":
        return Read(path, read_npy(path, None, "iuf", "an npy array of numbers"), nowhere)
    arrays = read_npz(path, "an npz file of arrays")
    names = [array] if array else [name for name in arrays if name != dates]
    if len(names) != 1 or names[0] not in arrays:
        raise ValueError(f'{path} has the arrays {sorted(arrays)}; say which one to read: array = "NAME"')
    values = arrays[names[0]]
    check_array(path, values, values.shape, "iuf", f"numbers in the array {names[0]!r}")
    return Read(path, values, nowhere, others=arrays)


def to_sensor(
    files: SensorFiles, read: Read, values: Num[np.ndarray, "*T c H W"]
) -> tuple[Num[np.ndarray, "*T C H W"], Bool[np.ndarray, "*T 1 H W"]]:
    """Returns the sensor's bands in its order and dtype, and where they are valid (True); elsewhere they are 0.

    A pixel is valid if no band is NaN, infinite, or a nodata value.

    Raises:
      ValueError: a value does not fit the dtype, or the polarisations are not in the described units.
    """
    bands = files.record.bands[:2] if files.computes_ratio else files.record.bands
    picked = pick_bands(values, files.bands, bands)
    mask = np.isfinite(picked)
    for value in (files.nodata, read.nodata):
        if value is not None:
            mask &= picked != value
    mask = mask.all(axis=-3, keepdims=True)
    if files.computes_ratio:
        # Power is never negative, and a scene in decibels always has negative values.
        negative = bool((mask & (picked < 0)).any())
        if mask.any() and negative == (files.units == LINEAR):
            found, other = ("values below 0", DECIBELS) if negative else ("no value below 0", LINEAR)
            raise ValueError(
                f"{read.path} has {found}, so that it cannot be in {files.units}; expected the units of the "
                f'description, [sensors.{files.record.name}]. Write units = "{other}" there, or declare values without '
                "data as nodata"
            )
        # 1 in place of what is not valid: a quotient of zeros would warn.
        safe = np.where(mask, picked, 1).astype(np.float32)
        picked = with_ratio(safe) if files.units == LINEAR else with_ratio_of_decibels(safe)
    return _cast(read.path, files, np.where(mask, picked, 0)), mask


def _cast(path: pathlib.Path, files: SensorFiles, values: np.ndarray) -> np.ndarray:
    dtype = np.dtype(files.dtype)
    if dtype.kind != "f" and values.size:
        limits, low, high = np.iinfo(dtype), values.min(), values.max()
        # A cast to whole numbers would cut fractions and wrap what is out of range, both without an error.
        whole = values.dtype.kind != "f" or (values == np.rint(values)).all()
        if low < limits.min or high > limits.max or not whole:
            kind = "" if whole else ", not all whole,"
            raise ValueError(
                f"{path} has values from {low:g} to {high:g}{kind} which {dtype} cannot hold; describe "
                f'{files.record.name!r} with another dtype, such as dtype = "float32"'
            )
    return np.ascontiguousarray(values.astype(dtype))


def with_bands(files: SensorFiles, read: Read) -> Read:
    """Returns the values as (bands, H, W) or, of a stacked file, (dates, bands, H, W).

    Raises:
      ValueError: the file has other bands than described.
    """
    values, count = read.values, len(files.bands)
    stacked = files.record.has_dates and not files.files.has_date
    # A GeoTIFF has one axis for bands and dates; bands change faster.
    if values.ndim == 3 and stacked and len(values) % count == 0:  # a GeoTIFF of all bands of all dates
        values = values.reshape(-1, count, *values.shape[1:])
    axes = "(dates, bands, height, width)" if stacked else "(bands, height, width)"
    if values.ndim != (4 if stacked else 3) or values.shape[-3] != count:
        raise ValueError(
            f"{read.path} has the shape {read.values.shape}; expected {axes} with {count} bands: "
            f"{', '.join(files.bands)}"
        )
    return dataclasses.replace(read, values=values)


def days_of_array(read: Read, name: str) -> list[datetime.date]:
    """Returns the days in an array of an npz file: numbers yyyymmdd, texts, or numpy's own days.

    Raises:
      ValueError: the array is missing, or a day cannot be read.
    """
    if name not in read.others:
        raise ValueError(f"{read.path} has the arrays {sorted(read.others)}, not {name!r}, which is to hold the dates")
    array = read.others[name]
    return [parse_day(str(day), f"{read.path}: {name!r}") for day in np.ravel(array)]


def sensor_fields(files: SensorFiles, reads: list[Read], days: list[datetime.date]) -> Example:
    """Returns values, mask, dates and years of a sensor, without dates that have no valid pixel.

    Raises:
      ValueError: there are more or fewer days than dates, a value does not fit the dtype, or no pixel is valid.
    """
    name = files.record.name
    if not files.record.has_dates:
        values, mask = to_sensor(files, reads[0], reads[0].values)
        return {name: values, f"{name}_mask": mask}
    parts = [to_sensor(files, read, read.values) for read in reads]
    join = np.stack if files.files.has_date else np.concatenate
    values, mask = (join(arrays) for arrays in zip(*parts, strict=True))
    if len(values) != len(days):
        raise ValueError(f"{reads[0].path} has {len(values)} dates, but {files.dates} lists {len(days)}")
    if not mask.any():
        raise ValueError(f"{reads[0].path}: no date of {name!r} has a valid pixel (nodata is {files.nodata})")
    return observed_series(name, values, mask, days)


NO_LABEL = -1  # the number in the files may be that of a class once classes count from 0


def dense_label(mask: MaskFiles, read: Read, side: int, dtype: np.dtype) -> Num[np.ndarray, "h w"]:
    """Returns a tile's dense label: class numbers with `NO_LABEL` where there is none, or float32 with NaN there.

    Args:
      mask: the mask of the description.
      read: the file.
      side: pixels along a side.
      dtype: of a class map.

    Raises:
      ValueError: the file is of another size, or holds an unknown class.
    """
    values = read.values[0] if read.values.ndim == 3 and len(read.values) == 1 else read.values
    if values.shape != (side, side):
        metres = mask.metres_per_pixel
        raise ValueError(
            f"{read.path} has the shape {read.values.shape}; expected one band of {side} x {side} pixels, the "
            f"described extent of {side * metres:g} m in pixels of {metres:g} m (mask.metres_per_pixel)"
        )
    # A GeoTIFF may declare the number of a class as its nodata; the description counts.
    nothing = [v for v in (read.nodata, mask.ignore) if v is not None and v not in mask.values]
    known = np.isfinite(values if mask.classes else values.astype(np.float32))
    for value in nothing:
        known &= values != value
    if not mask.classes:
        return np.where(known, values.astype(np.float32), np.float32(np.nan))
    if strangers := sorted(set(np.unique(values[known]).tolist()) - set(mask.values)):
        raise ValueError(
            f"{read.path} holds {', '.join(f'{v:g}' for v in strangers[:8])}; expected {mask.values} for the classes "
            f"{', '.join(mask.classes)}, or {mask.ignore} for no label (mask.values, mask.ignore)"
        )
    classes = np.full(values.shape, NO_LABEL, dtype)
    for number, value in enumerate(mask.values):
        classes[values == value] = number
    return classes


_IDENTITY = (1, 0, 0, 0, 1, 0)  # transform of a raster that has a coordinate system and no position in it


def check_places(reads: Sequence[Read]) -> None:
    """Refuses rasters that are upside down, or away from the first one in the same coordinate system.

    Files without a georeference, or in another coordinate system, are not checked.

    Raises:
      ValueError: the message names the file.
    """
    placed = [read for read in reads if read.place["crs"] and tuple(read.place["transform"]) != _IDENTITY]
    firsts: dict[str, Read] = {}
    for read in placed:
        a, _, _, _, e, _ = read.place["transform"]
        if a < 0 or e > 0:
            raise ValueError(
                f"{read.path} has its first row in the {'south' if e > 0 else 'north'} and its first column in the "
                f"{'east' if a < 0 else 'west'}; expected north and west, as in the other files: gdalwarp writes it so"
            )
    for read in placed:
        first = firsts.setdefault(read.place["crs"], read)
        # Grids of different sensors may differ by up to a pixel of the coarser one.
        away = np.hypot(*(_centre(read) - _centre(first)))
        pixels = float(away / max(_pixel(read), _pixel(first)))
        if pixels > 1 + 1e-6:
            raise ValueError(
                f"{read.path} is centred {pixels:.3g} pixels away from {first.path}; expected the files of a tile to "
                "cover the same ground: cut them to the same bounds"
            )


def _centre(read: Read) -> Float64[np.ndarray, "2"]:
    a, b, c, d, e, f = read.place["transform"]
    height, width = read.values.shape[-2:]
    return np.asarray([a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f])


def _pixel(read: Read) -> float:
    a, b, _, d, e, _ = read.place["transform"]
    # The longer side, also of a grid that is turned.
    return max(float(np.hypot(a, d)), float(np.hypot(b, e)))
