"""Fuel moisture: a pixel of three months of Sentinel-1 and -2, and how moist the live plants there were in the field.

The same pixels with their land cover as the label are a dataset of its own, `fuel_moisture_land_cover`.

The whole published archive was read.
"""

import dataclasses
import datetime
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Shaped

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import pick_bands, with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import day_fields
from data_pipelines.files import read_json, read_npy
from data_pipelines.reader import ArchiveReader, DatasetEntry, hashed_split

RADAR_BANDS = ("VV", "VH")
OPTICAL_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
NUM_COLUMNS = 18  # five of them weather, terrain and an index, which are not read
LAND_COVER = (
    "water",
    "trees",
    "grass",
    "flooded vegetation",
    "crops",
    "shrub and scrub",
    "built",
    "bare",
    "snow and ice",
)
MISSING = len(LAND_COVER)  # stands for no land cover
VAL_SHARE = 0.2
FIRST_YEAR = 2017  # the archive names no year

CARD = DatasetCard(
    name="fuel_moisture",
    title="Fuel moisture",
    sensors=("s2", "s1"),
    extent=10.0,
    patch_sizes=(10,),
    splits=("train", "val", "test"),
    file_bands={"s2": OPTICAL_BANDS, "s1": RADAR_BANDS},
    units={"s2": "L1C (top of atmosphere) reflectance x 10000", "s1": "dB; the third band is VV - VH"},
    dates={"s2": "three composites of 30 days in a row, given as the 15th of the month", "s1": "as s2"},
    date_precision={"s2": "month", "s1": "month"},
    tile_label="regression",
    label_unit="live fuel moisture in percent of dry weight",
    split_rule=(
        f"test: the 50 sites published as such; val: {VAL_SHARE:.0%} of the 100 published training sites, drawn by a "
        "hash of the site's name; no site is in two splits"
    ),
    natural_colour={"s2": (2, 1, 0)},
    size="2,313 pixels of 150 sites in the United States (1,211 train, 367 val, 735 test)",
    notes=(
        "The moisture was measured in the field, 32 to 319 percent.",
        "Coordinates, weather and terrain are in the archive and are not read: with coordinates alone a model learns "
        "the sites.",
        "Column 17 of the archive, called NDVI, is (B7 - B3) / (B7 + B3), and is not read either.",
        "Months are counted from 0, January, and are those in which a composite's 30 days begin, so that one may come "
        f"twice. The archive tells no year: series begin in {FIRST_YEAR}, and one from November ends in the next year.",
    ),
    licence="MIT (the repository); made of Globe-LFMC and Copernicus Sentinel data",
    citation="Rao et al., SAR-enhanced mapping of live fuel moisture content, Remote Sensing of Environment 245, 2020; "
    "as prepared by Tseng et al., Lightweight, Pre-trained Transformers for Remote Sensing Timeseries, 2023",
    url="https://github.com/nasaharvest/presto/tree/main/data/fuel_moisture",
)

LAND_COVER_CARD = dataclasses.replace(
    CARD,
    name="fuel_moisture_land_cover",
    title="Fuel moisture's land cover",
    tile_label="class",
    tile_classes=LAND_COVER,
    label_unit="",
    notes=(
        "The label is that of Dynamic World in the last of the three months: another model's answer, no survey. None "
        "of the pixels is flooded vegetation.",
        f"{MISSING} stands for no land cover; such pixels are left out and counted.",
        *CARD.notes[1:],
    ),
    citation=f"{CARD.citation}; Brown et al., Dynamic World, Scientific Data 9, 2022",
)

FOLDER = "fuel_moisture"
SITES = "train_test_split.json"
SERIES = "s1_s2_era5_srtm"
NAMES = (SERIES, "month", "site", "target", "dynamic_world")
LAYOUT = f"{SITES} and npy/{{{','.join(NAMES)}}}.npy, or both in a folder {FOLDER}"
_EXPECTED = f"fuel moisture as in Presto's repository: {LAYOUT}"


@dataclasses.dataclass(frozen=True)
class PixelTable:
    """The archive, a row for each pixel."""

    optical: Float32[np.ndarray, "N T 11"]  # reflectance x 10000 in the order of `OPTICAL_BANDS`
    radar: Float32[np.ndarray, "N T 2"]  # VV and VH in dB
    months: Int[np.ndarray, "N T"]  # from 0, January
    splits: tuple[str, ...]  # "train", "val" or "test"
    moisture: Float32[np.ndarray, "N"]  # percent
    cover: Int[np.ndarray, "N T"]  # class of the land cover in each month, `MISSING` for none


def _base(folder: pathlib.Path) -> pathlib.Path:
    return folder / FOLDER if (folder / FOLDER / SITES).is_file() else folder


