"""BioMassters: a year of monthly Sentinel-1 and -2 over 2560 m of Finnish forest, and its biomass by lidar.

No published file was at hand: folders, names and bytes are those of the archive's documentation and of a public reader,
read from made-up archives only.
"""

import datetime
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import pick_bands, to_uint16, with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series
from data_pipelines.files import read_table, stems
from data_pipelines.rasters import read_raster
from data_pipelines.reader import ArchiveReader, hashed_split, layout_check

SIDE = 256
NODATA = -9999.0
UNKNOWN_CLOUD = 255
S1_BANDS = ("ascending VV", "ascending VH", "descending VV", "descending VH")
S2_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12", "cloud probability")
VAL_SHARE = 0.2
FIRST_YEAR = 2018  # the archive names no year
_FILE = re.compile(r"(?P<chip>[^_/]+)_(?P<sensor>S1|S2)_(?P<month>\d\d)\.tif")

CARD = DatasetCard(
    name="biomassters",
    title="BioMassters",
    sensors=("s2", "s1"),
    extent=2560.0,
    patch_sizes=(40, 80, 160),
    splits=("train", "val", "test"),
    arrays={"s2": "uint16", "s1": "float32", "dense": "float32"},
    blocks=4,
    masks={"s2": "pixel", "s1": "pixel"},
    clouds=("s2",),
    optional=("s2", "s1"),
    file_bands={"s2": S2_BANDS, "s1": S1_BANDS},
    units={"s2": "reflectance x 10000", "s1": "dB; the third band is VV - VH"},
    dates={
        "s2": "one image for each month from September to August, some missing; given as the 15th",
        "s1": "two for each month, ascending and descending; given as the 15th",
    },
    date_precision={"s2": "month", "s1": "month"},
    dense_label="regression",
    label_unit="above-ground biomass in t/ha, the year's peak",
    split_rule=(
        f"test as published; val: {VAL_SHARE:.0%} of the published train chips, drawn by a hash of the chip's name; or "
        "train_Data_list.csv, val_Data_list.csv and test_Data_list.csv (a column chip_id) where there are such lists"
    ),
    natural_colour={"s2": (2, 1, 0)},
    size="11,462 chips (8,689 train, 2,773 test), 310,000 images, 290 GB",
    notes=(
        "Month 00 is September of the year before the lidar flight, 11 is August. The published reader takes month 00 "
        "for January, 30 days a month.",
        f"The archive tells no year (2016 to 2021); September is given as of {FIRST_YEAR}.",
        "The third band of s1 is VV - VH in dB. The published reader divides one by the other, which is no ratio of "
        "power.",
        "An orbit that is -9999 at every pixel of a month is left out; single such pixels are masked.",
        "s2 is masked where any of its bands is 0; a month of zeros is left out. Where the cloud probability is 255, "
        "unknown, it is given as 0.",
        "The organisers say tonnes; with a mean of 63 for pixels of 100 m2 that can only be tonnes per hectare.",
        "That bands 1 and 2 of s1 are the ascending orbit rests on the published reader; VV before VH on the values.",
        "The archive's places were removed on purpose.",
    ),
    licence="CC-BY-4.0",
    citation="Nascetti et al., BioMassters: A Benchmark Dataset for Forest Biomass Estimation, NeurIPS 2023",
    url="https://huggingface.co/datasets/nascetti-a/BioMassters",
)

LAYOUT = (
    "train_features/CHIP_S1_00.tif to CHIP_S1_11.tif and CHIP_S2_00.tif to CHIP_S2_11.tif, train_agbm/CHIP_agbm.tif; "
    "test_features and test_agbm alike"
)

VERSION = "1.1.0"  # pixels with a single band of 0 are masked since 1.1

holds_raw = layout_check("train_features/", "train_agbm/")

Months = dict[str, dict[str, list[int]]]
"""For each chip and each of S1 and S2, the months that there are."""


