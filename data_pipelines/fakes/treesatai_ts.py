"""A made-up TreeSatAI Time-Series in its layouts."""

import datetime
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.treesatai_ts import CLOUDS, GENERA, LAYOUTS
from data_pipelines.fakes.common import smooth, some_days, write_raster

OPTICAL = "S2A_MSIL2A_{0:%Y%m%d}T102421_N0213_R065_T32UNC_{0:%Y%m%d}T115419"
RADAR = "S1A_IW_GRDH_1SDV_{0:%Y%m%d}T170841_{0:%Y%m%d}T170906_030639_0382D5_360A"
FIRST_DAY, LAST_DAY = datetime.date(2020, 1, 2), datetime.date(2020, 12, 30)


def write_archive(
    folder: pathlib.Path,
    tiles: Mapping[str, int],
    seed: int = 0,
    *,
    num_dates: Mapping[str, int] | None = None,
    layout: str = "original",
) -> None:
    """Writes tiles with `num_dates` of each series of the card; None: a few, another number for each tile.

    `layout` is one of the reader's `LAYOUTS`; in "download", Sentinel-1 has pixels that are NaN.
    """
    places = LAYOUTS[layout]
    for path in ("aerial/_", *places.values()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    labels: dict[str, list[tuple[str, float]]] = {}
    for split, count in tiles.items():
        names = [_write_tile(folder, places["series"], labels, seed, num_dates or {}) for _ in range(count)]
        (folder / places["lists"].format(split=split)).write_text("".join(f"{name}\n" for name in names))
    (folder / places["labels"]).write_text(json.dumps(labels))


def _write_tile(
    folder: pathlib.Path,
    series: str,
    labels: dict[str, list[tuple[str, float]]],
    seed: int,
    num_dates: Mapping[str, int],
) -> str:
    """Writes a tile's files, adds its genera and their fractions of the area, and returns its name."""
    import h5py

    number = len(labels)
    rng = np.random.default_rng((seed, number))
    first, second = rng.choice(GENERA, 2, replace=False)
    stem, share = f"{first}_{number}_1005_WEFL_NLF", round(float(rng.uniform(0.5, 1)), 5)
    labels[f"{stem}.tif"] = [(str(first), share), (str(second), round(1 - share, 5))]
    transform = (0.2, 0.0, 5.5e5 + 100.0 * number, 0.0, -0.2, 5.8e6)
    image = smooth(rng, (4, 304, 304), 20, 220, "uint8")
    write_raster(folder / "aerial" / f"{stem}.tif", image, crs="EPSG:32632", transform=transform)
    days = some_days(rng, num_dates.get("s2") or int(rng.integers(5, 9)), FIRST_DAY, LAST_DAY)
    optical = smooth(rng, (len(days), 10, 6, 6), 100, 4000).round()
    optical[1] = 0  # not observed
    clouds = np.zeros((len(days), 10, 6, 6), np.float32)  # snow, cloud, and eight empty layers
    clouds[:, :2] = smooth(rng, (len(days), 2, 6, 6), 0, 100).round()
    path = folder / series.format(tile=stem, year=FIRST_DAY.year)
    with h5py.File(path, "w") as file:
        file["sen-2-data"], file[CLOUDS] = optical, clouds
        file["sen-2-products"] = np.array([OPTICAL.format(day) for day in days], "S")
        for orbit in ("asc", "des"):
            days = some_days(rng, num_dates.get("s1-asc") or int(rng.integers(4, 7)), FIRST_DAY, LAST_DAY)
            radar = smooth(rng, (len(days), 2, 6, 6), 0.01, 0.3)
            radar[0, :, 0, 0] = np.nan if path.parent.name == "sentinel-ts" else radar[0, :, 0, 0]
            file[f"sen-1-{orbit}-data"] = radar
            file[f"sen-1-{orbit}-products"] = np.array([RADAR.format(day) for day in days], "S")
    return f"{stem}.tif"
