"""A made-up S2NAIP in the published layout, unpacked or in tar archives."""

import datetime
import itertools
import json
import pathlib
import shutil
import tarfile
from collections.abc import Mapping
from typing import Literal

import numpy as np

from data_pipelines.datasets.s2naip_metadata import BLOCK, FOLDERS, split_of
from data_pipelines.fakes.common import scene, some_days, write_raster

ZONE = 32612
_SCENES = {
    "s2": "S2A_MSIL1C_{day}T174911_N0209_R141_T12TWN_{day}T212541",
    "s1": "S1A_IW_GRDH_1SDV_{day}T010907_{day}T010932_033152_03D73E_1B2C",
    "l8": "LC08_L1TP_038030_{day}_20220101_02_T1",
}
_COUNTS = {"s2": 16, "s1": 4, "l8": 4}
_CATEGORIES = ("building", "building", "building", "leisure", "works", "parking")


def write_archive(
    folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0, layout: Literal["folders", "tars"] = "folders"
) -> None:
    """Writes an archive; some tiles lack Sentinel-1 or OpenStreetMap, and some pixels were not observed.

    `layout` is "folders" as unpacked, "tars" as downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes: dict[str, list[str]] = {sensor: ["tile,image"] for sensor in FOLDERS}
    number = 0
    for split, count in tiles.items():
        # One tile from each block of 10 km: the reader draws the split of a block.
        names = (f"{ZONE}_{900 + BLOCK * step}_-6049" for step in itertools.count())
        for tile in itertools.islice((name for name in names if split_of(name) == split), count):
            for sensor, days in _write_tile(folder, rng, tile, number).items():
                scenes[sensor] += [f"{tile},{_SCENES[sensor].format(day=f'{day:%Y%m%d}')}" for day in days]
            number += 1
    for sensor, rows in scenes.items():
        (folder / f"{FOLDERS[sensor]}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for kind in ("naip", *FOLDERS.values(), "openstreetmap") if layout == "tars" else ():
        if (folder / kind).is_dir():
            (folder / f"{kind}_{ZONE}").mkdir(exist_ok=True)
            with tarfile.open(folder / f"{kind}_{ZONE}" / f"{ZONE}_28_-190.tar", "w") as archive:
                archive.add(folder / kind, kind)
            shutil.rmtree(folder / kind)


def _write_tile(
    folder: pathlib.Path, rng: np.random.Generator, tile: str, number: int
) -> dict[str, list[datetime.date]]:
    """Writes a tile's files, and returns the days of its series."""
    image = scene(rng, (4, 512, 512), 20, 230, "uint8")
    image[:, : 64 * (number % 3 == 2)] = 0  # beyond the flight
    write_raster(folder / "naip" / f"{tile}.png", image, driver="PNG")
    first, last = datetime.date(2020, 11, 1), datetime.date(2021, 10, 31)
    sensors = [sensor for sensor in FOLDERS if sensor != "s1" or number % 4 != 3]
    days = {sensor: some_days(rng, _COUNTS[sensor], first, last) for sensor in sensors}
    for sensor, bands, limits in (("s2", (4, 6), (800, 5000)), ("l8", (1, 10), (6000, 22000))):
        # Bands of 10 m and of 20 m; the second date misses a strip, where both are 0.
        for suffix, count, side in zip((8, 16), bands, (64, 32)):
            values = scene(rng, (_COUNTS[sensor], count, side, side), *limits, "uint16")
            values[1, :, :, : side // 4] = 0
            path = folder / FOLDERS[sensor] / f"{tile}_{suffix}.tif"
            write_raster(path, values.reshape(-1, side, side), compress="deflate")
    if "s1" in days:
        pair = scene(rng, (_COUNTS["s1"], 2, 64, 64), -9, -2) + np.array([0, -7], np.float32)[:, None, None]
        write_raster(folder / "sentinel1" / f"{tile}.tif", pair.reshape(-1, 64, 64))
    if number % 5 != 4:
        (folder / "openstreetmap").mkdir(exist_ok=True)
        (folder / "openstreetmap" / f"{tile}.geojson").write_text(json.dumps(_objects(rng)), encoding="utf-8")
    return days


def _objects(rng: np.random.Generator) -> dict[str, object]:
    """Returns rectangles, a street, a river and a mast."""
    found = []
    for x, y in rng.integers(0, 460, (40, 2)).tolist():
        width, height = rng.integers(8, 30, 2).tolist()
        ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        found.append((str(rng.choice(_CATEGORIES)), {"type": "Polygon", "coordinates": [ring]}))
    for category in ("highway", "river"):
        start, end = rng.integers(0, 512, 2).tolist()
        found.append((category, {"type": "LineString", "coordinates": [[0, start], [512, end]]}))
    mast = {"type": "Point", "coordinates": rng.integers(0, 512, 2).tolist()}
    features = [
        {"type": "Feature", "properties": {"category": name}, "geometry": geometry}
        for name, geometry in [*found, ("communications_tower", mast)]
    ]
    return {"type": "FeatureCollection", "features": features}
