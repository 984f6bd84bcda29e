"""Polygons of a map of classes: where the pixels are, with area, name, holes and without nodata."""

import shutil

import numpy as np
import pyogrio
import pyogrio.raw
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.outputs import RasterSpec, finish, write_part
from anysat_jax.scenes.polygons import write_polygons

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
CLASSES = ("water", "forêt", "town")


def write_map(path, values):
    height, width = values.shape
    facts = dict(dtype="uint8", count=1, crs="EPSG:32632", transform=PLACE, nodata=255)
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, **facts) as file:
        file.write(values, 1)
    return path


def read_polygons(path):
    """Rings, numbers, names and areas, as GDAL's vector drivers read them."""
    meta, _, geometry, (number, name, area) = pyogrio.raw.read(path)
    assert meta["crs"] == "EPSG:32632" and list(meta["fields"]) == ["class", "name", "area_m2"]
    return [rings_of(one) for one in geometry], number.tolist(), name.tolist(), area.tolist()


def rings_of(wkb):
    order, kind, rings = np.frombuffer(wkb[:9], np.dtype([("o", "u1"), ("k", "<u4"), ("r", "<u4")]))[0]
    assert (order, kind) == (1, 3)
    offset, found = 9, []
    for _ in range(rings):
        count = int.from_bytes(wkb[offset : offset + 4], "little")
        found.append(np.frombuffer(wkb, "<f8", 2 * count, offset + 4).reshape(-1, 2).tolist())
        offset += 4 + 16 * count
    return found


def write_store(path, values):
    rows, columns = values.shape
    box = Box(PLACE.c, PLACE.f - 10 * rows, PLACE.c + 10 * columns, PLACE.f)
    spec = RasterSpec(Grid("EPSG:32632", box), 10, ("class",), "uint8", 255, classes=CLASSES)
    write_part(path.parent / "parts", "a", spec, box, values[None])
    finish(path.parent / "parts", spec, path)
    shutil.rmtree(path.parent / "parts")
    return path


@pytest.mark.parametrize(("write", "name"), [(write_map, "map.tif"), (write_store, "map.zarr")])
def test_polygons_cover_the_pixels_of_their_class_alone(tmp_path, write, name):
    values = np.kron(np.random.default_rng(0).integers(0, 4, (12, 15)), np.ones((3, 2))).astype(np.uint8)
    values[values == 3] = 255
    path = write(tmp_path / name, values)
    count = write_polygons(path, tmp_path / "map.gpkg", CLASSES)
    rings, numbers, names, areas = read_polygons(tmp_path / "map.gpkg")
    assert count == len(rings) and names == [CLASSES[number] for number in numbers]
    shapes = [({"type": "Polygon", "coordinates": one}, number) for one, number in zip(rings, numbers, strict=True)]
    np.testing.assert_array_equal(rasterize(shapes, values.shape, fill=255, transform=PLACE, dtype="uint8"), values)
    for number in range(3):
        area = sum(area for area, one in zip(areas, numbers, strict=True) if one == number)
        assert area == 100 * (values == number).sum()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["map.gpkg", name]


def test_a_hole_is_not_in_the_area_and_pieces_that_touch_at_a_corner_are_two(tmp_path):
    values = np.full((6, 6), 255, np.uint8)
    values[:3, :3], values[1, 1], values[3, 3] = 0, 1, 0
    write_polygons(write_map(tmp_path / "map.tif", values), tmp_path / "map.gpkg", CLASSES)
    _, numbers, _, areas = read_polygons(tmp_path / "map.gpkg")
    assert sorted(zip(numbers, areas, strict=True)) == [(0, 100.0), (0, 800.0), (1, 100.0)]


def test_a_map_without_a_class_gives_no_polygons(tmp_path):
    path = write_map(tmp_path / "map.tif", np.full((6, 6), 255, np.uint8))
    assert write_polygons(path, tmp_path / "map.gpkg", CLASSES) == 0
    assert pyogrio.read_info(tmp_path / "map.gpkg")["features"] == 0


def test_what_cannot_be_written_is_refused_in_a_sentence(tmp_path):
    path = write_map(tmp_path / "map.tif", np.full((6, 6), 2, np.uint8))
    with pytest.raises(ValueError, match=r"map\.tif has a pixel of class 2, and 2 classes have names"):
        write_polygons(path, tmp_path / "map.gpkg", CLASSES[:2])
    with pytest.raises(ValueError, match=r"map\.shp: polygons are written as a GeoPackage"):
        write_polygons(path, tmp_path / "map.shp", CLASSES)
    with pytest.raises(OSError, match=r"no/map\.gpkg cannot be written"):
        write_polygons(path, tmp_path / "no" / "map.gpkg", CLASSES)
    assert [one.name for one in tmp_path.iterdir()] == ["map.tif"]
