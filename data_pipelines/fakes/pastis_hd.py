"""A made-up PASTIS-HD in its published layout."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.datasets.pastis_hd import CARD, DATE_FIELDS, METADATA, NOTHING, SIDE, SPOT, VOID
from data_pipelines.fakes.common import smooth, some_days, write_raster

FIRST_DAY, LAST_DAY = datetime.date(2018, 9, 5), datetime.date(2019, 11, 5)
FIRST_PATCH = 10000


def write_archive(
    folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0, *, num_dates: Mapping[str, int] | None = None
) -> None:
    """Writes patches with `num_dates` of each series of the card; None: a few, another number for each patch."""
    for name in ("DATA_S2", "DATA_S1A", "ANNOTATIONS"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    splits = enumerate(split for split, count in tiles.items() for _ in range(count))
    features = [
        _write_patch(folder, i, split, np.random.default_rng((seed, i)), num_dates or {}) for i, split in splits
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    table = {"type": "FeatureCollection", "crs": crs, "features": features}
    (folder / METADATA).write_text(json.dumps(table, indent=1))


def _write_patch(
    folder: pathlib.Path, index: int, split: str, rng: np.random.Generator, num_dates: Mapping[str, int]
) -> dict[str, Any]:
    """Writes a patch's arrays and returns its entry in the metadata."""
    number, folds = FIRST_PATCH + index, CARD.folds[split]
    days = {s: some_days(rng, num_dates.get(s) or int(rng.integers(4, 7)), FIRST_DAY, LAST_DAY) for s in ("s2", "s1")}
    values = smooth(rng, (len(days["s2"]), 10, SIDE, SIDE), 100, 4000, "int16")
    values[0, :, :, : int(rng.integers(1, SIDE // 4))] = NOTHING  # beside the satellite's swath
    np.save(folder / "DATA_S2" / f"S2_{number}.npy", values)
    co, cross = (smooth(rng, (len(days["s1"]), 1, SIDE, SIDE), low, low + 10) for low in (-16, -24))
    np.save(folder / "DATA_S1A" / f"S1A_{number}.npy", np.concatenate([co, cross, co - cross], 1).astype(np.float16))
    target = np.stack([np.minimum(smooth(rng, (SIDE, SIDE), 0, 21, "uint8"), VOID)] * 3)
    np.save(folder / "ANNOTATIONS" / f"TARGET_{number}.npy", target)
    image = smooth(rng, (3, 10 * SIDE, 10 * SIDE), 20, 220, "uint8")
    corner = np.array([391504.7 + 1500.0 * index, 6956805.9])
    place = (0.998, -0.077, corner[0], -0.077, -0.998, corner[1])  # UTM is turned against Lambert 93
    write_raster(folder / SPOT / f"SPOT6_RVB_1M00_2019_{number}.tif", image, crs="EPSG:2154", transform=place)
    properties = {"ID_PATCH": number, "Fold": folds[index % len(folds)], "TILE": "t30uxv", "id": str(number)}
    for sensor, field in DATE_FIELDS.items():
        properties[field] = {str(i): int(f"{day:%Y%m%d}") for i, day in enumerate(days[sensor])}
    # The patch's square, from its upper left corner on, clockwise.
    across, down = np.array([1277.2, -98.6]), np.array([-98.6, -1277.2])
    ring = [corner, corner + across, corner + across + down, corner + down, corner]
    outline = {"type": "MultiPolygon", "coordinates": [[[point.tolist() for point in ring]]]}
    return {"id": str(index), "type": "Feature", "properties": properties, "geometry": outline}
