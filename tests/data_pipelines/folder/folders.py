"""Folders of tiles with known values, and their descriptions."""

import numpy as np
import rasterio

DESCRIPTION = """
name = "own_tiles"
extent = 40
patch_sizes = [10, 20]
table = "tiles.csv"

[sensors.s2]
files = "s2/{tile}_{date}.tif"
bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"]
dtype = "uint16"

[labels]
column = "cover"
classes = ["forest", "field"]

[splits]
column = "split"
"""
TABLE = "tile,cover,split\na,forest,train\nb,field,train\nc,field,val\n"
DAYS = ("20200301", "20191231")


def write_raster(path, values, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    place = dict(crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6))
    with rasterio.open(path, "w", driver="GTiff", **shape, **place | profile) as file:
        file.write(values)


def s2_values(tile, day):
    """Eleven bands of 4 x 4 pixels; band i of a file starts at 100 * (i + 1)."""
    offset = 10 * (ord(tile) - ord("a")) + DAYS.index(day)
    return (100 * np.arange(1, 12)[:, None, None] + offset + np.zeros((1, 4, 4))).astype(np.uint16)


def write_folder(root, description=DESCRIPTION, table=TABLE):
    """Three tiles of two dates; gives the description's path."""
    for tile in "abc":
        for day in DAYS:
            write_raster(root / "s2" / f"{tile}_{day}.tif", s2_values(tile, day))
    (root / "tiles.csv").write_text(table)
    return describe(root, description)


def describe(root, text):
    (root / "own.toml").write_text(text)
    return root / "own.toml"
