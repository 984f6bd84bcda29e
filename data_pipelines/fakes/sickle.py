"""A made-up SICKLE: fields of paddy and other crops, with images of three satellites at their own resolutions."""

import csv
import datetime
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.fakes.common import smooth, some_days, write_raster

SIDE, LANDSAT_SIDE = 32, 11
S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
L8_BANDS = (*(f"SR_B{n}" for n in range(1, 8)), "ST_B10")
COLUMNS = ("UNIQUE_ID", "PLOT_ID", "STANDARD_SEASON", "YEAR", "CROP", "SPLIT")
START, END = datetime.date(2019, 9, 1), datetime.date(2020, 2, 28)
PLOTS_PER_TILE = 3


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes the table, the images of S1, S2 and L8 and the masks of 10 m. Every fifth tile lacks Landsat."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = [name for name, count in tiles.items() for _ in range(count)]
    with (folder / "sickle_dataset_tabular.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for uid, split in enumerate(splits, start=1):
            rng = np.random.default_rng((seed, uid))
            plot = PLOTS_PER_TILE * uid
            table.writerow([uid, plot, "sep-feb", 2019, "Paddy" if uid % 2 else "Banana", split])
            # The tile's own plot, and a neighbour that no split names; then crop, three days and yield.
            layers = np.zeros((6, SIDE, SIDE), np.float32)
            layers[:2, 6:22, 8:24] = np.asarray([plot, 1 if uid % 2 else 7])[:, None, None]
            layers[:2, 24:30, 2:12] = np.asarray([plot + 1, 3])[:, None, None]
            layers[2:, 6:22, 8:24] = rng.integers(1, 100, (4, 1, 1))
            write_raster(folder / "masks" / "10m" / f"{uid}.tif", layers)
            images = folder / "images"
            for day in some_days(rng, 13, START, END):
                stamp = f"{day:%Y%m%d}"
                name = f"{stamp}T051219_{stamp}T051817_T44PLT" if day.year > 2019 else f"T44PLT_{stamp}T051219"
                optical = smooth(rng, (len(S2_BANDS), SIDE, SIDE), 200, 6000)
                _write_image(images / "S2" / "npy" / str(uid) / f"{name}.npz", S2_BANDS, optical)
            for day in some_days(rng, 8, START, END):
                name = f"S1A_IW_GRDH_1SDV_{day:%Y%m%d}T003123_{day:%Y%m%d}T003148_025313_02CC5C_2F0A"
                radar = smooth(rng, (2, SIDE, SIDE), -4, 4) + np.asarray([-10, -17], np.float32)[:, None, None]
                _write_image(images / "S1" / "npy" / str(uid) / f"{name}.npz", ("VV", "VH"), radar)
            for number, day in enumerate(some_days(rng, 0 if uid % 5 == 0 else 8, START, END)):
                landsat = smooth(rng, (len(L8_BANDS), LANDSAT_SIDE, LANDSAT_SIDE), 7000, 20000)
                bands = L8_BANDS[:-1] if number == 1 else L8_BANDS  # the thermal band is not always there
                _write_image(images / "L8" / "npy" / str(uid) / f"LC08_142053_{day:%Y%m%d}.npz", bands, landsat)


def _write_image(path: pathlib.Path, bands: tuple[str, ...], values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(bands, values)))
