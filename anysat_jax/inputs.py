"""Users' arrays, of any library, as numpy's: torch tensors, masked arrays, xarray with its coordinates, calendar days.

Neither torch nor xarray is imported: their objects are recognised by their methods. Arrays that jax traces stay so.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from anysat_jax.sensors import SENSORS, Sensor
from data_pipelines.bands import band_key, common_names

# Names of dimensions, also with an ending like x_s2, in the order of the arrays that the model takes.
DIMENSIONS = {
    **dict.fromkeys(("tile", "batch", "sample"), "tile"),
    **dict.fromkeys(("time", "t", "date"), "time"),
    **dict.fromkeys(("band", "bands", "channel", "variable"), "band"),
    **dict.fromkeys(("y", "northing", "lat", "latitude"), "y"),
    **dict.fromkeys(("x", "easting", "lon", "longitude"), "x"),
}
AXES = ("tile", "time", "band", "y", "x")
_FILLS = ("_FillValue", "nodata", "missing_value")
TOLERANCE = 0.01  # of a pixel's side


def is_traced(*values: Any) -> bool:
    """Returns whether jax traces one of some arrays, as inside of jit, grad or vmap: its values are not known then."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def where(condition: Any, values: Any, other: Any) -> Any:
    """Returns `values` where a mask is True, else `other`: an array of numpy, or of jax where one is traced."""
    return (jnp if is_traced(condition, values) else np).where(condition, values, other)


def to_numpy(name: str, value: Any) -> Any:
    """Returns a user's array as one of numpy; masked arrays and arrays that jax traces stay what they are.

    Tensors of torch may have gradients, be on another device, or of bfloat16, which becomes float32.

    Args:
      name: of the array, for errors.

    Raises:
      ValueError: it is not rectangular, or numpy cannot read it, such as a sparse tensor.
    """
    try:
        if isinstance(value, list | tuple):
            parts = [to_numpy(name, one) if hasattr(one, "__array__") else one for one in value]
            if is_traced(*parts):
                return jnp.stack(parts)
            return np.ma.stack(parts) if any(isinstance(one, np.ma.MaskedArray) for one in parts) else np.asarray(parts)
        if is_traced(value):
            return value
        if hasattr(value, "detach"):  # torch is not imported for it
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(value, list | tuple):
            raise ValueError(f"{name!r} is not a rectangular array (pad, and give masks): {error}") from None
        raise ValueError(
            f"{name!r} is a {type(value).__name__} that numpy cannot read ({error}); give a numpy array"
        ) from None


