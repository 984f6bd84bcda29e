"""Acquisitions of a sensor, the grid of a scene, and the sensor's values in a box of it."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32
from rasterio.enums import Resampling
from rasterio.transform import Affine

from anysat_jax.scenes.grid import SAME_METRES, Box, Grid
from anysat_jax.scenes.projections import footprint, label, pixel_size, system, utm_zone, why_not_metric
from anysat_jax.scenes.warping import Band, forget, read_grid
from anysat_jax.scenes.warping import RasterBand as RasterBand
from anysat_jax.sensors import get_sensor
from data_pipelines.bands import SMALLEST_POWER, with_ratio, with_ratio_of_decibels
from data_pipelines.units import POWER


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """Bands that a sensor took at once: a product, or a file of one date."""

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


def _centre(box: Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.bottom + box.top) / 2


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
        transform, shape, how = Affine(box.width, 0, box.left, 0, -box.height, box.top), (1, 1), Resampling.average
    else:
        transform, shape, how = box.transform(sensor.metres_per_pixel), box.shape(sensor.metres_per_pixel), None
    groups: dict[datetime.date | None, list[Acquisition]] = {}
    for one in stack.acquisitions:
        if one.footprint(crs).intersection(box):
            groups.setdefault(one.day, []).append(one)
    dates = len(groups) if sensor.has_dates else 1
    # In one array from the start, as it may be most of the memory.
    values = np.full((dates, len(stack.acquisitions[0].bands), *shape), np.nan, np.float32)
    for merged, group in zip(values, groups.values()):
        _merge(merged, group, crs, transform, how)
    forget()
    values = values if sensor.has_dates else values[0]
    valid = ~np.isnan(values[..., :1, :, :])
    values = np.nan_to_num(_in_units(values, sensor.num_bands, stack.units, units), copy=False)
    return Fields(values, valid, [day for day in groups if day])


def _merge(
    merged: Float32[np.ndarray, "c H W"],
    acquisitions: Sequence[Acquisition],
    crs: str,
    transform: Affine,
    how: Resampling | None,
) -> None:
    """Fills in an array of NaN: a pixel is that of the first of a day's acquisitions in which all bands are valid."""
    shape = merged.shape[1:]
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
            values[numbers] = read_grid(bands, crs, transform, shape, how=how, mask=one.mask, clear=one.clear)
        missing &= ~np.isnan(values).any(axis=0)
        np.copyto(merged, values, where=missing)


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

MOST_AROUND = 100  # times the area of the rasters that bounds may have


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
        system(crs)  # first: further on a message names a file, too
        box = next(iter(spatial.values())).footprint(crs)
        if why := why_not_metric(crs, *_centre(box)):
            raise ValueError(f"the coordinate system {label(crs)} {why}; expected one in metres, such as a UTM zone")
    places = {"the given bounds": bounds} if bounds else {}
    places |= {f"{name} ({stack.acquisitions[0].name})": stack.footprint(crs) for name, stack in spatial.items()}
    common = _common(places, crs)
    if min(common.width, common.height) < resolution - SAME_METRES:
        raise ValueError(
            f"the scene, what {', '.join(places)} have in common, is {common.width:g} x {common.height:g} m; expected "
            f"at least a pixel of {resolution:g} m"
        )
    if bounds and common.width * common.height * MOST_AROUND < bounds.width * bounds.height:
        raise ValueError(
            f"--bounds {bounds} are more than {MOST_AROUND} times the area of the rasters in them, {common}"
        )
    common = bounds or common
    grid = Grid(crs, common, _origin(spatial, crs))
    return dataclasses.replace(grid, bounds=grid.snapped(common, resolution)), notes


def _common(places: Mapping[str, Box], crs: str) -> Box:
    (first, common), *others = places.items()
    for name, box in others:
        both = common.intersection(box)
        if both is None:
            raise ValueError(
                f"no common area: {first} covers {common} and {name} {box} (left,bottom,right,top in {label(crs)})"
            )
        common = both
    return common


def _choose_crs(stacks: Mapping[str, Stack]) -> tuple[str, list[str]]:
    """Returns the system of the larger part of some stacks, or the UTM zone of its centre, and notes."""
    parts: dict[str, list[Box]] = {}
    for stack in stacks.values():
        for one in stack.acquisitions:
            band = one.bands[0]
            box = one.footprint(band.crs)
            try:
                utm_zone(band.crs, *_centre(box))
            except ValueError as error:
                raise ValueError(f"{band.name}: {error}") from error
            parts.setdefault(band.crs, []).append(box)

    def rank(crs: str) -> tuple[bool, float, int]:
        box = _union(parts[crs])
        x, y = _centre(box)
        # Degrees are compared by what they are on the ground; systems in metres go first, as nothing is interpolated.
        side = pixel_size(crs, Affine(1e-3, 0, x, 0, -1e-3, y), (1, 1), utm_zone(crs, x, y)) / 1e-3
        return not why_not_metric(crs, x, y), box.width * box.height * side**2, len(parts[crs])

    crs = max(parts, key=rank)
    notes = []
    if len(parts) > 1:
        others = ", ".join(label(other) for other in parts if other != crs)
        notes.append(f"the rasters are in {len(parts)} coordinate systems: {others} are warped onto {label(crs)}")
    centre = _centre(_union(parts[crs]))
    if why := why_not_metric(crs, *centre):
        zone = utm_zone(crs, *centre)
        notes = [f"{label(crs)} {why}: all rasters are warped onto {zone}, the UTM zone of their centre"]
        crs = zone
    return crs, notes


def _origin(stacks: Mapping[str, Stack], crs: str) -> tuple[float, float]:
    """Returns the corner of a pixel with which most sensors' pixels coincide; of equals, the finest one's."""
    grids = dict.fromkeys(
        (name, pixel_size(band.crs, band.transform, band.shape, crs), band.transform)
        for name, stack in stacks.items()
        for band in stack.acquisitions[0].bands
        if system(band.crs) == system(crs)
    )
    # Pixels of another size than the sensor's are interpolated wherever the corner is.
    metres = {name: get_sensor(name).metres_per_pixel for name in stacks}
    own = [grid for grid in grids if abs(grid[1] - metres[grid[0]]) <= SAME_METRES * grid[1]] or list(grids)
    own.sort(key=lambda grid: grid[1])
    corners = [tuple(round(start % size, 3) % size for start in (place.c, place.f)) for _, size, place in own]

    def served(corner: tuple[float, float]) -> int:
        shifts = [((place.c - corner[0]) / size, (place.f - corner[1]) / size, size) for _, size, place in own]
        return sum(max(abs(x - round(x)), abs(y - round(y))) * size <= SAME_METRES for x, y, size in shifts)

    return max(corners, key=served, default=(0.0, 0.0))
