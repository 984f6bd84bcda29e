"""Acquisitions of a sensor, and their values on the scene's grid: copied where pixels coincide, else warped.

Every kind of band is warped in the same way, from the part of its raster that a box needs. What is read of a pixel does
not depend on the box by which it is read.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import rasterio.warp
from jaxtyping import Bool, Float32
from rasterio.enums import Resampling
from rasterio.transform import Affine, array_bounds
from rasterio.windows import Window

from anysat_jax.scenes.grid import SAME_METRES, Box, Grid
from anysat_jax.scenes.projections import footprint, pixel_size, project_bounds, system, utm_zone, why_not_metric
from anysat_jax.sensors import get_sensor
from data_pipelines.bands import SMALLEST_POWER, with_ratio, with_ratio_of_decibels
from data_pipelines.files import explained, open_raster
from data_pipelines.units import POWER

# Pixels around a source's window: as many as bilinear interpolation and the rounding of coordinates may reach.
MARGIN = 3
AVERAGED = 2.0  # source pixels along a target's from which they are averaged, rather than interpolated


class Band(Protocol):
    """One band of one acquisition, on its own grid."""

    @property
    def name(self) -> str:
        """File and band, for messages."""

    @property
    def crs(self) -> str:
        """Coordinate system, as rasterio reads it."""

    @property
    def transform(self) -> Affine:
        """From columns and rows to coordinates, in any orientation."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def zero(self) -> float | None:
        """The value that is nothing observed where all bands of the acquisition on this grid have it; None: no such."""

    def read(self, rows: slice, columns: slice) -> np.ma.MaskedArray | Float32[np.ndarray, "h w"]:
        """Reads physical values, masked or NaN where invalid."""