def days_of_year(name: str, dates: Shaped[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
    """Returns the days of their years, 1 January = 0, of datetime64, texts like "2020-12-31", or datetime objects.

    Raises:
      ValueError: one of them is not a day; the message has `name`.
    """
    texts = dates.astype(str)
    # numpy would take months and years without a day as well, and read them as their first day.
    wrong = [one for one in texts.flat if not re.fullmatch(r"\d{4}-\d\d-\d\d([T ].*)?", str(one), re.ASCII)]
    try:
        days = texts.astype("U10").astype("datetime64[D]")
    except ValueError as error:
        wrong = wrong or [str(error)]
    if wrong:
        raise ValueError(f"{name!r} holds {str(wrong[0])!r}; dates with a year are days like 2020-12-31")
    return (days - days.astype("datetime64[Y]")).astype(np.int32)


class Ground(NamedTuple):
    """The ground that an array covers, by its coordinates."""

    crs: str  # as text; "" if the array has none
    x: tuple[float, float]
    y: tuple[float, float]
    pixel: float


def plain_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a dict of arrays with those of xarray, and dicts of bands, as arrays of numpy in the model's axes.

    Bands are matched by name, missing pixels are masked, rows run from north to south and columns from west to east. Of
    a series the dates are those of its time axis, unless `<sensor>_dates` are given. Other arrays stay as they are.

    Args:
      data: by sensor, with companions; see `AnySat.__call__`. A Dataset of xarray is such a dict, too.

    Raises:
      ValueError: a dimension, a band or the dates are missing or unknown, pixels have another size than the sensor's,
        or two sensors cover different ground; the message has the sensor.
    """
    plain, grounds = {key: data[key] for key in data}, {}
    for key, value in list(plain.items()):
        sensor = SENSORS.get(key) or SENSORS.get(re.sub("_(date_mask|dates|mask|present)$", "", str(key)))
        if sensor is None or not (_is_labelled(value) or (isinstance(value, Mapping) and key == sensor.name)):
            continue
        if key != sensor.name:
            plain[key] = _arranged(sensor, key, value) if key == f"{sensor.name}_mask" else value.values
            continue
        first = value
        if isinstance(value, Mapping):
            chosen = [list(value)[number] for number in _order(sensor, key, list(value))]
            first, plain[key] = value[chosen[0]], _stacked(key, sensor, {band: value[band] for band in chosen})
        else:
            plain[key] = _arranged(sensor, key, value)
        if not _is_labelled(first):
            continue
        if (mask := data.get(f"{key}_mask")) is not None:
            _check_same_order(f"{key}_mask", mask, first)
        if sensor.has_dates and plain.get(f"{key}_dates") is None:
            plain[f"{key}_dates"] = np.broadcast_to(_days(sensor, first), plain[key].shape[:2])
        if sensor.kind != "context" and (ground := _ground(sensor, first)):
            grounds[key] = ground
    _check_same_ground(grounds)
    return plain


def _is_labelled(value: Any) -> bool:
    return hasattr(value, "dims") and hasattr(value, "coords") and hasattr(value, "values")


def axis_of(dim: Any) -> str | None:
    """Returns the axis of a dimension's name: "tile", "time", "band", "y" or "x"; None for others."""
    return DIMENSIONS.get(str(dim).lower()) or DIMENSIONS.get(str(dim).lower().partition("_")[0])


def dimensions(key: str, array: Any) -> dict[str, str]:
    """Returns the name of each dimension of an array of xarray by its axis, see `axis_of`."""
    found: dict[str, str] = {}
    for dim in array.dims:
        axis = axis_of(dim)
        if axis is None or axis in found:
            problem = "is unknown" if axis is None else f"is one more of {axis!r}, beside {found[axis]!r}"
            raise ValueError(
                f"{key!r} has the dimensions {', '.join(map(str, array.dims))}, of which {dim!r} {problem}; expected "
                f"{', '.join(AXES)}, in any order: rename it, array.rename({dim}=...)"
            )
        found[axis] = str(dim)
    if missing := {"y", "x"} - set(found):
        raise ValueError(f"{key!r} has no dimension {min(missing)!r}; it has {', '.join(map(str, array.dims))}")
    return found


def _arranged(sensor: Sensor, key: str, array: Any, band: bool = True) -> np.ma.MaskedArray | np.ndarray:
    """Returns an array of xarray in the model's axes: of values masked where missing, or a mask without that.

    Args:
      key: of the array, for errors.
      band: whether the values have an axis of bands, from which the sensor's are taken.
    """
    dims = dimensions(key, array)
    if "band" in dims:
        array = array.isel({dims["band"]: _order(sensor, key, band_names(key, array, dims["band"]))})
    elif band and key == sensor.name:
        raise ValueError(f"{key!r} has no dimension of bands, only {', '.join(dims.values())}; expected {sensor.bands}")
    values = np.asarray(array.transpose(*(dims[axis] for axis in AXES if axis in dims)).values)
    if "tile" not in dims:
        values = values[None]
    if sensor.has_dates and "time" not in dims:
        values = values[:, None]
    if not sensor.has_dates and "time" in dims:
        if values.shape[1] != 1:
            how = f"choose one, array.isel({dims['time']}=0)"
            raise ValueError(
                f"{key!r} has {values.shape[1]} dates, and {sensor.name!r} is an image, without dates: {how}"
            )
        values = values[:, 0]
    for axis, number, sign in (("y", -2, -1), ("x", -1, 1)):
        steps = np.diff(_coordinates(array, dims[axis]))
        if steps.size and (steps * sign < 0).all():
            values = np.flip(values, number)
    if values.dtype == np.bool_:
        return values
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, np.bool_)
    for fill in (array.attrs[name] for name in _FILLS if array.attrs.get(name) is not None):
        missing = missing | (values == np.asarray(fill, np.float64))
    return np.ma.masked_array(values, missing)


def _stacked(key: str, sensor: Sensor, bands: Mapping[str, Any]) -> Any:
    """Returns arrays of single bands, (B, [T,] H, W) or of xarray, as one array."""
    parts = [
        _arranged(sensor, key, one, band=False) if _is_labelled(one) else to_numpy(f"{key}: {name}", one)
        for name, one in bands.items()
    ]
    shapes = {name: part.shape for name, part in zip(bands, parts, strict=True)}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{key!r} has bands of different shapes: {shapes}; resample them to one grid")
    if is_traced(*parts):
        return jnp.stack(parts, axis=-3)
    return (np.ma if any(isinstance(part, np.ma.MaskedArray) for part in parts) else np).stack(parts, axis=-3)


def _check_same_order(key: str, mask: Any, values: Any) -> None:
    """Refuses a mask whose axes need not be in the order of those of its values, an array of xarray."""
    problem = f"has no coordinates, and those of {key.removesuffix('_mask')!r} decide the order of its pixels"
    if _is_labelled(mask):
        theirs, ours = dimensions(key, mask), dimensions(key, values)
        places = {
            axis: (_places(mask, theirs.get(axis)), _places(values, ours.get(axis))) for axis in ("time", "y", "x")
        }
        same = (np.array_equal(*(places["time"])), *(np.array_equal(*map(np.sort, places[axis])) for axis in "yx"))
        problem = "" if all(same) else "has other coordinates than its values"
    if problem:
        raise ValueError(f"{key!r} {problem}; give a mask of xarray made of them, such as values != 0")


def band_names(key: str, array: Any, dim: str) -> list[str]:
    """Returns the names of the bands of an array of xarray, by coordinate or as rasterio's readers give them."""
    names = array.coords[dim].values.tolist() if dim in array.coords else []
    described = array.attrs.get("long_name", ())
    described = (described,) if isinstance(described, str) else tuple(described)
    if not names or not all(isinstance(name, str) for name in names):
        if len(described) != array.sizes[dim]:
            shown = ", ".join(map(str, names)) or "no coordinate"
            how = f"array.assign_coords({dim}=[...]) with the names of the bands"
            raise ValueError(
                f"{key!r} has bands without names ({dim!r}: {shown}), and their order is not guessed: {how}"
            )
        names = list(described)
    return names


def _order(sensor: Sensor, key: str, names: list[Any]) -> list[int]:
    """Returns the positions of the sensor's bands among some names.

    Raises:
      ValueError: a band is missing, or comes twice.
    """
    others = common_names(sensor)
    known = {band_key(band): band for band in sensor.bands}
    keys = [band_key(str(name)) for name in names]
    keys = [one if one in known else others.get(one, one) for one in keys]
    if missing := [band for one, band in known.items() if one not in keys]:
        ratio = [band for band in missing if "/" in band]
        how = ": it is the first less the second in decibels, and the quotient of linear power" if ratio else ""
        raise ValueError(f"{key!r} lacks the bands {', '.join(missing)}; there are {', '.join(map(str, names))}{how}")
    if twice := [band for one, band in known.items() if keys.count(one) > 1]:
        raise ValueError(f"{key!r} has the band {twice[0]!r} more than once; there are {', '.join(map(str, names))}")
    return [keys.index(one) for one in known]


def _days(sensor: Sensor, array: Any) -> np.ndarray:
    """Returns the dates of an array's time axis, or of its only date, datetime64 (T,)."""
    dim = dimensions(sensor.name, array).get("time", "time")
    days = np.atleast_1d(_places(array, dim))
    if days.dtype.kind not in "MO":
        found = f"it has {days.dtype} there" if days.size else "it has none"
        raise ValueError(
            f"{sensor.name!r} needs dates as coordinate {dim!r} (datetime64); {found}: assign them, "
            f"array.assign_coords({dim}=...), or give {sensor.name}_dates"
        )
    return days


def _places(array: Any, dim: str | None) -> np.ndarray:
    """Returns the coordinates along a dimension; none where there are none, or not the dimension."""
    return array.coords[dim].values if dim in array.coords else np.zeros(0)


def _coordinates(array: Any, dim: str) -> np.ndarray:
    """Returns the coordinates along a dimension; none where the array has no numbers there."""
    values = _places(array, dim)
    return values.astype(np.float64) if values.dtype.kind in "iuf" else np.zeros(0)


def _ground(sensor: Sensor, array: Any) -> Ground | None:
    """Returns the ground that an array covers, once its pixels are those of the sensor; None without coordinates."""
    dims, sides = dimensions(sensor.name, array), {}
    metres = sensor.metres_per_pixel
    for axis in ("x", "y"):
        places = _coordinates(array, dims[axis])
        if places.size < 2:
            continue
        steps = np.abs(np.diff(places))
        if abs(steps - metres).max() > TOLERANCE * metres:
            found = f"{steps.mean():.6g}" if np.ptp(steps) <= TOLERANCE * steps.max() else "unequal steps"
            degrees = "; degrees are reprojected to a metric grid, such as UTM" if steps.max() < TOLERANCE else ""
            raise ValueError(
                f"{sensor.name!r} has pixels of {found} along {dims[axis]!r}; the sensor's are of {metres:g} m: "
                f"resample the array{degrees}, or register a sensor of such pixels"
            )
        sides[axis] = (float(places.min() - metres / 2), float(places.max() + metres / 2))
    if len(sides) < 2:
        return None
    reference = array.coords["spatial_ref"].attrs if "spatial_ref" in array.coords else {}
    return Ground(str(reference.get("crs_wkt", array.attrs.get("crs", ""))), sides["x"], sides["y"], metres)


def _check_same_ground(grounds: Mapping[str, Ground]) -> None:
    """Refuses sensors whose coordinates are of different places in the same coordinate system."""
    for name, one in grounds.items():
        for other, two in grounds.items():
            shift = np.abs(np.subtract([one.x, one.y], [two.x, two.y])).max()
            if one.crs == two.crs and shift > max(one.pixel, two.pixel) / 2:
                raise ValueError(
                    f"{name!r} and {other!r} cover different ground: x {one.x} and {two.x}, y {one.y} and {two.y}; "
                    "crop them to the same tile"
                )
