"""A made-up archive of fuel moisture: a few pixels a site, which are greener where plants are moist."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipelines.datasets.fuel_moisture import (
    LAND_COVER,
    MISSING,
    NUM_COLUMNS,
    OPTICAL_BANDS,
    SERIES,
    SITES,
    VAL_SHARE,
)
from data_pipelines.reader import hashed_split

NUM_MONTHS = 3
PER_SITE = 4
DRY = np.asarray([900, 1000, 1300, 1500, 1700, 1800, 2000, 2100, 900, 2900, 2400])
MOIST = np.asarray([500, 700, 500, 1000, 2600, 3200, 3400, 3600, 900, 1700, 900])


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes the arrays and the sites' splits in the published layout.

    The classes of land cover take turns, and each split has one pixel more than `tiles`, which has no label.
    """
    rows = [(split, number) for split, count in tiles.items() for number in range(count + 1)]
    names = {split: list(itertools.islice(_sites(split), 1 + count // PER_SITE)) for split, count in tiles.items()}
    rng = np.random.default_rng(seed)
    cover = np.asarray([number % len(LAND_COVER) for _, number in rows])
    target = rng.uniform(40, 250, len(rows))
    unlabelled = np.asarray([number == tiles[split] for split, number in rows])
    cover[unlabelled], target[unlabelled] = MISSING, np.nan
    sites = [names[split][number // PER_SITE] for split, number in rows]
    months = (rng.integers(0, 12, (len(rows), 1)) + np.arange(NUM_MONTHS)) % 12
    # Radar, Sentinel-2, and noise in place of weather and terrain, which the reader leaves out.
    series = rng.normal(size=(len(rows), NUM_MONTHS, NUM_COLUMNS))
    wet = ((np.nan_to_num(target, nan=100.0) - 40) / 210)[:, None, None]
    optical = DRY * (1 - wet) + MOIST * wet + 100.0 * cover[:, None, None] + rng.normal(0, 40, (*series.shape[:2], 11))
    series[..., :2] = np.asarray([-14.0, -21.0]) + 4 * wet + rng.normal(0, 1, (*series.shape[:2], 2))
    series[..., 2 : 2 + len(OPTICAL_BANDS)] = np.rint(optical.clip(1))
    arrays = {
        SERIES: series,
        "month": months,
        "site": np.asarray(sites),
        "target": target,
        "dynamic_world": np.repeat(cover[:, None], NUM_MONTHS, axis=1).astype(np.uint8),
    }
    (folder / "npy").mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / "npy" / f"{name}.npy", array)
    kinds = {site: "test" if split == "test" else "train" for split, those in names.items() for site in those}
    (folder / SITES).write_text(json.dumps(kinds))


def _sites(split: str) -> Iterator[str]:
    """Yields names of sites that the rule of the splits puts into this one."""
    names = (f"{split.capitalize()} Creek {number}" for number in itertools.count())
    return names if split == "test" else (name for name in names if hashed_split(name, VAL_SHARE) == split)
