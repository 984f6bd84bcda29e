"""A made-up BioMassters: forest that darkens the images and shows in the radar where its biomass is high."""

import itertools
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.biomassters import NODATA, SIDE, UNKNOWN_CLOUD, VAL_SHARE
from data_pipelines.fakes.common import smooth, write_raster
from data_pipelines.reader import hashed_split

S1_MONTHS = (0, 4, 8, 11)  # a few of the twelve, so that a made-up chip stays small
S2_MONTHS = (1, 8, 9)


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes chips in the published layout.

    Every second chip lacks the descending orbit in one month; the fourth lacks s2.
    """
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        for kind in ("features", "agbm"):
            (folder / f"{part}_{kind}").mkdir(parents=True, exist_ok=True)
    for first, split in enumerate(("train", "val", "test")):
        names = (f"{first:x}{number:07x}" for number in itertools.count())
        # train and val share a folder: only names that the reader's hash puts into the split will do.
        fitting = (name for name in names if split == "test" or hashed_split(name, VAL_SHARE) == split)
        for number, chip in enumerate(itertools.islice(fitting, tiles.get(split, 0))):
            _write_chip(folder, "test" if split == "test" else "train", chip, number, rng)


def _write_chip(folder: pathlib.Path, part: str, chip: str, number: int, rng: np.random.Generator) -> None:
    forest = smooth(rng, (1, SIDE, SIDE), 0.0, 1.0)
    # VV and VH of both orbits in dB; a corner was not seen.
    level = np.asarray([-13.0, -20.0, -13.2, -20.3], np.float32)[:, None, None]
    for month in S1_MONTHS:
        radar = level + 4 * forest + rng.standard_normal((4, SIDE, SIDE), np.float32)
        radar[:, :8, :8] = NODATA
        if number % 2 and month == S1_MONTHS[0]:
            radar[2:] = NODATA
        write_raster(folder / f"{part}_features" / f"{chip}_S1_{month:02d}.tif", radar)
    # Ten bands of reflectance x 10000, and the probability of cloud; a corner was not seen.
    level = np.asarray([400, 600, 500, 900, 2000, 2400, 2600, 2700, 1500, 900], np.float32)[:, None, None]
    for month in S2_MONTHS if number != 3 else ():
        cloud = np.maximum(smooth(rng, (1, SIDE, SIDE), -80, 100), 0)
        image = np.concatenate([level * (1.4 - forest) + 40 * cloud, cloud])
        image[:10, -8:, -8:], image[10:, -8:, -8:] = 0, UNKNOWN_CLOUD
        write_raster(folder / f"{part}_features" / f"{chip}_S2_{month:02d}.tif", np.rint(image).astype(np.uint16))
    write_raster(folder / f"{part}_agbm" / f"{chip}_agbm.tif", 180 * forest)
