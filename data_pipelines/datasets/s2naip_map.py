"""OpenStreetMap's objects of a S2NAIP tile as a map of classes."""

import itertools
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8

SIDE = 512  # pixels of 1.25 m; the objects' coordinates are of these, x to the right and y down
LINE_WIDTH = 2
CLASSES = ("nothing mapped", "building", "transport", "industry and energy", "water", "other")
COLOURS = ("#f2efe9", "#c0392b", "#5f6368", "#8e44ad", "#3498db", "#7cb342")

_OTHER = CLASSES.index("other")
_GROUPS = {
    "building": "building chimney communications_tower lighthouse observatory silo storage_tank water_tower",
    "transport": "aerialway_pylon aerodrome airstrip amenity_fuel helipad highway parking runway taxiway",
    "industry and energy": "crane generator_wind petroleum_well power_plant power_substation power_tower "
    "satellite_dish works",
    "water": "fountain river",
    "other": "flagpole leisure obelisk",
}
_CLASS = {category: CLASSES.index(group) for group, names in _GROUPS.items() for category in names.split()}
_ORDER = [CLASSES.index(name) for name in ("other", "industry and energy", "water", "transport", "building")]


def draw_map(path: pathlib.Path, geojson: Any) -> Int8[np.ndarray, "512 512"]:
    """Draws the objects: other areas first, then industry, water, transport, and buildings on top.

    Args:
      path: of the file, for errors.
      geojson: a feature collection with points, lines and areas in pixels, and their "category".

    Raises:
      ValueError: it is something else.
      ImportError: rasterio is not installed.
    """
    from rasterio.features import rasterize

    try:
        objects = [(_CLASS.get(one["properties"]["category"], _OTHER), one["geometry"]) for one in geojson["features"]]
        areas = [(area, number) for number, geometry in objects for area in _areas(geometry)]
        areas.sort(key=lambda area: _ORDER.index(area[1]))
        if not areas:
            return np.zeros((SIDE, SIDE), np.int8)
        return rasterize(areas, (SIDE, SIDE), fill=0, dtype="uint8").astype(np.int8)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        expected = "GeoJSON features with a 'category' among their properties, and coordinates in pixels"
        raise ValueError(f"{path} is not as expected ({type(error).__name__}: {error}); expected {expected}") from error


def _areas(geometry: Any) -> list[dict[str, Any]]:
    """A geometry as polygons: lines and points get a width; GeoJSON allows none at all."""
    if geometry is None:
        return []
    kind = geometry["type"]
    if kind == "GeometryCollection":
        return [area for one in geometry["geometries"] for area in _areas(one)]
    coordinates = geometry["coordinates"]
    if kind.startswith("Multi"):
        single = kind.removeprefix("Multi")
        return [area for one in coordinates for area in _areas({"type": single, "coordinates": one})]
    if kind == "Polygon":
        return [_polygon(coordinates)] if len(coordinates) and len(coordinates[0]) >= 4 else []  # else it has no area
    if kind == "LineString":
        return [_polygon([_strip(*ends)]) for ends in itertools.pairwise(_points(coordinates))]
    if kind == "Point":
        (point,) = _points([coordinates])
        return [_polygon([_strip(point, point)])]
    raise ValueError(f"a geometry of type {kind!r}")


def _polygon(rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [_points(ring).tolist() for ring in rings]}


def _strip(start: Float64[np.ndarray, "2"], end: Float64[np.ndarray, "2"]) -> Float64[np.ndarray, "5 2"]:
    """The corners of a line of `LINE_WIDTH` pixels, which reaches half of that beyond both ends."""
    length = float(np.hypot(*(end - start)))
    along = (end - start if length else np.array([1.0, 0.0])) * (LINE_WIDTH / 2 / (length or 1.0))
    across = np.array([-along[1], along[0]])
    first, last = start - along, end + along
    return np.stack([first + across, last + across, last - across, first - across, first + across])


def _points(coordinates: Any) -> Float64[np.ndarray, "N 2"]:
    points = np.asarray([point[:2] for point in coordinates], np.float64)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite")
    return points
