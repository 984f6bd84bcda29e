"""A tile of S2NAIP of known values in the published layout."""

import json

import numpy as np

from data_pipelines.datasets.s2naip import CARD, S2NaipReader
from data_pipelines.fakes.common import write_raster
from data_pipelines.plots.gallery import as_read
from data_pipelines.prepare import shards

TILE = "32612_960_-6049"  # the example of the dataset's own description
S2_DAYS, S1_DAYS, L8_DAYS = ("20200602", "20200607"), ("20191230", "20200105"), ("20200101", "20201231", "20200303")
SCENES = {
    "sentinel2": [f"S2B_MSIL1C_{day}T174909_N0209_R141_T12SVD_{day}T212626" for day in S2_DAYS],
    "sentinel1": [f"S1A_IW_GRDH_1SDV_{day}T011526_{day}T011551_033152_03D73E_1B2C" for day in S1_DAYS],
    "landsat": [f"LC08_L1TP_038036_{day}_20210101_02_T1" for day in L8_DAYS],
}


def stack(dates, bands, side, dtype="uint16"):
    """Values that tell date and band: 1000 * date + 10 * band + 1."""
    date, band = np.mgrid[0:dates, 0:bands]
    plane = (1000 * date + 10 * band + 1).reshape(-1, 1, 1)
    return np.broadcast_to(plane, (dates * bands, side, side)).astype(dtype)


def naip_image():
    image = np.random.default_rng(0).integers(1, 256, (4, 512, 512), dtype=np.uint8)
    image[3, :10] = 0  # no infrared: were it transparency, the colours would go
    image[:, 500:] = 0
    return image


def write_naip(root, image, tile=TILE):
    write_raster(root / "naip" / f"{tile}.png", image, driver="PNG")


def write_map(root, *features, tile=TILE):
    (root / "openstreetmap").mkdir(exist_ok=True)
    objects = [
        {"type": "Feature", "properties": {"category": name}, "geometry": {"type": kind, "coordinates": coordinates}}
        for name, kind, coordinates in features
    ]
    text = json.dumps({"type": "FeatureCollection", "features": objects})
    (root / "openstreetmap" / f"{tile}.geojson").write_text(text)


def write_tile(root):
    """One tile in folders, with tables of its dates."""
    write_naip(root, naip_image())
    for folder, bands in (("sentinel2", (4, 6)), ("landsat", (1, 10))):
        dates = len(SCENES[folder])
        write_raster(root / folder / f"{TILE}_8.tif", stack(dates, bands[0], 64))
        write_raster(root / folder / f"{TILE}_16.tif", stack(dates, bands[1], 32) + np.uint16(500))
    radar = np.stack([np.full((64, 64), value, np.float32) for value in (-8, -15, -9, -17)])
    write_raster(root / "sentinel1" / f"{TILE}.tif", radar)
    for folder, scenes in SCENES.items():
        (root / f"{folder}.csv").write_text("tile,scene\n" + "".join(f"{TILE},{scene}\n" for scene in scenes))
    return root


def read_tile(root):
    reader = S2NaipReader(root)
    (split,) = reader.splits()
    (key,) = reader.keys(split)
    return as_read(CARD, shards.read_tile(reader, split, key))
