"""One file of a folder of tiles: a GeoTIFF, npy or npz file, as an array with its place and what is valid in it."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Num

from data_pipelines.bands import pick_bands, with_ratio, with_ratio_of_decibels
from data_pipelines.files import check_array, georeference, read_npy, read_npz, read_raster_and_nodata
from data_pipelines.folder.description import DECIBELS, LINEAR, SensorFiles


@dataclasses.dataclass(frozen=True)
class Read:
    """What a file holds.

    Attributes:
      path: the file.
      values: as they are stored.
      place: "crs" and "transform"; of a file that is no raster, "" and NaN.
      nodata: what the file says stands for nothing observed.
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


def validity(values: Num[np.ndarray, "*T c H W"], nodata: tuple[float | None, ...]) -> Bool[np.ndarray, "*T 1 H W"]:
    """Where all bands were observed: none is NaN, infinite, or one of the values that stand for nothing."""
    valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, np.bool_)
    for value in nodata:
        if value is not None and np.isfinite(value):
            valid &= values != value
    return valid.all(axis=-3, keepdims=True)


def to_sensor(
    files: SensorFiles, read: Read, values: Num[np.ndarray, "*T c H W"]
) -> tuple[Num[np.ndarray, "*T C H W"], Bool[np.ndarray, "*T 1 H W"]]:
    """The sensor's bands in its order and dtype, and where they are valid (True); elsewhere they are 0.

    Raises:
      ValueError: a value does not fit the dtype, or the polarisations are not in the described units.
    """
    bands = files.record.bands[:2] if files.computes_ratio else files.record.bands
    picked = pick_bands(values, files.bands, bands)
    mask = validity(picked, (files.nodata, read.nodata))
    if files.computes_ratio:
        _check_units(files, read, picked, mask)
        safe = np.where(mask, picked, 1).astype(np.float32)
        picked = with_ratio(safe) if files.units == LINEAR else with_ratio_of_decibels(safe)
    return _cast(read.path, files, np.where(mask, picked, 0)), mask


def _check_units(
    files: SensorFiles, read: Read, polarisations: Num[np.ndarray, "*T 2 H W"], mask: Bool[np.ndarray, "*T 1 H W"]
) -> None:
    """Power is never negative, and a scene in decibels always has negative values."""
    negative = bool((mask & (polarisations < 0)).any())
    if mask.any() and negative == (files.units == LINEAR):
        found, other = ("values below 0", DECIBELS) if negative else ("no value below 0", LINEAR)
        raise ValueError(
            f"{read.path} has {found}, so that it cannot be in {files.units}; expected what the description says "
            f'under [sensors.{files.record.name}]. Write units = "{other}" there, or name in nodata what is no value'
        )


def _cast(path: pathlib.Path, files: SensorFiles, values: np.ndarray) -> np.ndarray:
    dtype = np.dtype(files.dtype)
    if dtype.kind != "f" and values.size:
        limits, low, high = np.iinfo(dtype), values.min(), values.max()
        whole = values.dtype.kind != "f" or (values == np.rint(values)).all()
        if low < limits.min or high > limits.max or not whole:
            kind = "" if whole else ", not all whole,"
            raise ValueError(
                f"{path} has values from {low:g} to {high:g}{kind} which {dtype} cannot hold; describe "
                f'{files.record.name!r} with another dtype, such as dtype = "float32"'
            )
    return np.ascontiguousarray(values.astype(dtype))
