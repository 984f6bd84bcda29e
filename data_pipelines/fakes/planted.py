"""A made-up PLANTED: TFRecord files, or the layout of `.npz` files."""

import calendar
import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from data_pipelines.archives import encode_example, write_records
from data_pipelines.datasets.planted import LABELS, NUM_CLASSES, SPECIES
from data_pipelines.fakes.common import scene, smooth, some_days

NAMES = tuple(f"Arbor ficta {number:02d}" for number in range(NUM_CLASSES))
_SHAPES = {"s2": (8, 12, 10), "s1": (8, 12, 3), "l7": (20, 4, 6), "alos": (4, 4, 3), "modis": (60, 1, 7)}
_RANGES = {"s2": (200, 4500), "s1": (-14, -5), "l7": (500, 9000), "alos": (1500, 9000), "modis": (100, 5000)}
_CROSS = {"s1": -7.0, "alos": -1000.0}  # the cross-polarised echo is weaker
_ANGLE = (30.0, 45.0)


def write_archive(
    folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0, layout: Literal["records", "npz"] = "records"
) -> None:
    """Writes an archive with some clouded pixels, dates and sensors masked out.

    `layout` is "records" for TFRecord files, "npz" for one folder for each tile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, count in tiles.items():
        numbers = [int(rng.integers(NUM_CLASSES)) for _ in range(count)]
        series = [{sensor: _series(rng, sensor) for sensor in _SHAPES} for _ in numbers]
        if layout == "npz":
            (folder / split).mkdir(exist_ok=True)
            labels = {f"{split}{i:07d}": number for i, number in enumerate(numbers)}
            for key, tile in zip(labels, series, strict=True):
                (folder / split / key).mkdir(exist_ok=True)
                for sensor, one in tile.items():
                    for suffix, array in one.items():
                        np.savez(folder / split / key / f"{key}_{sensor}{suffix.removesuffix('s')}.npz", array)
            (folder / split / LABELS).write_text(json.dumps(labels), encoding="utf-8")
        elif count:
            flat = [{f"{name}{end}": a for name, one in s.items() for end, a in one.items()} for s in series]
            records = [encode_example({**a, "species": NAMES[n].encode()}) for n, a in zip(numbers, flat, strict=True)]
            name = {"val": "validation"}.get(split, split)
            write_records(folder / f"planted-{name}.tfrecord-00000-of-00001", records)
    if layout == "records":
        (folder / SPECIES).write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def _series(rng: np.random.Generator, sensor: str) -> dict[str, np.ndarray]:
    """Returns values, mask (T, H, W, C) and dates in milliseconds; an eighth of the dates, or all, are masked out."""
    num_dates, side, bands = _SHAPES[sensor]
    values = scene(rng, (num_dates, bands, side, side), *_RANGES[sensor])
    if sensor in ("s1", "alos"):
        values[:, 1] += _CROSS[sensor]
        values[:, 2] = smooth(rng, (num_dates, side, side), *_ANGLE)
    mask = np.repeat(rng.random((num_dates, 1, side, side)) < 0.95, bands, axis=1)
    mask[rng.random(num_dates) < 0.125] = False
    mask &= rng.random() > 0.125  # now and then the sensor is missing
    days = some_days(rng, num_dates, datetime.date(2013, 1, 1), datetime.date(2017, 12, 31))
    # With an hour, as acquisitions have: a reader that took the local day would be wrong near midnight.
    stamps = [1000 * calendar.timegm((*day.timetuple()[:3], int(rng.integers(24)), 0, 0)) for day in days]
    stored = {"": np.where(mask, values, 0), "_mask": mask.astype(np.uint8)}
    arrays = {suffix: np.moveaxis(array, 1, -1) for suffix, array in stored.items()}
    return {**arrays, "_timestamps": np.asarray(stamps, np.int64)}
