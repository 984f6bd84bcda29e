"""Arrays of xarray, in memory or in a zarr store, as acquisitions: bands by name, places by coordinates."""

import dataclasses
import datetime
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from anysat_jax.inputs import TOLERANCE, axis_of, band_names, dimensions
from anysat_jax.scenes.files import LARGEST_STEP, needed_bands
from anysat_jax.scenes.naming import MASKS, band_in, mask_in
from anysat_jax.scenes.reading import Acquisition, Stack
from anysat_jax.scenes.sources import DARK, OFFSET, SINCE, complete_stack, sample
from anysat_jax.scenes.warping import KEPT, forget
from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.files import explained

# Attributes with coordinate systems, as CF, GDAL, GeoZarr, STAC and stackstac name them, and with transforms.
_SYSTEMS = ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:code", "proj:epsg", "epsg", "crs")
_TRANSFORMS = ("spatial:transform", "transform")


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash
class Source:
    """A variable of xarray (..., y, x), rows from north to south; its bands and dates share it."""

    variable: Any

    def read(self, rows: slice, columns: slice) -> Float32[np.ndarray, "... h w"]:
        """Reads a window of all dates and bands, which this thread keeps for the next call until `forget`."""
        window = rows.start, rows.stop, columns.start, columns.stop
        blocks = KEPT.__dict__.setdefault("blocks", {})
        # A chunk often holds several dates and bands, and would be decoded for each of them.
        if (last := blocks.pop(self, None)) is None or last[0] != window:
            last = window, self.variable[..., rows, columns].values.astype(np.float32)
        blocks[self] = last
        return last[1]


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayBand:
    """A band of an array of xarray, of which only windows are read."""

    name: str
    source: Source
    place: tuple[int, ...]  # of the band in the axes before y
    crs: str
    transform: Affine
    scale: float = 1.0  # of values; 10000 of reflectance
    zero: float | None = None  # see `Band.zero`

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.variable.shape[-2:]

    def read(self, rows: slice, columns: slice) -> Float32[np.ndarray, "h w"]:
        with explained(self.name, "an array that is whole", ValueError, RuntimeError, KeyError):
            return self.source.read(rows, columns)[self.place] * np.float32(self.scale)


class _Layer(NamedTuple):
    """The place of a band in a Dataset."""

    variable: str
    band: int | None  # its position in the variable's dimension of bands; None: it has none


class _Placed(NamedTuple):
    """A variable of a Dataset with its dates and its place."""

    source: Source  # ([time,] [band,] y, x)
    days: list[datetime.date | None]  # [None] of one without dates
    has_time: bool
    crs: str
    transform: Affine
    scale: float
    zero: float | None
    notes: list[str]

    def band(self, where: str, layer: _Layer, number: int, is_mask: bool = False) -> ArrayBand:
        """Returns a band on the date of a number."""
        day = self.days[number] if self.has_time else self.days[0]
        name = f"{where}, {layer.variable}" + (f" of {day}" if day else "")
        place = (number,) * self.has_time + ((layer.band,) if layer.band is not None else ())
        units = (1.0, None) if is_mask else (self.scale, self.zero)
        return ArrayBand(name, self.source, place, self.crs, self.transform, *units)


