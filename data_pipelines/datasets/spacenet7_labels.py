"""SpaceNet 7's buildings on the grid of a mosaic: from rasters, or from the published footprints."""

import pathlib
import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool

from data_pipelines.files import explained, read_json, read_raster

LABELS = {"labels_raster": ".tif", "labels_match_pix": ".geojson", "labels_match": ".geojson"}
"""Folders with labels, the first that has a mosaic's is taken, and how their files end."""


def read_buildings(
    folder: pathlib.Path, stem: str, shape: tuple[int, ...], place: dict[str, Any]
) -> Bool[np.ndarray, "h w"]:
    """Where the buildings of an area are in a month.

    Args:
      folder: of the area.
      stem: of the mosaic's file.
      shape: (height, width) of the mosaic.
      place: its "crs" and "transform".

    Raises:
      FileNotFoundError, ValueError: there is no label, or it is unreadable or not as published.
      ImportError: rasterio is not installed.
    """
    paths = [folder / kind / f"{stem}_Buildings{suffix}" for kind, suffix in LABELS.items()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no buildings of {stem} in {folder}; expected one of {', '.join(LABELS)}")
    if path.suffix == ".tif":
        expected = f"a GeoTIFF of one band, {shape[1]} x {shape[0]} pixels like the mosaic, above 0 where there is one"
        return read_raster(path, (1, *shape), "iuf", expected)[0][0] > 0
    return _rasterised(path, shape, None if path.parent.name == "labels_match_pix" else place)


def _rasterised(path: pathlib.Path, shape: tuple[int, ...], place: dict[str, Any] | None) -> Bool[np.ndarray, "h w"]:
    """Footprints on the grid; a `place` of None: they are in pixels."""
    expected = "a GeoJSON of building footprints, polygons or multipolygons"
    features = read_json(path, expected)
    if not isinstance(features, dict) or not isinstance(features.get("features"), list):
        raise ValueError(f"{path} has no list 'features'; expected {expected}")
    with explained(path, expected, ValueError, TypeError, KeyError, AttributeError, IndexError, UserWarning):
        geometries = [feature["geometry"] for feature in features["features"]]
        shapes = [one for one in geometries if one and one["coordinates"]]
        if place is not None:
            shapes = _onto(shapes, _crs(features), place["crs"])
        return _burn(shapes, shape, place)


def _crs(features: dict[str, Any]) -> str:
    """The footprints' coordinate system; without a word of it, GeoJSON's own."""
    return (features.get("crs") or {"properties": {"name": "OGC:CRS84"}})["properties"]["name"]


def _onto(shapes: list[Any], source: str, target: str) -> list[Any]:
    if not target:
        raise ValueError("the mosaic has no coordinate system, so that footprints in coordinates have no pixels")
    from rasterio.crs import CRS
    from rasterio.warp import transform_geom

    origin, aim = CRS.from_user_input(source), CRS.from_user_input(target)
    return shapes if origin == aim or not shapes else transform_geom(origin, aim, shapes)


def _burn(shapes: list[Any], shape: tuple[int, ...], place: dict[str, Any] | None) -> Bool[np.ndarray, "h w"]:
    """Pixels whose centre lies in a footprint."""
    import rasterio
    from rasterio.features import rasterize

    if not shapes:
        return np.zeros(shape, np.bool_)
    transform = rasterio.Affine.identity() if place is None else rasterio.Affine(*place["transform"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        warnings.simplefilter("error", rasterio.errors.ShapeSkipWarning)
        return rasterize([(one, 1) for one in shapes], out_shape=shape, transform=transform, dtype="uint8") > 0
