"""A made-up Sen1Floods11: smooth water that both sensors and the label show."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32, Int16

from data_pipelines.datasets.sen1floods11 import (
    DATA,
    LAYERS,
    LIST_NAMES,
    LISTS,
    METADATA,
    S2_BANDS,
    SAMPLE,
    SIDE,
    TEST_COLUMN,
    VAL_COLUMN,
    WINDOW,
)
from data_pipelines.fakes.common import smooth, write_raster

EVENTS = ("Ghana", "Mekong", "Sri-Lanka", "USA")  # as chips are named; the metadata call the Mekong's Cambodia
PLACE = dict(crs="EPSG:4326")
DEGREES = 8.983152841195215e-05  # a pixel


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes chips, lists and metadata in the published layout.

    Args:
      folder: where to; it will hold v1.1.
      tiles: chips of each split of the card.
      seed: of all values. Every third chip has radar outside its swath; the seventh has no radar at all.
    """
    base, rng = folder / "v1.1", np.random.default_rng(seed)
    lists = base / LISTS
    lists.mkdir(parents=True, exist_ok=True)
    write_metadata(base / METADATA)
    for split, name in LIST_NAMES.items():
        keys = [_chip_name(split, number) for number in range(tiles.get(split, 0))]
        for number, key in enumerate(keys):
            write_chip({layer: base / DATA / layer for layer in LAYERS}, key, number, rng)
        (lists / f"flood_{name}_data.csv").write_text("".join(f"{k}_S1Hand.tif,{k}_LabelHand.tif\n" for k in keys))


def _chip_name(split: str, number: int) -> str:
    event = "Bolivia" if split == "bolivia" else EVENTS[number % len(EVENTS)]
    return f"{event}_{100000 * list(LIST_NAMES).index(split) + number}"


def write_metadata(path: pathlib.Path) -> None:
    """Writes the days of all floods."""
    floods = ("Bolivia", "Cambodia", *(event for event in EVENTS if event != "Mekong"))
    days = {name: (f"2018/08/{5 + i:02d}", f"2018/08/{4 + i:02d}") for i, name in enumerate(floods)}
    features = [
        {"type": "Feature", "properties": {"location": name, "s1_date": s1, "s2_date": s2}, "geometry": None}
        for name, (s1, s2) in days.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def write_chip(folders: Mapping[str, pathlib.Path], key: str, number: int, rng: np.random.Generator) -> None:
    """Writes a chip's three layers into their folders."""
    water = smooth(rng, (SIDE, SIDE), 0.0, 1.0) > 0.65
    corner = rng.uniform(-60.0, 60.0, 2)
    place = PLACE | {"transform": (DEGREES, 0.0, corner[0], 0.0, -DEGREES, corner[1])}
    label = water.astype(np.int16)
    label[: SIDE // 8] = -1
    write_raster(folders["S1Hand"] / f"{key}_S1Hand.tif", _radar(rng, water, number), nodata=np.nan, **place)
    write_raster(folders["S2Hand"] / f"{key}_S2Hand.tif", _optical(rng, water, number), nodata=0, **place)
    write_raster(folders["LabelHand"] / f"{key}_LabelHand.tif", label[None], **place)


def _radar(rng: np.random.Generator, water: Bool[np.ndarray, "H W"], number: int) -> Float32[np.ndarray, "2 H W"]:
    """VV and VH in dB, water darker."""
    level = np.asarray([-10.0, -17.0], np.float32)[:, None, None] - 9 * water.astype(np.float32)
    radar = level + rng.standard_normal(water.shape, np.float32)
    radar[..., : SIDE // 4 if number % 3 == 0 else 0] = np.nan
    return np.full_like(radar, np.nan) if number == 6 else radar


def _optical(rng: np.random.Generator, water: Bool[np.ndarray, "H W"], number: int) -> Int16[np.ndarray, "13 H W"]:
    """Reflectance x 10000; water dark in the infrared, and a corner that was not seen."""
    infrared = np.asarray([band in S2_BANDS[4:] for band in S2_BANDS])[:, None, None]
    values = smooth(rng, (1, SIDE, SIDE), 800, 1500) + 1200 * (infrared & ~water)
    values[..., : 8 * (number % 2), : 8 * (number % 2)] = 0
    return np.rint(values).astype(np.int16)


_ROWS = SIDE // WINDOW
_COLUMNS = {"train": VAL_COLUMN, "val": TEST_COLUMN - VAL_COLUMN, "test": SIDE // WINDOW - TEST_COLUMN}


def write_sample(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes the git repository's layout: as many chips as give each split its windows, with metadata.

    Args:
      folder: where to.
      tiles: windows of each split at least; a chip gives 24, 8 and 32.
      seed: of all values. The first chip has no radar in its left quarter.
    """
    rng = np.random.default_rng(seed)
    chips = max(-(-count // (_ROWS * _COLUMNS[split])) for split, count in tiles.items())
    folders = {layer: folder / "sample" / name for layer, name in SAMPLE.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_metadata(folder / METADATA)
    for number in range(chips):
        write_chip(folders, f"Ghana_{number}", number, rng)
