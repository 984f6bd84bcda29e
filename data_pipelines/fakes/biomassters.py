"""A made-up BioMassters: forest that darkens the images and shows in the radar where its biomass is high."""

import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, UInt16

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
    for split in ("train", "val", "test"):
        for number, chip in enumerate(_chip_names(split, tiles.get(split, 0))):
            _write_chip(folder, "test" if split == "test" else "train", chip, number, rng)


def _chip_names(split: str, count: int) -> list[str]:
    """Returns names that the reader's rule puts into the split."""
    names = (f"{('train', 'val', 'test').index(split):x}{number:07x}" for number in range(100 * (count + 1)))
    fitting = names if split == "test" else (name for name in names if hashed_split(name, VAL_SHARE) == split)
    return [name for name, _ in zip(fitting, range(count), strict=False)]


def _write_chip(folder: pathlib.Path, part: str, chip: str, number: int, rng: np.random.Generator) -> None:
    forest = smooth(rng, (1, SIDE, SIDE), 0.0, 1.0)
    for month in S1_MONTHS:
        radar = _radar(rng, forest)
        if number % 2 and month == S1_MONTHS[0]:
            radar[2:] = NODATA
        write_raster(folder / f"{part}_features" / f"{chip}_S1_{month:02d}.tif", radar)
    for month in S2_MONTHS if number != 3 else ():
        write_raster(folder / f"{part}_features" / f"{chip}_S2_{month:02d}.tif", _optical(rng, forest))
    write_raster(folder / f"{part}_agbm" / f"{chip}_agbm.tif", 180 * forest)


def _radar(rng: np.random.Generator, forest: Float32[np.ndarray, "1 H W"]) -> Float32[np.ndarray, "4 H W"]:
    """Returns VV and VH of both orbits in dB; a corner was not seen."""
    level = np.asarray([-13.0, -20.0, -13.2, -20.3], np.float32)[:, None, None]
    radar = level + 4 * forest + rng.standard_normal((4, SIDE, SIDE), np.float32)
    radar[:, :8, :8] = NODATA
    return radar


def _optical(rng: np.random.Generator, forest: Float32[np.ndarray, "1 H W"]) -> UInt16[np.ndarray, "11 H W"]:
    """Returns ten bands of reflectance x 10000, and the probability of cloud; a corner was not seen."""
    level = np.asarray([400, 600, 500, 900, 2000, 2400, 2600, 2700, 1500, 900], np.float32)[:, None, None]
    cloud = np.maximum(smooth(rng, (1, SIDE, SIDE), -80, 100), 0)
    image = np.concatenate([level * (1.4 - forest) + 40 * cloud, cloud])
    image[:10, -8:, -8:], image[10:, -8:, -8:] = 0, UNKNOWN_CLOUD
    return np.rint(image).astype(np.uint16)
