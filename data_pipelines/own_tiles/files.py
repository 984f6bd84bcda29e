"""Files of a tile as arrays of an example: bands, validity, dates, labels and places."""

import dataclasses
import datetime
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Num

from data_pipelines.bands import pick_bands, with_ratio, with_ratio_of_decibels
from data_pipelines.card import Example
from data_pipelines.dates import observed_series, parse_day
from data_pipelines.own_tiles.declared import Read, with_declarations
from data_pipelines.own_tiles.description import DECIBELS, LINEAR, MaskFiles, SensorFiles
from data_pipelines.prepare.leaks import IDENTITY, project


def with_clear(files: SensorFiles, read: Read, classes: Read | None) -> Read:
    """Returns a sensor's file with `valid` False where the classification's class is not one that counts.

    `classes` is the classification's file, of pixels of the same size or a multiple; None if a band of `read` has it.

    Raises:
      ValueError: it is of another size, or elsewhere.
    """
    *axes, _, height, width = read.values.shape
    if classes is None:
        band = files.bands.index(files.clear.band)
        clear = np.isin(read.values[..., band : band + 1, :, :], files.clear.values)
    else:
        check_places([(read, None), (classes, None)])
        clear = np.isin(classes.values, files.clear.values) & (True if classes.valid is None else classes.valid)
        times = max(width // clear.shape[-1], 1)
        clear = clear.repeat(times, -1).repeat(times, -2)
        if clear.shape[-2:] != (height, width) or clear.size != np.prod([*axes, height, width]):
            raise ValueError(
                f"{classes.path} has the shape {classes.values.shape}; expected a class for each pixel of {read.path}, "
                f"{(*axes, 1, height, width)}, or for squares of them"
            )
    return dataclasses.replace(read, valid=read.valid & clear.reshape(*axes, 1, height, width))


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
    mask = pick_bands(read.valid, files.bands, bands).all(axis=-3, keepdims=True)
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
    """Returns values and `valid` as (bands, H, W) or, of a stacked file, (dates, bands, H, W).

    Raises:
      ValueError: the file has other bands than described, or as `with_declarations`.
    """
    read = with_declarations(files, read)
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
    return dataclasses.replace(read, values=values, valid=read.valid.reshape(values.shape))


def days_of_array(read: Read, name: str) -> list[datetime.date]:
    """Returns the days in an array of an npz file: numbers yyyymmdd, texts, or numpy's own days.

    Raises:
      ValueError: the array is missing, or a day cannot be read.
    """
    if name not in read.others:
        raise ValueError(f"{read.path} has the arrays {sorted(read.others)}, not {name!r}, which is to hold the dates")
    return [parse_day(str(day), f"{read.path}: {name!r}") for day in np.ravel(read.others[name])]


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
        declared = "each band's own" if files.files.has_band else reads[0].nodata
        raise ValueError(
            f"{reads[0].path}: no date of {name!r} has a valid pixel; expected some that are finite, not masked, and "
            f"neither the file's nodata ({declared}) nor that of the description ({files.nodata}): correct it, or take "
            "the tile's files out"
        )
    if files.same_day:
        values, mask, days = _joined_days(values, mask, days)
    return observed_series(name, values, mask, days)


def _joined_days(
    values: Num[np.ndarray, "T C H W"], mask: Bool[np.ndarray, "T 1 H W"], days: list[datetime.date]
) -> tuple[Num[np.ndarray, "D C H W"], Bool[np.ndarray, "D 1 H W"], list[datetime.date]]:
    """Returns one date for each day: the one with most valid pixels, and from the others what it lacks."""
    joined: dict[datetime.date, tuple[np.ndarray, np.ndarray]] = {}
    for date in sorted(range(len(days)), key=lambda date: -mask[date].sum()):
        best, seen = joined.get(days[date], (values[date], mask[date]))
        joined[days[date]] = np.where(seen, best, values[date]), seen | mask[date]
    return *(np.stack(arrays) for arrays in zip(*joined.values(), strict=True)), list(joined)


NO_LABEL = -1  # the number in the files may be that of a class once classes count from 0


def dense_label(mask: MaskFiles, read: Read, side: int, dtype: np.dtype) -> Num[np.ndarray, "h w"]:
    """Returns a tile's dense label: class numbers with `NO_LABEL` where there is none, or float32 with NaN there.

    It has `side` pixels along a side; `dtype` is that of a class map.

    Raises:
      ValueError: the file is of another size, or holds an unknown class.
    """
    one_band = read.values.ndim == 3 and len(read.values) == 1
    values, valid = (array[0] if one_band and array is not None else array for array in (read.values, read.valid))
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
    if valid is not None:
        known &= valid
    if read.scales:
        values = values * read.scales[0] + read.offsets[0]
    if not mask.classes:
        return np.where(known, values.astype(np.float32), np.float32(np.nan))
    if strangers := sorted(set(np.unique(values[known]).tolist()) - set(mask.values)):
        raise ValueError(
            f"{read.path} holds {', '.join(f'{v:g}' for v in strangers[:8])}; expected {mask.values} for the classes "
            f"{', '.join(mask.classes)}, or {mask.ignore} for no label (mask.values, mask.ignore)"
        )
    classes = np.full(values.shape, NO_LABEL, dtype)
    for number, value in enumerate(mask.values):
        classes[known & (values == value)] = number
    return classes


_DEGREE = 6378137.0  # metres of an angle of 1 along the equator, as coordinate systems in degrees are exported


def check_places(reads: Sequence[tuple[Read, float | None]]) -> None:
    """Refuses rasters that are turned or upside down, have pixels of another size, or lie away from the first one.

    Each file of a tile comes with the described metres per pixel; None of a sensor whose pixel covers the tile. Files
    without a georeference are not checked.

    Raises:
      ValueError: the message names the file and both sides.
    """
    placed = [(r, metres) for r, metres in reads if r.place["crs"] and tuple(r.place["transform"]) != IDENTITY]
    for read, metres in placed:
        _check_grid(read, metres)
    firsts: dict[str, Read] = {}
    for read, _ in placed:
        first = firsts.setdefault(read.place["crs"], read)
        if first is read:
            first = placed[0][0]
        away = float(np.hypot(*(_centre(read, first.place["crs"]) - _centre(first, first.place["crs"]))))
        same = read.place["crs"] == first.place["crs"]
        # Grids of different sensors may differ by up to a pixel of the coarser one. A tile that was cut in another
        # coordinate system is turned against the first one, and its centre is a little elsewhere.
        unit, first_unit = (_metres_per_unit(one.place["crs"])[0] or 1 for one in (read, first))
        pixel = max(_pixel(read) * unit / first_unit, _pixel(first))
        allowed = pixel if same else max(pixel, 0.1 * _pixel(first) * max(first.values.shape[-2:]))
        if not away <= allowed * (1 + 1e-6):
            systems = "" if same else f" ({read.place['crs']} and {first.place['crs']})"
            raise ValueError(
                f"{read.path} is centred {away / pixel:.3g} pixels away from {first.path}{systems}; expected the files "
                "of a tile to cover the same ground: cut them to the same bounds"
            )


def _check_grid(read: Read, metres: float | None) -> None:
    a, b, _, d, e, _ = read.place["transform"]
    if max(abs(b), abs(d)) > 1e-6 * max(abs(a), abs(e)):
        raise ValueError(f"{read.path} is turned or sheared (transform {a:g}, {b:g}, {d:g}, {e:g}); {_NORTH_UP}")
    if a < 0 or e > 0:
        raise ValueError(
            f"{read.path} has its first row in the {'south' if e > 0 else 'north'} and its first column in the "
            f"{'east' if a < 0 else 'west'}; {_NORTH_UP}"
        )
    unit, is_angle = _metres_per_unit(read.place["crs"])
    if metres is None or unit is None:
        return
    nominal, ground = np.asarray([a, -e]) * unit, _ground_pixel(read)
    ground = ground if np.isfinite(ground).all() else nominal
    off, off_ground = (float(np.abs(size / metres - 1).max()) for size in (nominal, ground))
    # Squares in degrees, as most tools write them, are narrower than high on the ground; some tools write true squares.
    # Web Mercator's metres are longer than those of the ground, twice at 60 degrees, and UTM's are not.
    near, most = (0.05, np.inf) if is_angle else (0.02, 0.1)
    if off_ground > near and (off > near or off_ground > most):
        across, down = nominal if off > near else ground
        raise ValueError(
            f"{read.path} has pixels of {across:.4g} x {down:.4g} m ({read.place['crs']}), the description of "
            f"{metres:g} m; expected the same: resample the file (gdalwarp -tr), or describe the size that it has"
        )


def _ground_pixel(read: Read) -> Float64[np.ndarray, "2"]:
    """Returns width and height of the pixel at a raster's centre, in metres on the ground to 0.7 %, or NaN."""
    a, _, _, _, e, _ = read.place["transform"]
    points = np.asarray([[0, 0], [a, 0], [0, e]]) + _centre(read, read.place["crs"])
    centre, *ends = project(read.place["crs"], "EPSG:4326", points)
    east, north = np.radians((ends - centre + 180) % 360 - 180).T
    return _DEGREE * np.hypot(east * np.cos(np.radians(centre[1])), north)


_NORTH_UP = "expected rows from north to south and columns from west to east, as in other files: gdalwarp writes it so"


@functools.lru_cache(maxsize=256)
def _metres_per_unit(crs: str) -> tuple[float | None, bool]:
    """Returns the metres of a coordinate system's unit (None: unknown), and whether it is an angle."""
    from rasterio.crs import CRS

    system = CRS.from_user_input(crs)
    if not (system.is_projected or system.is_geographic):
        return None, False
    _, factor = system.units_factor  # in metres, or radians
    return factor * (_DEGREE if system.is_geographic else 1), system.is_geographic


def _centre(read: Read, crs: str) -> Float64[np.ndarray, "2"]:
    """Returns the centre of a raster in a coordinate system; NaN if it has no place in it."""
    a, b, c, d, e, f = read.place["transform"]
    height, width = read.values.shape[-2:]
    centre = np.asarray([a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f])
    return centre if crs == read.place["crs"] else project(read.place["crs"], crs, centre[None])[0]


def _pixel(read: Read) -> float:
    a, _, _, _, e, _ = read.place["transform"]
    return max(abs(float(a)), abs(float(e)))
