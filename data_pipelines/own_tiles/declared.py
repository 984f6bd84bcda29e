"""Files of a tile as they are stored, and what they declare of their values: masks, names, scales."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.bands import band_key
from data_pipelines.files import check_array, read_npy, read_npz
from data_pipelines.own_tiles.description import SensorFiles
from data_pipelines.own_tiles.pattern import RASTERS
from data_pipelines.rasters import georeference, open_raster


@dataclasses.dataclass(frozen=True)
class Read:
    """The content of a file, and what the file declares of it."""

    path: pathlib.Path  # the file
    values: np.ndarray  # as stored
    place: dict[str, Any]  # "crs" and "transform"; "" and NaN of a file without a georeference
    nodata: float | None = None  # the nodata value that the file declares
    others: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # further arrays of an npz file
    # Like the values, False where a mask in the file or beside it (.msk) leaves pixels out; None without one.
    valid: np.ndarray | None = None
    names: tuple[str, ...] = ()  # of the bands, "" where the file has none
    alpha: int | None = None  # position of the band that is transparency, None without one
    # scales, offsets: a number for each band; values are to be multiplied, then added to. () in place of 1 and 0.
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()


def read_file(path: pathlib.Path, array: str = "", dates: str = "") -> Read:
    """Reads a .tif, .tiff, .npy or .npz file of numbers.

    Of an npz file, `array` is the array's name, "" for the only one besides `dates`, that of the dates, if any.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, or holds no such array of numbers.
    """
    if path.suffix.lower() in RASTERS:
        return _read_raster(path)
    nowhere = georeference(None, None)
    if path.suffix.lower() == ".npy":
        return Read(path, read_npy(path, None, "iuf", "an npy array of numbers"), nowhere)
    arrays = read_npz(path, "an npz file of arrays")
    names = [array] if array else [name for name in arrays if name != dates]
    if len(names) != 1 or names[0] not in arrays:
        raise ValueError(f'{path} has the arrays {sorted(arrays)}; say which one to read: array = "NAME"')
    values = arrays[names[0]]
    check_array(path, values, values.shape, "iuf", f"numbers in the array {names[0]!r}")
    return Read(path, values, nowhere, others=arrays)


def read_bands(paths: Sequence[pathlib.Path], array: str = "") -> Read:
    """Reads files of one band each as one, in that order.

    Raises:
      FileNotFoundError, ValueError: as `read_file`, or they do not have one band each, of the same size and place.
    """
    reads = [read_file(path, array) for path in paths]
    first, shape = reads[0], (1, *reads[0].values.shape[-2:])
    grids = [f"{read.place['crs']} {read.place['transform'].round(9).tolist()}" for read in reads]
    for read, grid in zip(reads, grids, strict=True):
        if read.values.shape not in (shape, shape[1:]) or grid != grids[0]:
            raise ValueError(
                f"{read.path} has the shape {read.values.shape} at {grid}; expected one band, on the grid of "
                f"{first.path}: {shape} at {grids[0]}"
            )
    # Each band may have a nodata value of its own; None differs from all values.
    observed = [np.reshape(read.values != read.nodata, shape) for read in reads]
    valid = [one if read.valid is None else one & read.valid for one, read in zip(observed, reads, strict=True)]
    return dataclasses.replace(
        first,
        values=np.concatenate([read.values.reshape(shape) for read in reads]),
        valid=np.concatenate(valid),
        nodata=None,
        alpha=None,
        names=tuple("".join(read.names) for read in reads),
        scales=tuple((read.scales or (1.0,))[0] for read in reads),
        offsets=tuple((read.offsets or (0.0,))[0] for read in reads),
    )


def _read_raster(path: pathlib.Path) -> Read:
    expected = "a GeoTIFF of numbers"
    with open_raster(path, expected) as file:
        values, valid = file.read(), None
        nodata = {str(value) for value in file.nodatavals}  # text, as NaN is not equal to itself
        for band, flags in enumerate(file.mask_flag_enums):
            # Other masks are those of alpha bands and of one nodata value, which are seen to by value.
            if len(nodata) > 1 or not {"all_valid", "nodata", "alpha"} & {flag.name for flag in flags}:
                valid = np.ones(values.shape, np.bool_) if valid is None else valid
                valid[band] = file.read_masks(band + 1) != 0
        colours = [colour.name for colour in file.colorinterp]
        # In this order, they are set in any image of three bands, whatever these are.
        own = set() if colours[:3] == ["red", "green", "blue"] else {"red", "green", "blue"}
        a, b, _, d, e, _ = file.transform[:6]
        turned = (a < 0 or e > 0 or b or d) and not file.transform.is_identity
        is_grid = file.crs is not None or not (turned or file.gcps[0] or file.rpcs)
        scaled = any(scale != 1 for scale in file.scales) or any(file.offsets)
        read = Read(
            path,
            values,
            georeference(file.crs, file.transform),
            file.nodata if len(nodata) == 1 else None,
            valid=valid,
            names=tuple(name or (c if c in own else "") for name, c in zip(file.descriptions, colours, strict=True)),
            alpha=colours.index("alpha") if "alpha" in colours else None,
            scales=file.scales if scaled else (),
            offsets=file.offsets if scaled else (),
        )
    if not is_grid:
        what = "is placed by control points or RPCs, turned or upside down, without a coordinate system"
        raise ValueError(f"{path} {what}; expected a grid with rows from north to south: gdalwarp writes it so")
    if not np.isfinite(read.scales + read.offsets).all() or 0 in read.scales:
        raise ValueError(
            f"{path} declares the scales {read.scales} and offsets {read.offsets}; expected numbers, not 0"
        )
    check_array(path, values, (None, None, None), "iuf", expected)
    return read


def check_scales(files: SensorFiles, read: Read, first: Read) -> None:
    """Refuses a file whose values have another unit than those of the sensor's first file, by their scales.

    Floats become what scale and offset make of them: then only files with and without a scale have different units.

    Raises:
      ValueError: the message has both files and scales.
    """
    # Those of the first date; an alpha band may follow, and files may have more dates.
    own, other = (r.scales[: len(files.bands)] for r in (read, first))
    own, other = (scales if any(scale != 1 for scale in scales) else () for scales in (own, other))
    both_applied = bool(own and other) and np.dtype(files.dtype).kind == "f"
    if own != other and not both_applied:
        raise ValueError(
            f"{read.path} declares scales of {own or 1}, {first.path} of {other or 1}; expected those of all files of "
            f"{files.record.name!r} to be the same, as their values have different units: write them anew"
        )


def with_declarations(files: SensorFiles, read: Read) -> Read:
    """Returns bands without alpha, `valid` for each value, and values with the file's scale and offset.

    Floats are value * scale + offset. In a dtype of whole numbers, values keep the steps of a scale that is a fraction:
    reflectance in steps of 0.0001 stays a number to 10000, and an offset of -0.1 takes 1000 from it.

    Raises:
      ValueError: the file's names of its bands contradict the description, or a band is both alpha and described.
    """
    read = _without_alpha(files, read)
    _check_names(files, read)
    values, valid = read.values, np.isfinite(read.values)
    if read.valid is not None:
        valid &= read.valid
    valid &= (values != files.nodata) & (values != read.nodata)  # None differs from all values
    if any(read.offsets) and len(values) % (count := len(files.bands)) == 0 and count > 1:
        # A fill of 0 in all bands of a date is nothing observed; after the offset, it would look like a value.
        empty = (values.reshape(-1, count, *values.shape[1:]) == 0).all(axis=1)
        valid &= ~empty.repeat(count, axis=0)
    if read.scales:
        scales, offsets = (np.asarray(numbers)[:, None, None] for numbers in (read.scales, read.offsets))
        stays = np.dtype(files.dtype).kind != "f" and scales != np.rint(scales)
        unit = np.where(stays, scales, 1)
        shift, whole = offsets / unit, np.rint(offsets / unit)
        # -0.1 / 0.0001 is whole up to rounding only.
        values = values * (scales / unit) + np.where(np.abs(shift - whole) < 1e-6, whole, shift)
    return dataclasses.replace(read, values=values, valid=valid)


def _without_alpha(files: SensorFiles, read: Read) -> Read:
    if read.alpha is None:
        return read
    band, count, total = read.alpha, len(files.bands), len(read.values)
    alpha, others = read.values[band], [i for i in range(total) if i != band]
    stacked = files.record.has_dates and not files.files.has_date
    if len(others) == count or (stacked and len(others) % count == 0):
        valid = True if read.valid is None else read.valid[others]
        kept = {
            key: tuple(np.take(numbers, others)) for key in ("scales", "offsets") if (numbers := getattr(read, key))
        }
        names = tuple(read.names[i] for i in others)
        valid = np.broadcast_to(alpha != 0, (len(others), *alpha.shape)) & valid
        return dataclasses.replace(read, values=read.values[others], valid=valid, names=names, alpha=None, **kept)
    # GDAL declares the fourth of four 8-bit bands as alpha, whatever it is: if it looks like colour, it is data.
    if np.isin(alpha, (0, np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)).all():
        raise ValueError(
            f"{read.path}: band {band + 1} is alpha in the file, which marks valid pixels, and "
            f"{files.bands[band % count]!r} in the description; take it out of bands, [sensors.{files.record.name}]"
        )
    return read


_COLOURS = dict.fromkeys(("s2", "l8", "hls"), ("B4", "B3", "B2")) | {"l7": ("B3", "B2", "B1")}


def _check_names(files: SensorFiles, read: Read) -> None:
    known = {band_key(band) for band in (*files.record.bands, *files.bands)}
    colours = dict(zip(("RED", "GREEN", "BLUE"), _COLOURS.get(files.record.name, ("R", "G", "B"))))
    for number, text in enumerate(read.names):
        described = files.bands[number % len(files.bands)]
        codes = [word for word in re.split(r"[^A-Z0-9]+", text.upper()) if re.fullmatch(r"B\d+A?|[VH]{2}", word)]
        # The whole text, or the only code in it: "B4 (665 nm)".
        found = band_key(codes[0] if len(codes) == 1 and band_key(text) not in known else text)
        found = found if found in known else colours.get(found, found)
        if found in known and found != band_key(described):
            raise ValueError(
                f"{read.path}: band {number + 1} is {text!r} in the file, {described!r} in the description; expected "
                f"bands in the order of the file, [sensors.{files.record.name}]: {', '.join(read.names)}"
            )
