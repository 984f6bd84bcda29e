"""Folders of tiles with known values, and their descriptions."""

import numpy as np
import rasterio

from data_pipelines.own_tiles.reader import folder_entry
from data_pipelines.plots.gallery import as_read
from data_pipelines.prepare.shards import read_tile

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

EXTRA = """
[sensors.s1]
files = "s1/{tile}.npz"
bands = ["VH", "VV"]
units = "dB"
array = "power"
dates = "days"
nodata = -9999
optional = true

[sensors.modis]
files = "modis/{tile}.npy"
bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]
dates = "modis.csv"

[mask]
files = "mask/{tile}.tif"
classes = ["water", "land"]
values = [10, 20]
ignore = 255
"""
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


def reader_of(path):
    return folder_entry(path).reader()


def example_of(path, tile="a"):
    reader = reader_of(path)
    (split,) = (split for split in reader.splits() if tile in reader.keys(split))
    return as_read(reader.card, read_tile(reader, split, tile))


def write_everything(root):
    path = write_folder(root, DESCRIPTION + EXTRA)
    for folder in ("s1", "modis"):
        (root / folder).mkdir()
    power = np.stack([np.full((2, 4, 4), v, np.float32) for v in (-20.0, -21.0)])
    power[:, 1] += 8.0  # VV
    power[0, 0, 2, 3] = -9999
    for tile in "ab":  # c has no radar
        np.savez(root / "s1" / f"{tile}.npz", power=power, days=np.array([20200110, 20200104]), other=np.zeros(2))
    rows = ["tile,date"]
    for tile in "abc":
        np.save(root / "modis" / f"{tile}.npy", np.arange(21, dtype=np.int16).reshape(3, 7, 1, 1))
        rows += [f"{tile},2020-01-0{day}" for day in (1, 3, 2)]
        mask = np.full((1, 4, 4), 20, np.uint8)
        mask[0, 0] = (10, 255, 20, 10)
        write_raster(root / "mask" / f"{tile}.tif", mask)
    (root / "modis.csv").write_text("\n".join(rows))
    return path
