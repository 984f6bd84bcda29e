"""A made-up HLS Burn Scars: smooth scenes with burnt ground, dark in the near infrared and bright in the far one."""

import itertools
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.hls_burn_scars import LAYOUTS, MASK, NODATA, SCENE, SIDE, split_of
from data_pipelines.fakes.common import smooth, write_raster

GREEN = np.asarray([0.03, 0.05, 0.04, 0.32, 0.18, 0.09], np.float32)[:, None, None]
BURNT = np.asarray([0.03, 0.04, 0.05, 0.10, 0.20, 0.18], np.float32)[:, None, None]
ZONE = 10  # of UTM, and of the squares of the grid


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0, *, layout: str = "original") -> None:
    """Writes scenes and masks in one of the reader's `LAYOUTS`; each scene has pixels without data and some below 0."""
    rng, places = np.random.default_rng(seed), LAYOUTS[layout]
    for split in ("train", "val", "test"):
        part, scenes = folder / places[split], []
        part.mkdir(parents=True, exist_ok=True)
        # A square belongs to one split, so that validation and training share none.
        letters = "VWXYZ" if split == "test" else "ABCDEFGHJKLMN"
        names = (f"T{ZONE}T{a}{b}" for a, b in itertools.product(letters, "ABCDEFGHJKLMNPQRSTUV"))
        squares = (name for name in names if split == "test" or split_of("training", name) == split)
        for number, square in enumerate(itertools.islice(squares, tiles.get(split, 0))):
            day = f"{2018 + number % 4}{100 + 7 * (number % 36):03d}"
            scenes.append(f"subsetted_512x512_HLS.S30.{square}.{day}.v1.4")
            burnt = smooth(rng, (SIDE, SIDE), 0.0, 1.0) > 0.7
            scene = np.where(burnt, BURNT, GREEN) * smooth(rng, (1, SIDE, SIDE), 0.7, 1.3)
            scene[:, : SIDE // 16, : SIDE // 16] = NODATA
            scene[0, -1] = -0.01  # the correction of the atmosphere overshoots
            label = burnt.astype(np.int16)
            label[: SIDE // 16, : SIDE // 16] = -1
            corner = rng.integers(10_000, 20_000, 2) * 30.0
            place = dict(crs=f"EPSG:326{ZONE}", transform=(30.0, 0.0, corner[0], 0.0, -30.0, 4e6 + corner[1]))
            write_raster(part / f"{scenes[-1]}{SCENE}", scene, interleave="pixel", **place)
            write_raster(part / f"{scenes[-1]}{MASK}", label[None], nodata=-1, **place)
        if "lists" in places:
            path = folder / places["lists"].format(split=split)
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{name}\n" for name in scenes))