def open_zarr(sensor: str, path: pathlib.Path) -> Stack:
    """Opens a zarr store, of format 2 or 3, as acquisitions of a sensor.

    Raises:
      FileNotFoundError, ValueError: it cannot be read, or as `open_dataset`.
    """
    import xarray
    import zarr

    expected = "a zarr group of arrays with coordinates, as xarray writes it"
    # Without consolidated metadata xarray warns that opening is slow.
    with explained(path, expected, ValueError, KeyError, TypeError, RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, array in zarr.open_group(path, mode="r").arrays():
            if any(getattr(codec, "codec_id", "") == "pickle" for codec in (*array.filters, *array.compressors)):
                raise ValueError(f"its array {name!r} holds pickled objects, which could run code")
        # Not of dask: the graph of its chunks would be pickled with each band.
        dataset = xarray.open_zarr(path, chunks=None, decode_coords="all")
    return open_dataset(sensor, dataset, str(path))


def open_dataset(sensor: str, source: Any, where: str = "") -> Stack:
    """Returns a Dataset or a DataArray of xarray as acquisitions of a sensor; values are read when they are needed.

    A Dataset has a variable for each band, or one with a dimension of bands, named like the sensor if there are
    several. Invalid are NaN, fill values, and what a band SCL or a mask `<sensor>_mask` (True where valid) excludes.

    Args:
      sensor: its name.
      source: of dimensions named as in `anysat_jax.inputs.DIMENSIONS`, with coordinates, those of pixels' centres.
      where: for messages, the store.

    Raises:
      ValueError: a band, dates, coordinates or the coordinate system are missing or cannot be; the message names them.
    """
    import xarray

    record, where = get_sensor(sensor), where or f"the array of {sensor!r}"
    if not isinstance(source, xarray.Dataset | xarray.DataArray):
        raise ValueError(f"{sensor!r} is a {type(source).__name__}; expected a path, or a Dataset of xarray")
    if isinstance(source, xarray.DataArray):
        source = source.to_dataset(name=source.name or sensor)
    dataset = _decoded(where, source)
    layers, mask, clear = _layers(record, where, dataset)
    placed = {name: _place(record, where, dataset, name) for name, _ in dict.fromkeys((*layers, *mask))}
    days = _common_days(record, where, placed, layers[0].variable)

    acquisitions = [
        Acquisition(
            f"{where}, {day}" if day else where,
            day,
            tuple(placed[layer.variable].band(where, layer, number) for layer in layers),
            placed[mask[0].variable].band(where, mask[0], number, is_mask=True) if mask else None,
            clear,
        )
        for number, day in enumerate(days)
    ]
    notes = [note for one in placed.values() for note in one.notes] + _doubts(sensor, acquisitions)
    stack = complete_stack(sensor, acquisitions, list(dict.fromkeys(f"{sensor}: {note}" for note in notes)))
    forget()  # what was looked at
    return stack


def _doubts(sensor: str, acquisitions: Sequence[Acquisition]) -> list[str]:
    """Returns a note on dates of Sentinel-2 that seem to hold the offset of baseline 04.00, which nothing declares."""
    held = []
    for one in acquisitions if sensor == "s2" else ():
        if one.day and one.day >= SINCE and one.bands[0].zero == 0:
            seen = [values for band in one.bands[::4] if (values := sample(band)).size]
            held += [one.day] if seen and all(np.quantile(values, 0.01) > DARK for values in seen) else []
    return [
        f"{len(held)} dates since {SINCE}, such as {day}, have no values below {DARK:g}, as if they held the offset of "
        f"baseline 04.00: subtract {OFFSET:g} if so, array - {OFFSET:g} where it is not 0"
        for day in held[:1]
    ]


def _decoded(where: str, dataset: Any) -> Any:
    """Returns a Dataset with fill values as NaN, and scales and offsets applied, unless they are already."""
    import xarray

    for name, array in dataset.data_vars.items():
        if {"scales", "offsets"} & set(array.attrs):  # of rioxarray, where bands differ
            raise ValueError(
                f"{where}: {name!r} has a scale or offset for each band, which are not applied: apply them"
            )
        if "nodata" in array.attrs and "_FillValue" not in {*array.attrs, *array.encoding}:
            dataset = dataset.assign({name: array.assign_attrs(_FillValue=array.attrs["nodata"])})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a mapping that is missing: without a system there is an error
            return xarray.decode_cf(dataset, decode_coords="all", decode_timedelta=False)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{where} has attributes that xarray cannot decode: {error}") from error


def _layers(record: Sensor, where: str, dataset: Any) -> tuple[list[_Layer], list[_Layer], tuple[int, ...]]:
    """Returns the bands in the sensor's order, the mask in a list, empty if there is none, and its valid values."""
    axes = {str(name): {axis_of(dim): dim for dim in array.dims} for name, array in dataset.data_vars.items()}
    named = {name: _Layer(name, None) for name, found in axes.items() if {"y", "x"} <= set(found)}
    own_mask = named.pop(f"{record.name}_mask", None)
    stacked = [name for name in named if "band" in axes[name]]
    stacked = [name for name in stacked if name == record.name] or stacked
    if len(stacked) > 1:
        raise ValueError(
            f"{where} has several variables of bands, {', '.join(stacked)}; expected one, or one that is named "
            f"{record.name!r}: dataset.rename({stacked[0]}={record.name!r})"
        )
    if stacked:
        names = band_names(f"{where}, {stacked[0]}", dataset[stacked[0]], axes[stacked[0]]["band"])
        masks = {name: layer for name, layer in named.items() if name not in stacked and mask_in(name)}
        named = masks | {name: _Layer(stacked[0], number) for number, name in enumerate(names)}
    bands: dict[str, list[str]] = {}
    for name in named:
        bands.setdefault(band_in(name, record), []).append(name)
    needed = needed_bands(record)
    if missing := [band for band in needed if band not in bands]:
        there = ", ".join(named) or f"{', '.join(axes) or 'nothing'}, without dimensions of places"
        raise ValueError(f"{where} lacks {record.name!r}'s bands {', '.join(missing)}; there are {there}")
    if twice := [band for band in needed if len(bands[band]) > 1]:
        raise ValueError(f"{where} has the band {twice[0]!r} as {' and as '.join(bands[twice[0]])}; expected one")
    chosen = [named[bands[band][0]] for band in needed]
    if own_mask:
        return chosen, [own_mask._replace(band=0 if "band" in axes[own_mask.variable] else None)], (1,)
    mask = next((name for name in named if mask_in(name) and not band_in(name, record)), "")
    return chosen, [named[mask]] if mask else [], MASKS[mask_in(mask)].clear if mask else ()


def _common_days(
    record: Sensor, where: str, placed: Mapping[str, _Placed], first: str
) -> Sequence[datetime.date | None]:
    """Returns the dates of all variables; a mask without any is one for all dates."""
    days = placed[first].days
    if record.has_dates and None in days:
        raise ValueError(
            f"{where} has no dates, or an empty one; {record.name!r} needs a coordinate 'time' of datetime64: "
            "array.expand_dims(time=[...])"
        )
    if odd := [name for name, one in placed.items() if one.days not in (days, [None])]:
        raise ValueError(f"{where}: {odd[0]!r} has other dates than {first!r}; expected the same")
    return days


def _place(record: Sensor, where: str, dataset: Any, name: str) -> _Placed:
    """Returns a variable with its dates and its place, turned so that rows run from north to south.

    Raises:
      ValueError: it has several tiles, an image several dates, or its values, dates, coordinates or system cannot be.
    """
    array, notes = dataset[name], []
    where = f"{where}, {name!r}"
    dims = dimensions(where, array)
    if array.dtype.kind not in "iufb" or not array.size:
        raise ValueError(f"{where} holds {array.dtype if array.size else 'nothing'}; expected numbers")
    for axis in ("tile",) if record.has_dates else ("tile", "time"):
        if axis in dims:
            if (count := array.sizes[dims[axis]]) != 1:
                raise ValueError(
                    f"{where} has {count} along {dims[axis]!r}; expected one: array.isel({dims[axis]}=0), or another"
                )
            array = array.isel({dims.pop(axis): 0})
    days = _days(where, array, dims.get("time", "")) if record.has_dates else [None]
    attributes = _attributes(dataset, array)
    own = _transform(where, attributes)
    left, across = _edge(where, array, dims["x"], own and (own.c, own.a), notes)
    top, down = _edge(where, array, dims["y"], own and (own.f, own.e), notes)
    variable = array.variable.transpose(*(dims[axis] for axis in ("time", "band", "y", "x") if axis in dims))
    if across < 0:
        variable, left, across = variable[..., ::-1], left + across * variable.shape[-1], -across
    if down > 0:
        variable, top, down = variable[..., ::-1, :], top + down * variable.shape[-2], -down
    # As of files: reflectance becomes reflectance x 10000. Once decoded, scale and offset are among the encoding.
    step, offset = (
        float(array.encoding.get(key, default)) for key, default in (("scale_factor", 1), ("add_offset", 0))
    )
    scale = 10_000.0 if abs(step) <= LARGEST_STEP and not set(record.bands) & {"VV", "HH"} else 1.0
    zero = None if record.kind == "image" else float(np.float32(offset) * np.float32(scale))
    place = Affine(across, 0, left, 0, down, top)
    return _Placed(Source(variable), days, "time" in dims, _system(where, attributes), place, scale, zero, notes)


def _days(where: str, array: Any, dim: str) -> list[datetime.date | None]:
    """Returns the days along a dimension, or of the only date (""), None where it is unknown."""
    for name, coordinate in array.coords.items():
        if axis_of(name) == "time" and coordinate.dtype.kind == "M" and coordinate.dims == ((dim,) if dim else ()):
            return np.atleast_1d(coordinate.values).astype("datetime64[D]").tolist()
    if dim:
        raise ValueError(f"{where} has no dates of datetime64 along {dim!r}; assign_coords({dim}=...) gives them")
    return [None]


def _attributes(dataset: Any, array: Any) -> dict[str, Any]:
    """Returns what may describe an array's place: of the Dataset, above it of itself, and above that of its mapping."""
    scalars = {
        name: array.coords[name].item() for name in _SYSTEMS if name in array.coords and not array.coords[name].dims
    }
    found = {**scalars, **dataset.attrs, **array.attrs}
    for name in ("crs", "spatial_ref", array.encoding.get("grid_mapping")):
        found |= dataset[name].attrs if name in dataset.variables else {}
    return found


def _system(where: str, attributes: Mapping[str, Any]) -> str:
    value = next((attributes[key] for key in _SYSTEMS if attributes.get(key) not in (None, "")), None)
    if value is None:
        raise ValueError(
            f"{where} has no coordinate system; add it: array.rio.write_crs('EPSG:32632'), or the attribute 'crs'"
        )
    try:
        return CRS.from_user_input(f"EPSG:{value}" if str(value).isdigit() else value).to_string()
    except (CRSError, TypeError) as error:
        raise ValueError(f"{where} has the coordinate system {value!r}, which is none ({error}); correct it") from error


def _transform(where: str, attributes: Mapping[str, Any]) -> Affine | None:
    """Returns the transform that attributes declare; None if they do not, or declare one that is turned."""
    value = next((attributes[key] for key in ("GeoTransform", *_TRANSFORMS) if attributes.get(key) is not None), None)
    if value is None:
        return None
    try:
        numbers = [float(number) for number in (value.split() if isinstance(value, str) else value)]
        found = Affine.from_gdal(*numbers) if "GeoTransform" in attributes else Affine(*numbers[:6])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has the transform {value!r}, which is not one of six numbers; correct it") from error
    # Pixels along a coordinate cannot be turned.
    return None if found.b or found.d else found


def _edge(where: str, array: Any, dim: str, own: tuple[float, float] | None, notes: list[str]) -> tuple[float, float]:
    """Returns the outer edge of the first pixel along a dimension and the step to the next ones, by its coordinates.

    `own` are edge and step by a transform, which may be of a larger array that was cut: its lattice counts.
    """
    if dim not in array.coords:
        if own is None:
            raise ValueError(f"{where} has no coordinates {dim!r}; assign those of pixels' centres, assign_coords")
        return own
    places, size = array.coords[dim].values, array.sizes[dim]
    if places.dtype.kind not in "iuf" or (size == 1 and own is None):
        problem = "are not numbers" if places.dtype.kind not in "iuf" else "are of one pixel, whose size is unknown"
        raise ValueError(f"{where}: the coordinates {dim!r} {problem}; expected those of the centres of pixels")
    rounding = np.finfo(places.dtype).eps * np.abs(places).max() if places.dtype.kind == "f" else 0.0
    places = places.astype(np.float64)
    step = (places[-1] - places[0]) / (size - 1) if size > 1 else own[1]
    off = np.abs(places - (places[0] + step * np.arange(size))).max()
    if not (step and off <= TOLERANCE * abs(step) + rounding):
        steps = np.diff(places)
        raise ValueError(
            f"{where}: the coordinates {dim!r} have steps of {steps.min():.6g} to {steps.max():.6g}; expected equal "
            "ones: resample the array to pixels of one size"
        )
    edge = places[0] - step / 2
    if own is None or abs(abs(own[1] / step) - 1) > TOLERANCE + rounding / abs(step):
        return edge, step
    step = np.copysign(own[1], step)
    # Twice the place of the first coordinate, in pixels from the transform's edge: odd of centres, even of edges.
    halves = 2 * (places[0] - own[0]) / step
    if abs(halves - round(halves)) > 4 * TOLERANCE + 2 * rounding / abs(step):
        return edge, step
    if round(halves) % 2 == 0:
        notes.append(f"{where}: the coordinates {dim!r} are of pixels' corners, by its transform, which counts")
        # Corners are those in which the transform begins, also where rows are in the opposite order.
        halves += 0 if step == own[1] else -2
    return own[0] + step * (round(halves) // 2), step
