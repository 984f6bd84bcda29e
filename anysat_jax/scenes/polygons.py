"""Polygons of a map of classes, as a GeoPackage: number, name and area of each connected piece of a class."""

import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import rasterio
from rasterio.features import shapes

from anysat_jax.scenes.zarr_output import open_store
from data_pipelines.prepare.storage import move_whole

LAYER = "classes"


def write_polygons(raster: str | os.PathLike[str], geopackage: str | os.PathLike[str], classes: Sequence[str]) -> int:
    """Writes the connected pieces of each class of a map as polygons, whole or not at all; returns their number.

    Pixels that touch at a side belong together; nodata has no polygon. The map is read whole, one byte a pixel.

    Args:
      raster: a map of classes, in metres: a GeoTIFF or a Zarr store.
      geopackage: the file that is written, .gpkg; an existing one is replaced.
      classes: names of the classes.

    Raises:
      ValueError: the map has a number without a name, or the file's name ends in another way.
      OSError: the map cannot be read, or the file cannot be written.
    """
    import pyogrio.raw

    geopackage = pathlib.Path(geopackage)
    if geopackage.suffix != ".gpkg":
        raise ValueError(f"{geopackage}: polygons are written as a GeoPackage; choose a name that ends .gpkg")
    if pathlib.Path(raster).suffix == ".zarr":
        store = open_store(raster)
        values, transform, crs, nodata = store.array[0], store.transform, store.crs, store.array.fill_value
    else:
        with rasterio.open(raster) as file:
            values, transform, crs, nodata = file.read(1), file.transform, file.crs, file.nodata
    seen = np.ones(values.shape, bool) if nodata is None else values != nodata
    if seen.any() and (largest := int(values[seen].max())) >= len(classes):
        raise ValueError(f"{raster} has a pixel of class {largest}, and {len(classes)} classes have names")
    numbers, areas, pieces = [], [], []
    for shape, number in shapes(values, seen, connectivity=4, transform=transform):
        numbers.append(int(number))
        areas.append(_area(shape["coordinates"]))
        pieces.append(_wkb(shape["coordinates"]))
    fields = [
        np.array(numbers, np.int32),
        np.array([classes[number] for number in numbers], object),
        np.array(areas, np.float64),
    ]
    # GDAL refuses names that end in another way.
    temporary = geopackage.with_name(f".{geopackage.stem}.incomplete.gpkg")
    temporary.unlink(missing_ok=True)
    try:
        pyogrio.raw.write(
            temporary,
            np.array(pieces, object),
            fields,
            ["class", "name", "area_m2"],
            layer=LAYER,
            driver="GPKG",
            geometry_type="Polygon",
            crs=crs.to_wkt(),
        )
        move_whole(temporary, geopackage)
    except pyogrio.errors.DataSourceError as error:
        raise OSError(f"{geopackage} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(numbers)


def _area(rings: Sequence[Any]) -> float:
    """Returns the area within the first ring, without that within the others, in m2."""
    areas = []
    for ring in rings:
        x, y = (np.array(ring) - ring[0]).T  # large coordinates would cost digits
        areas.append(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
    return areas[0] - sum(areas[1:])


def _wkb(rings: Sequence[Any]) -> bytes:
    """Returns a polygon as well-known binary, little-endian."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8").tobytes()]
    return b"".join(parts)