def holds_raw(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds the published layout, or is the parent of such a folder fuel_moisture."""
    base = _base(folder)
    return (base / SITES).is_file() and (base / "npy" / f"{SERIES}.npy").is_file()


class FuelMoistureReader(ArchiveReader):
    """Reads the pixels, which are all in memory: 250 kB; `root` holds npy, or a folder fuel_moisture that does."""

    card = CARD

    def __init__(self, root: pathlib.Path) -> None:
        self._table = read_table(_base(root))
        self._labels, labelled = self.labels(self._table)
        splits, rows = self._table.splits, np.flatnonzero(labelled)
        tiles = {split: [f"{row:05d}" for row in rows if splits[row] == split] for split in self.card.splits}
        super().__init__(self.card, root, tiles)
        self.summary += f"; {len(splits) - len(rows):,} pixels have no label"
        table = self._table
        arrays = (table.optical, table.radar, table.months, table.moisture, table.cover)
        content = self.fingerprint.encode() + b"".join(array.tobytes() for array in arrays)
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def labels(self, table: PixelTable) -> tuple[Shaped[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
        """Returns the label of each pixel, and whether it has one."""
        return table.moisture, np.isfinite(table.moisture)

    def example(self, split: str, key: str) -> Example:
        """Reads one pixel; its key is its row."""
        table, row = self._table, int(key)
        optical, radar = (one[row][:, :, None, None] for one in (table.optical, table.radar))
        days = middles_of_months(table.months[row].tolist())
        return {
            "id": key,
            "s2": pick_bands(optical, OPTICAL_BANDS, get_sensor("s2").bands),
            "s1": with_ratio_of_decibels(radar),
            **day_fields("s2", days),
            **day_fields("s1", days),
            "tile": self._labels[row],
        }


class LandCoverReader(FuelMoistureReader):
    """Reads the same pixels, with the land cover of the last month as their label."""

    card = LAND_COVER_CARD

    def labels(self, table: PixelTable) -> tuple[Shaped[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
        last = table.cover[:, -1].astype(np.int32)
        return last, last != MISSING


LAND_COVER_ENTRY = DatasetEntry(LAND_COVER_CARD, LandCoverReader, holds_raw, LAYOUT)


def middles_of_months(months: Sequence[int]) -> list[datetime.date]:
    """Returns the 15th of each month (from 0) of a series; a lower number than the one before starts the next year."""
    year, days = FIRST_YEAR, []
    for number, month in enumerate(months):
        # Series only run forward: a lower month than the one before lies in the next year.
        year += number > 0 and month < months[number - 1]
        days.append(datetime.date(year, month + 1, 15))
    return days


def read_table(base: pathlib.Path) -> PixelTable:
    """Reads the arrays of the archive that are used; `base` is the folder that holds npy.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: one is not as published, the files have other numbers of rows, or a site has no split.
    """
    folder = base / "npy"
    series: Float64[np.ndarray, "N T 18"] = _read(folder, SERIES, (None, None, NUM_COLUMNS), "f")
    shape = series.shape[:2]
    months, cover = (_read(folder, name, shape, "iu") for name in ("month", "dynamic_world"))
    sites, target = _read(folder, "site", shape[:1], "U").tolist(), _read(folder, "target", shape[:1], "f")
    for name, numbers, highest in (("month", months, 11), ("dynamic_world", cover, MISSING)):
        wrong = numbers[(numbers < 0) | (numbers > highest)]
        if wrong.size:
            found = f"{folder / name}.npy holds {int(wrong[0])}"
            raise ValueError(f"{found}; expected whole numbers from 0 to {highest}")
    kinds, path = read_json(base / SITES, _EXPECTED), base / SITES
    splits = {}
    for site in dict.fromkeys(sites):
        kind = kinds.get(site) if isinstance(kinds, dict) else None
        if kind not in ("train", "test"):
            raise ValueError(f"{path}: the site {site!r} has the split {kind!r}; expected train or test for each site")
        # By site: its pixels are neighbours in space and time, and would leak from one split into another.
        splits[site] = "test" if kind == "test" else hashed_split(site, VAL_SHARE)
    radar, optical = np.split(series[..., : 2 + len(OPTICAL_BANDS)].astype(np.float32), [2], axis=-1)
    if not (np.isfinite(optical).all() and np.isfinite(radar).all()):
        raise ValueError(f"{folder / SERIES}.npy holds NaN or infinite values; expected none. Download it again")
    return PixelTable(optical, radar, months, tuple(splits[s] for s in sites), target.astype(np.float32), cover)


def _read(folder: pathlib.Path, name: str, shape: Sequence[int | None], dtype: str) -> np.ndarray:
    expected = f"a row for each pixel, {tuple('?' if n is None else n for n in shape)}; {_EXPECTED}"
    return read_npy(folder / f"{name}.npy", shape, dtype, expected)
