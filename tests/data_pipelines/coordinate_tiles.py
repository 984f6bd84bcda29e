"""Tiles whose pixels hold their own place, so that a test sees at once whether two arrays were cut or turned apart.

Band 0 of a sensor is a pixel's distance from the tile's upper edge in metres, band 1 from the left edge, and the others
the number of the date. The mask of Sentinel-2 and the map of classes follow from the place.
"""

from types import SimpleNamespace

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard

EXTENT, CLASSES = 120.0, 7
MARGINS = {"aerial": 2, "dense": 1}  # pixels on each side
NAMES = tuple("abcdefg")

CARD = DatasetCard(
    name="coordinate_tiles",
    title="Coordinate tiles",
    sensors=("aerial", "spot", "s2", "alos", "modis"),
    extent=EXTENT,
    patch_sizes=(30, 60),
    splits=("train", "val"),
    sides={"aerial": 604, "dense": 14},
    masks={"s2": "pixel", "alos": "band"},
    clouds=("s2",),
    optional=("alos",),
    date_origin="2019-09-01",
    tile_label="multi_label",
    tile_classes=NAMES[1:],
    dense_label="segmentation",
    dense_classes=NAMES,
    dense_colours=("#000000",) * CLASSES,
    ignore_label=CLASSES,
)


def neutral_statistics(longest=6):
    """Means 0 and deviations 1, so that values come out as they went in."""
    return {
        name: SimpleNamespace(
            mean=np.zeros(get_sensor(name).num_bands), std=np.ones(get_sensor(name).num_bands), longest_series=longest
        )
        for name in CARD.sensors
    }


def places(metres, side, margin=0):
    """(2, side, side): distances of the pixels' centres from the tile's upper and left edge."""
    line = (np.arange(side) - margin + 0.5) * metres
    return np.stack(np.meshgrid(line, line, indexing="ij")).astype(np.float32)


def is_valid(place):
    """The mask at a place, of no symmetry."""
    return (np.floor(place[0] / 10) + 2 * np.floor(place[1] / 10)) % 5 > 0


def class_at(place):
    """The class at a place; `CLASSES`, which is to be ignored, in the last 10 m."""
    row, column = np.floor(place / 10).astype(int)
    return np.where(row == 11, CLASSES, (row + 3 * column) % CLASSES)


def make_series(name, num_dates):
    sensor = get_sensor(name)
    side = sensor.pixels(EXTENT)
    metres = EXTENT if sensor.kind == "context" else sensor.metres_per_pixel
    values = np.empty((num_dates, sensor.num_bands, side, side), np.float32)
    values[:] = np.arange(num_dates)[:, None, None, None]
    values[:, :2] = places(metres, side)
    dates = np.arange(num_dates, dtype=np.int32)
    return {name: values, f"{name}_dates": dates, f"{name}_years": np.full(num_dates, 2020, np.int16)}


def make_tile(num_dates=3, alos_dates=2):
    """One tile; without ALOS if it has no dates of it."""
    example = {"id": "a"} | make_series("s2", num_dates) | make_series("modis", num_dates)
    example |= make_series("alos", alos_dates) | {"alos_present": np.asarray(alos_dates > 0)}
    for name, metres, bands in (("aerial", 0.2, 4), ("spot", 1.0, 3)):
        margin = MARGINS.get(name, 0)
        side = round(EXTENT / metres) + 2 * margin
        example[name] = np.resize(places(metres, side, margin), (bands, side, side))
    place = places(10.0, 12)
    example["s2_mask"] = np.broadcast_to(is_valid(place), (num_dates, 1, 12, 12))
    example["s2_cloud"] = np.broadcast_to(np.uint8(10), (num_dates, 1, 12, 12))
    example["alos_mask"] = np.ones(example["alos"].shape, np.bool_)
    example["dense"] = class_at(places(10.0, 14, MARGINS["dense"])).clip(0, CLASSES).astype(np.int8)
    example["tile"] = np.ones(CLASSES - 1, np.uint8)
    return example


def coarse(values, cells):
    """Means over cells x cells blocks of (2, side, side)."""
    side = values.shape[-1] // cells
    return values.reshape(2, cells, side, cells, side).mean(axis=(2, 4))