class BioMasstersReader(ArchiveReader):
    """Reads BioMassters. Chips without images or without a label (test_agbm came later) are left out and counted."""

    def __init__(self, root: pathlib.Path) -> None:
        self._months = {part: _months(root / f"{part}_features") for part in ("train", "test")}
        labelled = {part: stems(root / f"{part}_agbm", "_agbm.tif") for part in ("train", "test")}
        there = {part: sorted(set(months) & labelled[part]) for part, months in self._months.items()}
        if (root / "train_Data_list.csv").is_file():
            chips = {"train": set(there["train"]), "val": set(there["train"]), "test": set(there["test"])}
            expected = "a CSV file with the column chip_id"
            rows = {split: read_table(root / f"{split}_Data_list.csv", ["chip_id"], expected) for split in chips}
            tiles = {s: [c for row in rows[s] if (c := row["chip_id"].strip()) in chips[s]] for s in chips}
        else:
            # By name, so that chips that are downloaded later do not move others.
            drawn = {chip: hashed_split(chip, VAL_SHARE) for chip in there["train"]}
            tiles = {split: [chip for chip in drawn if drawn[chip] == split] for split in ("train", "val")}
            tiles["test"] = there["test"]
        super().__init__(CARD, root, tiles)
        known = [chip for part, months in self._months.items() for chip in set(months) | labelled[part]]
        self.summary += f"; {len(known) - sum(map(len, there.values())):,} chips lack their images or their label"

    def example(self, split: str, key: str) -> Example:
        part = "test" if split == "test" else "train"
        features, months = self.root / f"{part}_features", self._months[part][key]
        expected = f"a GeoTIFF of one band, {SIDE} x {SIDE} pixels, above-ground biomass as floats"
        (label,), _ = read_raster(self.root / f"{part}_agbm" / f"{key}_agbm.tif", (1, SIDE, SIDE), "f", expected)
        dense = np.where(np.isfinite(label) & (label != NODATA), label, np.nan).astype(np.float32)
        series = _read_s1(features, key, months["S1"]) | _read_s2(features, key, months["S2"])
        if not series:
            raise ValueError(f"{features}: no image of chip {key} has a valid pixel; leave the chip out")
        return {"id": key, **series, "dense": dense}


def _months(folder: pathlib.Path) -> Months:
    """Returns the months on disk, from one listing of the folder."""
    months: Months = {}
    if not folder.is_dir():
        return months
    # One listing: the folders hold 310,000 images, and a look-up for each month would take minutes on a disk afar.
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _FILE.fullmatch(entry.name)
            if match and int(match["month"]) < 12:
                there = months.setdefault(match["chip"], {"S1": [], "S2": []})
                there[match["sensor"]].append(int(match["month"]))
    return {chip: {name: sorted(numbers) for name, numbers in there.items()} for chip, there in months.items()}


def month_day(month: int) -> datetime.date:
    """Returns the middle of a month; month 0 is September."""
    return datetime.date(FIRST_YEAR + (month + 8) // 12, (month + 8) % 12 + 1, 15)


def _read_s1(folder: pathlib.Path, chip: str, months: Sequence[int]) -> Example:
    """Reads both orbits of every month with their ratio in dB; leaves out orbits without a valid pixel."""
    expected = f"a GeoTIFF of VV and VH in dB, ascending and descending, {SIDE} x {SIDE} pixels, float32"
    values, masks = [], []
    for month in months:
        path = folder / f"{chip}_S1_{month:02d}.tif"
        # Both orbits of a month lie in one file; they see slopes from two sides, and so are two dates.
        orbits = read_raster(path, (4, SIDE, SIDE), "f", expected)[0].astype(np.float32).reshape(2, 2, SIDE, SIDE)
        valid = (np.isfinite(orbits) & (orbits != NODATA)).all(axis=1, keepdims=True)
        if valid.any() and np.min(orbits, where=valid, initial=np.inf) >= 0:
            raise ValueError(f"{path} has no value below 0; expected decibels, not linear power")
        values.append(with_ratio_of_decibels(np.where(valid, orbits, np.float32(0))))
        masks.append(valid)
    if not months:
        return {}
    days = [month_day(month) for month in months for _ in ("ascending", "descending")]
    return observed_series("s1", np.concatenate(values), np.concatenate(masks), days)


def _read_s2(folder: pathlib.Path, chip: str, months: Sequence[int]) -> Example:
    """Reads bands and clouds of every month; leaves out months without a valid pixel."""
    expected = f"a GeoTIFF of ten bands and the cloud probability, {SIDE} x {SIDE} pixels"
    values, masks, clouds = [], [], []
    for month in months:
        path = folder / f"{chip}_S2_{month:02d}.tif"
        image, _ = read_raster(path, (len(S2_BANDS), SIDE, SIDE), ("u", "i", "f"), expected)
        bands, cloud = pick_bands(image, S2_BANDS, get_sensor("s2").bands), image[-1:]
        values.append(to_uint16(path, bands, "digital numbers, 0 to 65535"))
        known = cloud[cloud != UNKNOWN_CLOUD]
        if known.size and not (known.min() >= 0 and known.max() <= 100):
            raise ValueError(
                f"{path}: the last band runs from {known.min():g} to {known.max():g}; expected the probability of "
                f"cloud, 0 to 100, or {UNKNOWN_CLOUD} where it is unknown"
            )
        # Unknown counts as clear: else months whose probability was not computed would never be drawn.
        clouds.append(np.where(cloud == UNKNOWN_CLOUD, 0, cloud).astype(np.uint8))
        # 0 is nodata, and a band that saw nothing is 0 where others have values.
        masks.append((bands != 0).all(axis=0, keepdims=True))
    if not months:
        return {}
    days = [month_day(month) for month in months]
    return observed_series("s2", np.stack(values), np.stack(masks), days, np.stack(clouds))