@dataclasses.dataclass(frozen=True)
class RasterBand:
    """A band of a GeoTIFF or JPEG 2000 file, which is opened for each reading: it may go to other processes."""

    path: pathlib.Path
    number: int  # in the file, from 1
    crs: str
    transform: Affine
    shape: tuple[int, int]
    nodata: float | None = None  # a stored value that is invalid, besides those that the file's masks hide
    masked: bool = True  # whether the file's nodata, mask and alpha bands count
    # scale, offset: the value is stored * scale + offset.
    scale: float = 1.0
    offset: float = 0.0
    zero: float | None = None  # see `Band.zero`

    @property
    def name(self) -> str:
        return f"{self.path}, band {self.number}"

    def read(self, rows: slice, columns: slice) -> Float32[np.ndarray, "h w"]:
        return _read_file([self], rows, columns)[0]


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """What a sensor took at once: a product, or a file of one date."""

    name: str  # product or file, for messages
    day: datetime.date | None  # None for an image, which has no date
    bands: tuple[Band, ...]  # in the sensor's order; without a radar's ratio, which is computed
    mask: Band | None = None  # a classification of the pixels
    clear: tuple[int, ...] = ()  # the values of `mask` that are valid

    def footprint(self, crs: str) -> Box:
        """Returns the bounds in a coordinate system.

        Raises:
          ValueError: the raster has no place in it.
        """
        band = self.bands[0]
        try:
            return footprint(band.crs, band.transform, band.shape, crs)
        except ValueError as error:
            raise ValueError(f"{band.name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Stack:
    """All acquisitions of a sensor."""

    sensor: str
    # In time order. Of those of one day that overlap, a pixel is that of the first one in which it is valid.
    acquisitions: tuple[Acquisition, ...]
    notes: tuple[str, ...] = ()  # what was decided on opening, a sentence each
    units: str = ""  # of radar: "dB" or "linear power"

    def footprint(self, crs: str) -> Box:
        """Returns the bounds of all acquisitions in a coordinate system."""
        return _union([acquisition.footprint(crs) for acquisition in self.acquisitions])


def _union(boxes: Sequence[Box]) -> Box:
    left, bottom, right, top = zip(*(dataclasses.astuple(box) for box in boxes), strict=True)
    return Box(min(left), min(bottom), max(right), max(top))


class Fields(NamedTuple):
    """Values of a sensor on a grid."""

    values: Float32[np.ndarray, "*T C H W"]  # 0 where invalid
    valid: Bool[np.ndarray, "*T 1 H W"]
    days: list[datetime.date]  # in time order; none of an image


def read_box(stack: Stack, crs: str, box: Box, units: str = "") -> Fields:
    """Reads a sensor's values in a box, in the sensor's pixels; a context sensor has one, the mean over the box.

    Acquisitions of one day become one date. There are the days of the acquisitions that reach into the box, also where
    all pixels are invalid.

    Args:
      stack: of the sensor.
      crs: coordinate system of the box.
      box: a whole number of the sensor's pixels.
      units: of radar, those that the values are to have: "dB" or "linear power"; "" for those of the files.

    Raises:
      ValueError: a file cannot be read, or the box is not a whole number of pixels.
    """
    sensor = get_sensor(stack.sensor)
    if sensor.kind == "context":
        transform, shape = Affine(box.width, 0, box.left, 0, -box.height, box.top), (1, 1)
    else:
        transform, shape = box.transform(sensor.metres_per_pixel), box.shape(sensor.metres_per_pixel)
    groups: dict[datetime.date | None, list[Acquisition]] = {}
    for one in stack.acquisitions:
        if one.footprint(crs).intersection(box):
            groups.setdefault(one.day, []).append(one)
    dates = [_merged(group, crs, transform, shape) for group in groups.values()]
    count = len(stack.acquisitions[0].bands)
    if sensor.has_dates:
        values = np.stack(dates) if dates else np.empty((0, count, *shape), np.float32)
    else:
        values = dates[0] if dates else np.full((count, *shape), np.nan, np.float32)
    valid = ~np.isnan(values[..., :1, :, :])
    values = _in_units(values, sensor.num_bands, stack.units, units)
    return Fields(np.where(valid, values, np.float32(0)), valid, [day for day in groups if day])


def _merged(
    acquisitions: Sequence[Acquisition], crs: str, transform: Affine, shape: tuple[int, int]
) -> Float32[np.ndarray, "c H W"]:
    """Returns what acquisitions of one day have, each pixel of the first one in which all bands are valid, else NaN."""
    merged = np.full((len(acquisitions[0].bands), *shape), np.nan, np.float32)
    for one in acquisitions:
        missing = np.isnan(merged[0])
        if not missing.any():
            break
        values = np.empty_like(merged)
        grids: dict[Any, list[int]] = {}
        for number, band in enumerate(one.bands):
            grids.setdefault((band.crs, band.transform, band.shape), []).append(number)
        for numbers in grids.values():
            bands = [one.bands[number] for number in numbers]
            values[numbers] = read_grid(bands, crs, transform, shape, mask=one.mask, clear=one.clear)
        missing &= ~np.isnan(values).any(axis=0)
        merged[:, missing] = values[:, missing]
    return merged


def _in_units(values: Float32[np.ndarray, "*T c H W"], num_bands: int, units: str, wanted: str) -> np.ndarray:
    """Returns radar in the wanted units and with its ratio, if the sensor has one; other sensors have no units."""
    if not units:
        return values
    if wanted and wanted != units:
        to_power = wanted == POWER.name
        values = 10 ** (values / 10) if to_power else 10 * np.log10(np.maximum(values, np.float32(SMALLEST_POWER)))
    if values.shape[-3] == num_bands:
        return values
    return (with_ratio if (wanted or units) == POWER.name else with_ratio_of_decibels)(values)


# ---------------------------------------------------------------- the scene's grid


def choose_grid(
    stacks: Mapping[str, Stack], resolution: float, crs: str | None = None, bounds: Box | None = None
) -> tuple[Grid, list[str]]:
    """Returns the grid of a scene, and notes on what was decided, a sentence each.

    The coordinate system is that of the larger part of the rasters, if its coordinates are metres on the ground, else
    the UTM zone of their centre. The origin is such that as many sensors as possible need no interpolation.

    Args:
      stacks: by sensor.
      resolution: metres per pixel of the output.
      crs: a coordinate system in metres; None: chosen.
      bounds: of the output; None: what all images and series have in common.

    Raises:
      ValueError: a system is not in metres, or the sensors (and bounds) have less than a pixel in common.
    """
    spatial = {name: stack for name, stack in stacks.items() if get_sensor(name).kind != "context"}
    if not spatial:
        raise ValueError(f"{', '.join(stacks) or 'no sensor'}: expected an image or a series, which has places")
    notes: list[str] = []
    if crs is None:
        crs, notes = _choose_crs(spatial)
    else:
        box = next(iter(spatial.values())).footprint(crs)
        if why := why_not_metric(crs, (box.left + box.right) / 2, (box.bottom + box.top) / 2):
            raise ValueError(f"the coordinate system {crs} {why}; expected one in metres, such as a UTM zone")
    places = {"the given bounds": bounds} if bounds else {}
    places |= {f"{name} ({stack.acquisitions[0].name})": stack.footprint(crs) for name, stack in spatial.items()}
    (first, common), *others = places.items()
    for name, box in others:
        both = common.intersection(box)
        if both is None:
            raise ValueError(f"no common area: {first} covers {common} and {name} {box}, in {crs}")
        common = common if bounds else both
    if min(common.width, common.height) < resolution - SAME_METRES:
        raise ValueError(
            f"the scene, what {', '.join(places)} have in common, is {common.width:g} x {common.height:g} m; expected "
            f"at least a pixel of {resolution:g} m"
        )
    grid = Grid(crs, common, _origin(spatial, crs))
    return dataclasses.replace(grid, bounds=grid.snapped(common, resolution)), notes


def _choose_crs(stacks: Mapping[str, Stack]) -> tuple[str, list[str]]:
    """Returns the system of the larger part of some stacks, or the UTM zone of its centre, and notes."""
    parts: dict[str, list[Box]] = {}
    for stack in stacks.values():
        for one in stack.acquisitions:
            parts.setdefault(one.bands[0].crs, []).append(one.footprint(one.bands[0].crs))

    def rank(crs: str) -> tuple[bool, float, int]:
        box = _union(parts[crs])
        x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        # Degrees are compared by what they are on the ground; systems in metres go first, as nothing is interpolated.
        side = pixel_size(crs, Affine(1e-3, 0, x, 0, -1e-3, y), (1, 1), utm_zone(crs, x, y)) / 1e-3
        return not why_not_metric(crs, x, y), box.width * box.height * side**2, len(parts[crs])

    crs = max(parts, key=rank)
    notes = []
    if len(parts) > 1:
        others = ", ".join(other for other in parts if other != crs)
        notes.append(f"the rasters are in {len(parts)} coordinate systems: {others} are warped onto {crs}")
    box = _union(parts[crs])
    centre = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    if why := why_not_metric(crs, *centre):
        zone = utm_zone(crs, *centre)
        notes = [f"{crs} {why}: all rasters are warped onto {zone}, the UTM zone of their centre"]
        crs = zone
    return crs, notes


def _origin(stacks: Mapping[str, Stack], crs: str) -> tuple[float, float]:
    """Returns the corner of a pixel with which most sensors' pixels coincide; of equals, the finest one's."""
    rasters = []
    for name, stack in stacks.items():
        metres = get_sensor(name).metres_per_pixel
        for band in stack.acquisitions[0].bands:
            if system(band.crs) == system(crs):
                size = pixel_size(band.crs, band.transform, band.shape, crs)
                rasters.append((size, metres, band))
    # Pixels of another size than the sensor's are interpolated anyway.
    own = [one for one in rasters if abs(one[0] - one[1]) * max(one[2].shape) <= SAME_METRES] or rasters
    corners = {(band.transform.c % size, band.transform.f % size): None for size, _, band in sorted(own, key=lambda o: o[:2])}

    def served(corner: tuple[float, float]) -> int:
        shifts = [((band.transform.c - corner[0]) / size, (band.transform.f - corner[1]) / size) for size, _, band in own]
        return sum(
            max(abs(x - round(x)), abs(y - round(y))) * one[0] <= SAME_METRES for (x, y), one in zip(shifts, own, strict=True)
        )

    return max(corners, key=served, default=(0.0, 0.0))


# ---------------------------------------------------------------- onto a grid


def read_grid(
    bands: Sequence[Band],
    crs: str,
    transform: Affine,
    shape: tuple[int, int],
    *,
    classes: bool = False,
    mask: Band | None = None,
    clear: Sequence[int] = (),
) -> Float32[np.ndarray, "c H W"]:
    """Reads bands that share a grid onto another one; NaN where one of them is invalid.

    Values are copied where pixels coincide up to `SAME_METRES`. Otherwise they are averaged where a target's side is
    two source pixels or more, else interpolated bilinearly; classes are those of the nearest pixel.

    Args:
      bands: with the same coordinate system, transform and shape.
      crs, transform, shape: the target; pixels are squares in rows from north to south, or one rectangle.
      classes: whether the values are classes or bits.
      mask: pixels with another class than those of `clear` are invalid, before interpolation.

    Raises:
      ValueError: a file cannot be read, or its raster has no place in the coordinate system.
    """
    band = bands[0]
    place = _coinciding(band, crs, transform)
    if place:
        height, width = shape
        rows, columns = slice(place[0], place[0] + height), slice(place[1], place[1] + width)
    else:
        rows, columns = _source_window(band, crs, transform, shape)
    inside = [slice(max(one.start, 0), min(one.stop, side)) for one, side in zip((rows, columns), band.shape)]
    out = np.full((len(bands), *shape), np.nan, np.float32)
    if any(one.start >= one.stop for one in inside):
        return out
    values = _read(bands, *inside)
    values[:, _invalid(bands, values)] = np.nan
    here = band.transform * Affine.translation(inside[1].start, inside[0].start)
    if mask is not None:
        found = read_grid([mask], band.crs, here, values.shape[1:], classes=True)[0]
        is_clear = np.isin(np.nan_to_num(found, nan=-1).astype(np.int64), np.asarray(clear, np.int64))
        values[:, np.isnan(found) | ~is_clear] = np.nan
    if place:
        across = [slice(one.start - at, one.stop - at) for one, at in zip(inside, place)]
        out[:, across[0], across[1]] = values
        return out
    averaged = _pixels_along(band, crs, transform) >= AVERAGED * (1 - 1e-6)
    how = Resampling.nearest if classes else Resampling.average if averaged else Resampling.bilinear
    origin = (here.c, here.f) if system(crs) == system(band.crs) else (0.0, 0.0)
    rasterio.warp.reproject(
        values,
        out,
        # Within one system both count from a near corner: small numbers have no rounding that decides ties.
        src_transform=Affine.translation(-origin[0], -origin[1]) * here,
        dst_transform=Affine.translation(-origin[0], -origin[1]) * transform,
        src_crs=system(band.crs),
        dst_crs=system(crs),
        src_nodata=np.nan,
        dst_nodata=np.nan,
        resampling=how,
        # Otherwise coordinates are interpolated between some, and the kernel's size is taken from the windows' sizes:
        # both make a pixel depend on the window.
        tolerance=0,
        XSCALE=1,
        YSCALE=1,
    )
    return out


def _invalid(bands: Sequence[Band], values: Float32[np.ndarray, "c h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns where one of the bands is not finite, or all have the value that is then nothing observed."""
    invalid = ~np.isfinite(values).all(axis=0)
    zeros = [band.zero for band in bands]
    if None not in zeros:
        invalid |= (values == np.asarray(zeros, np.float32)[:, None, None]).all(axis=0)
    return invalid


def _read(bands: Sequence[Band], rows: slice, columns: slice) -> Float32[np.ndarray, "c h w"]:
    """Reads a window of each band, NaN where invalid; bands of one file at once, as it may be stored by pixel."""
    if len({getattr(band, "path", band) for band in bands}) == 1 and all(isinstance(b, RasterBand) for b in bands):
        return _read_file(bands, rows, columns)
    read = [band.read(rows, columns) for band in bands]
    return np.stack([np.ma.filled(np.ma.asarray(one, np.float32), np.nan) for one in read])


def _read_file(bands: Sequence[RasterBand], rows: slice, columns: slice) -> Float32[np.ndarray, "c h w"]:
    path, expected = bands[0].path, "a raster that is whole"
    window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    with open_raster(path, expected, whole=False) as file, explained(path, expected, rasterio.errors.RasterioError):
        stored = file.read([band.number for band in bands], window=window, masked=bands[0].masked)
    values = np.ma.filled(stored.astype(np.float32), np.nan)
    for band, one, own in zip(bands, values, np.ma.getdata(stored)):
        if band.scale != 1 or band.offset:
            one *= np.float32(band.scale)
            one += np.float32(band.offset)
        if band.nodata is not None:
            one[own == band.nodata] = np.nan
    return values


def _coinciding(band: Band, crs: str, target: Affine) -> tuple[int, int] | None:
    """Returns row and column of the band at which the target begins; None where pixels do not coincide."""
    if system(band.crs) != system(crs):
        return None
    own = band.transform
    steps = np.subtract((own.a, own.b, own.d, own.e), (target.a, target.b, target.d, target.e))
    # Pixels of a slightly other size coincide if they still do at the raster's far side.
    if abs(steps).max() * max(band.shape) > SAME_METRES:
        return None
    column, row = (target.c - own.c) / own.a, (target.f - own.f) / own.e
    if max(abs(row - round(row)), abs(column - round(column))) * abs(own.a) > SAME_METRES:
        return None
    return round(row), round(column)


def _source_window(band: Band, crs: str, transform: Affine, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the rows and columns of a band that a target needs, with a margin; they may lie outside of the band."""
    left, bottom, right, top = array_bounds(*shape, transform)
    if system(crs) != system(band.crs):
        left, bottom, right, top = project_bounds(crs, band.crs, left, bottom, right, top)
    corners = [~band.transform * corner for corner in ((left, bottom), (left, top), (right, bottom), (right, top))]
    columns, rows = zip(*corners, strict=True)
    margin = MARGIN + int(_pixels_along(band, crs, transform))
    return tuple(
        slice(int(np.floor(min(places))) - margin, int(np.ceil(max(places))) + margin) for places in (rows, columns)
    )


def _pixels_along(band: Band, crs: str, transform: Affine) -> float:
    """Returns how many pixels of a band lie along a side of a target's pixel."""
    return float(np.sqrt(abs(transform.a * transform.e))) / pixel_size(band.crs, band.transform, band.shape, crs)
