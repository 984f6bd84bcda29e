"""A made-up PASTIS-HD in its published layout."""

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.datasets.pastis_hd import CARD, METADATA, NOTHING, SIDE, SPOT, VOID
from data_pipelines.fakes.common import smooth, some_days, write_raster

FIRST_DAY, LAST_DAY = datetime.date(2018, 9, 5), datetime.date(2019, 11, 5)
FIRST_PATCH = 10000


def write_archive(
    folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0, *, num_dates: Mapping[str, int] | None = None
) -> None:
    """Writes patches with short series.

    Args:
      folder, tiles, seed: as for all archives.
      num_dates: of each series of the card; None: a few, another number for each patch.
    """
    for name in ("DATA_S2", "DATA_S1A", "ANNOTATIONS"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    splits = [split for split, count in tiles.items() for _ in range(count)]
    dates = num_dates or {}
    features = [
        _write_patch(folder, i, split, np.random.default_rng((seed, i)), dates) for i, split in enumerate(splits)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    table = {"type": "FeatureCollection", "crs": crs, "features": features}
    (folder / METADATA).write_text(json.dumps(table, indent=1))


def _write_patch(
    folder: pathlib.Path, index: int, split: str, rng: np.random.Generator, num_dates: Mapping[str, int]
) -> dict[str, Any]:
    """Writes a patch's arrays and returns its entry in the metadata."""
    number, folds = FIRST_PATCH + index, CARD.folds[split]
    optical = some_days(rng, num_dates.get("s2") or int(rng.integers(4, 7)), FIRST_DAY, LAST_DAY)
    radar = some_days(rng, num_dates.get("s1") or int(rng.integers(4, 7)), FIRST_DAY, LAST_DAY)
    np.save(folder / "DATA_S2" / f"S2_{number}.npy", _optical(rng, len(optical)))
    np.save(folder / "DATA_S1A" / f"S1A_{number}.npy", _radar(rng, len(radar)))
    target = np.stack([np.minimum(smooth(rng, (SIDE, SIDE), 0, 21, "uint8"), VOID)] * 3)
    np.save(folder / "ANNOTATIONS" / f"TARGET_{number}.npy", target)
    image = smooth(rng, (3, 10 * SIDE, 10 * SIDE), 20, 220, "uint8")
    corner = np.array([391504.7 + 1500.0 * index, 6956805.9])
    place = (0.998, -0.077, corner[0], -0.077, -0.998, corner[1])  # UTM is turned against Lambert 93
    write_raster(folder / SPOT / f"SPOT6_RVB_1M00_2019_{number}.tif", image, crs="EPSG:2154", transform=place)
    fold = folds[index % len(folds)]
    properties = {"ID_PATCH": number, "Fold": fold, "TILE": "t30uxv", "id": str(number)}
    properties |= {"dates-S2": _numbered(optical), "dates-S1A": _numbered(radar)}
    return {"id": str(index), "type": "Feature", "properties": properties, "geometry": _outline(corner)}


def _numbered(days: list[datetime.date]) -> dict[str, int]:
    return {str(i): int(f"{day:%Y%m%d}") for i, day in enumerate(days)}


def _optical(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns reflectances; a strip of the first date lies beside the satellite's swath."""
    values = smooth(rng, (count, 10, SIDE, SIDE), 100, 4000, "int16")
    values[0, :, :, : int(rng.integers(1, SIDE // 4))] = NOTHING
    return values


def _radar(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns VV, VH and their difference, in dB, with 16 bits."""
    co, cross = (smooth(rng, (count, 1, SIDE, SIDE), low, low + 10) for low in (-16, -24))
    return np.concatenate([co, cross, co - cross], axis=1).astype(np.float16)


def _outline(corner: np.ndarray) -> dict[str, Any]:
    """Returns a patch's square, from its upper left corner on, clockwise."""
    across, down = np.array([1277.2, -98.6]), np.array([-98.6, -1277.2])
    ring = [corner, corner + across, corner + across + down, corner + down, corner]
    return {"type": "MultiPolygon", "coordinates": [[[point.tolist() for point in ring]]]}
