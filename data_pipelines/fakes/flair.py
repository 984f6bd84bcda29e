"""A made-up FLAIR #2 in its published layout."""

import datetime
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.flair import CENTROIDS, NUM_LABELS, SIDE, TEST_FOLDERS, TRAIN_FOLDERS
from data_pipelines.fakes.common import smooth, some_days, write_raster

DOMAINS = {"train": "D006_2020", "val": "D004_2021", "test": "D015_2020"}
AREA_TILES = 4  # in a row, ten Sentinel pixels apart
MARGIN = 15  # Sentinel pixels around an area's tiles
HEIGHT, WIDTH = 2 * MARGIN + 10, 2 * MARGIN + 10 * AREA_TILES


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes areas of up to four tiles with short series."""
    folder.mkdir(parents=True, exist_ok=True)
    centroids: dict[str, list[int]] = {}
    for split, count in tiles.items():
        folders = TEST_FOLDERS[0] if split == "test" else TRAIN_FOLDERS[0]
        for first in range(0, count, AREA_TILES):
            place = f"{DOMAINS[split]}/Z{1 + first // AREA_TILES}_UF"
            rng = np.random.default_rng((seed, len(centroids)))
            stem = folder / folders.sentinel / place / "sen" / f"SEN2_sp_{place.replace('/', '-')}"
            stem.parent.mkdir(parents=True)
            days = some_days(rng, int(rng.integers(4, 7)), datetime.date(2021, 1, 1), datetime.date(2021, 12, 31))
            values = smooth(rng, (len(days), 10, HEIGHT, WIDTH), 100, 4000, "uint16")
            values[0, :, :, : MARGIN + 5] = 0  # not observed to the left on the first date
            np.save(f"{stem}_data.npy", values)
            np.save(f"{stem}_masks.npy", smooth(rng, (len(days), 2, HEIGHT, WIDTH), 0, 100, "uint8"))
            products = [f"S2A_MSIL2A_{day:%Y%m%d}T105021_N0300_R051_T31UDP_{day:%Y%m%d}T135921" for day in days]
            pathlib.Path(f"{stem}_products.txt").write_text("\n".join(products) + "\n")
            for column in range(min(AREA_TILES, count - first)):
                number = f"{len(centroids) + 1:06}"
                transform = (0.2, 0.0, 6.5e5 + 102.4 * int(number), 0.0, -0.2, 6.86e6)
                image = smooth(rng, (5, SIDE, SIDE), 10, 230, "uint8")
                labels = smooth(rng, (1, SIDE, SIDE), 1, NUM_LABELS, "uint8")
                grid = dict(crs="EPSG:2154", transform=transform)
                write_raster(folder / folders.aerial / place / "img" / f"IMG_{number}.tif", image, **grid)
                write_raster(
                    folder / folders.labels / place / "msk" / f"MSK_{number}.tif", labels, **grid, compress="deflate"
                )
                # Row and column of the tile's centre in the series of its area.
                centroids[f"IMG_{number}.tif"] = [MARGIN + 5, MARGIN + 5 + 10 * column]
    (folder / CENTROIDS[0]).write_text(json.dumps(centroids))
