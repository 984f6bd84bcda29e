"""A made-up TimeSen2Crop: pixels that green up in their own month, with clouds, shadows and snow."""

import csv
import datetime
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.fakes.common import some_days

NUM_CLASSES = 16
HEADER = (*(f"B{number}" for number in range(1, 10)), "Flag")
SOIL = np.asarray([600, 900, 1200, 1500, 1700, 1900, 2100, 2700, 2200])
CANOPY = np.asarray([250, 500, 300, 800, 2600, 3300, 3600, 1800, 900])
TILES = {"train": ("32TNT", "33UXP"), "val": ("33TWN",), "test": ("33UVP",)}
START = datetime.date(2017, 9, 1)


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes a folder for each Sentinel-2 tile, and one pixel of the folder of 2019, which belongs to no split."""
    places = [TILES[split][i % len(TILES[split])] for split, count in tiles.items() for i in range(count)]
    places.append("2019_33UVP")
    days: dict[str, list[datetime.date]] = {}
    for number, place in enumerate(dict.fromkeys(places)):
        start = START.replace(year=2018) if place.startswith("2019") else START
        rng = np.random.default_rng((seed, number, 1))
        days[place] = some_days(rng, int(rng.integers(20, 40)), start, start + datetime.timedelta(days=364))
        (folder / place).mkdir(parents=True, exist_ok=True)
        lines = ["acquisition_date", *(f"{day:%Y%m%d}" for day in days[place])]
        (folder / place / "dates.csv").write_text("\n".join(lines) + "\n")
    for number, place in enumerate(places):
        rng = np.random.default_rng((seed, number))
        crop = number % NUM_CLASSES
        path = folder / place / str(crop) / f"{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        peak = START + datetime.timedelta(days=200 + 8 * crop)
        # Days since the peak, modulo a year: none is farther from it than half a year.
        season = np.asarray([(day - peak).days % 365 for day in days[place]])
        green = np.exp(-((np.minimum(season, 365 - season) / 40) ** 2))[:, None]
        bands = SOIL * (1 - green) + CANOPY * green + rng.normal(0, 60, (len(days[place]), len(SOIL)))
        flags = rng.choice(4, len(days[place]), p=(0.7, 0.15, 0.1, 0.05))
        bands[flags == 1] += 4000  # cloud
        bands[flags == 2] *= 0.4  # shadow
        bands[flags == 3] += 6000  # snow
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(HEADER)
            table.writerows([*map(int, row.clip(1)), int(flag)] for row, flag in zip(bands, flags))
