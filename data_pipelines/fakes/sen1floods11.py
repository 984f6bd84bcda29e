"""A made-up Sen1Floods11: smooth water that both sensors and the label show."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.sen1floods11 import (
    LAYERS,
    LAYOUTS,
    LIST_NAMES,
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
DEGREES = 8.983152841195215e-05  # a pixel


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0, *, layout: str = "original") -> None:
    """Writes chips, lists and metadata in one of the reader's `LAYOUTS`, below a folder v1.1 or sen1floods11_v1.1.

    Every third chip has radar outside its swath; the seventh has no radar at all.
    """
    base = folder / ("v1.1" if layout == "original" else "sen1floods11_v1.1")
    places, rng = LAYOUTS[layout], np.random.default_rng(seed)
    (base / places["lists"]).parent.mkdir(parents=True, exist_ok=True)
    write_metadata(base / METADATA)
    for first, (split, name) in enumerate(LIST_NAMES.items()):
        events = ("Bolivia",) if split == "bolivia" else EVENTS
        keys = [f"{events[number % len(events)]}_{100000 * first + number}" for number in range(tiles.get(split, 0))]
        for number, key in enumerate(keys):
            write_chip({layer: base / places[layer] for layer in LAYERS}, key, number, rng)
        path = base / places["lists"].format(split=name)
        line = "{0}\n" if path.suffix == ".txt" else "{0}_S1Hand.tif,{0}_LabelHand.tif\n"
        path.write_text("".join(line.format(key) for key in keys))


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
    place = dict(crs="EPSG:4326", transform=(DEGREES, 0.0, corner[0], 0.0, -DEGREES, corner[1]))
    label = water.astype(np.int16)
    label[: SIDE // 8] = -1
    # Water is smooth and so dark to radar; VV and VH in dB, NaN outside the swath.
    level = np.asarray([-10.0, -17.0], np.float32)[:, None, None] - 9 * water.astype(np.float32)
    radar = level + rng.standard_normal(water.shape, np.float32)
    radar[..., : SIDE // 4 if number % 3 == 0 else 0] = np.nan
    radar = np.full_like(radar, np.nan) if number == 6 else radar
    write_raster(folders["S1Hand"] / f"{key}_S1Hand.tif", radar, nodata=np.nan, **place)
    # Water is dark in the infrared; a corner was not seen.
    infrared = np.asarray([band in S2_BANDS[4:] for band in S2_BANDS])[:, None, None]
    optical = smooth(rng, (1, SIDE, SIDE), 800, 1500) + 1200 * (infrared & ~water)
    optical[..., : 8 * (number % 2), : 8 * (number % 2)] = 0
    write_raster(folders["S2Hand"] / f"{key}_S2Hand.tif", np.rint(optical).astype(np.int16), nodata=0, **place)
    write_raster(folders["LabelHand"] / f"{key}_LabelHand.tif", label[None], **place)


def write_sample(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes the git repository's layout: as many chips as give each split its windows, with metadata.

    A chip gives 24, 8 and 32 windows of train, val and test. The first chip has no radar in its left quarter.
    """
    rng, side = np.random.default_rng(seed), SIDE // WINDOW
    columns = {"train": VAL_COLUMN, "val": TEST_COLUMN - VAL_COLUMN, "test": side - TEST_COLUMN}
    chips = max(-(-count // (side * columns[split])) for split, count in tiles.items())
    folders = {layer: folder / "sample" / name for layer, name in SAMPLE.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_metadata(folder / METADATA)
    for number in range(chips):
        write_chip(folders, f"Ghana_{number}", number, rng)
