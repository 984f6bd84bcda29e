"""BraDD-S1TS: deforestation in the Brazilian Amazon; Sentinel-1 series of 480 m tiles.

No published file was at hand: table, names and bytes are those of the archive's documentation and the authors' code,
read from made-up archives only.
"""

import datetime
import pathlib
from typing import Any

import numpy as np

from data_pipelines.bands import with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series
from data_pipelines.files import check_array, inside, read_table, stems
from data_pipelines.reader import ArchiveReader, layout_check
from data_pipelines.torch_files import read_torch

CARD = DatasetCard(
    name="bradd_s1ts",
    title="BraDD-S1TS",
    sensors=("s1",),
    extent=480.0,
    patch_sizes=(10, 40),
    splits=("train", "val", "test"),
    arrays={"s1": "float32"},
    masks={"s1": "pixel"},
    file_bands={"s1": ("VV", "VH")},
    units={"s1": "decibels; the third band is VV - VH"},
    dates={"s1": "20 to 66 for each tile, around alerts of July 2020 to November 2021, across the new year"},
    dense_label="change",
    dense_classes=("no forest loss", "forest loss"),
    dense_colours=("#1b7837", "#d73027"),
    split_rule="column close_set of meta.csv: train, validation (here val), test",
    size="25,988 series in the archive; the AnySat paper counts 13,234 tiles, 2,995 km2",
    notes=(
        "The label is the archive's second mask: forest lost by its second date. Pixels lost before the first date "
        "are in it too; the series runs over both dates and beyond.",
        "The ratio band is VV - VH in decibels; the published AnySat reader divides the decibels.",
        "The published reader counts days from each tile's first date; here days of the year, and the year beside.",
        "Table C of the AnySat paper says patches of 10 m and 10 bands; its configs use 40 m, the files have 2 bands.",
        "Files are pickles of torch: they are read without running them, which needs the extra 'torch'.",
        "The values are decibels by the authors' own normalisation (VV from -20 to 5); a tile without any negative "
        "value is refused as linear power.",
        "The archive has no official colours; those of the classes are ours.",
    ),
    licence="CC-BY-4.0",
    citation="Karaman et al., Deforestation Detection in the Amazon with Sentinel-1 SAR Image Time Series, ISPRS 2023",
    url="https://zenodo.org/records/8060250",
)

LAYOUT = "meta.csv with the columns file and close_set, Samples/*.pt"
SIDE = 48
EXPECTED = (
    f"a dict of torch.save with 'image' (dates, 2, {SIDE}, {SIDE}) in decibels, 'image_dates', one date each, and "
    f"'label' (2, {SIDE}, {SIDE}) of 0 and 1"
)
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_DATE_CLASSES = (datetime.date, datetime.datetime)
holds_raw = layout_check("meta.csv", "Samples/")


class BraddReader(ArchiveReader):
    """Reads BraDD-S1TS in its published layout; tiles that meta.csv lists and the disk lacks are left out."""

    def __init__(self, root: pathlib.Path) -> None:
        listed = _read_splits(root / "meta.csv")
        present = stems(root / "Samples", ".pt")
        super().__init__(CARD, root, {s: [name for name in names if name in present] for s, names in listed.items()})
        self.summary += f"; meta.csv lists {sum(map(len, listed.values())):,} with a split"

    def example(self, split: str, key: str) -> Example:
        path = inside(self.root / "Samples", f"{key}.pt")
        content = read_torch(path, ["image", "image_dates", "label"], EXPECTED, _DATE_CLASSES)
        series, label = _read_series(path, content["image"], content["image_dates"]), content["label"]
        # Masks of unlike shapes cannot be stacked; their list is refused below, with the file's name.
        if isinstance(label, list) and len({np.shape(one) for one in label}) == 1:
            label = np.stack(label)
        masks = check_array(path, label, (None, SIDE, SIDE), ("i", "u", "b", "f"), EXPECTED)
        if len(masks) < 2:
            raise ValueError(f"{path}: 'label' has {len(masks)} masks; expected {EXPECTED}")
        # The second of the archive's masks: forest lost by the second of its dates.
        if not np.isin(found := np.unique(masks[1]), (0, 1)).all():
            raise ValueError(f"{path}: 'label' holds {found.tolist()[:8]}; expected 0 (no loss) and 1 (forest loss)")
        return {"id": key, **series, "dense": masks[1].astype(np.int8)}


def _read_splits(path: pathlib.Path) -> dict[str, list[str]]:
    """Reads the tile names of each split; leaves out rows without a split."""
    names: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
    for row in read_table(path, ("file", "close_set"), f"BraDD-S1TS as published: {LAYOUT}"):
        split, file = row["close_set"].strip(), row["file"].strip()
        if not split:
            continue
        if split not in _SPLITS:
            raise ValueError(f"{path}: close_set of {file!r} is {split!r}, expected one of {', '.join(_SPLITS)}")
        if not file.endswith(".pt") or "/" in file or "\\" in file:
            raise ValueError(f"{path}: {file!r} is not a tile; expected a name like 0000000_2021-08-21.pt")
        names[_SPLITS[split]].append(file.removesuffix(".pt"))
    return names


def _read_series(path: pathlib.Path, image: Any, dates: Any) -> Example:
    """Returns the series in time order without dates on which nothing was observed, its ratio in decibels."""
    image = check_array(path, image, (None, 2, SIDE, SIDE), "f", EXPECTED).astype(np.float32)
    if not isinstance(dates, list | tuple) or not all(isinstance(date, datetime.date) for date in dates):
        raise ValueError(f"{path}: 'image_dates' is {dates!r:.80}; expected a list of datetime.date")
    if len(dates) != len(image) or not dates:
        raise ValueError(f"{path}: {len(dates)} 'image_dates' for {len(image)} images; expected one each, at least one")
    # A datetime is a date to isinstance, but the two cannot be compared.
    days = [date.date() if isinstance(date, datetime.datetime) else date for date in dates]
    # Cut images are filled with zeros in both polarisations.
    mask = np.isfinite(image).all(axis=1, keepdims=True) & (image != 0).any(axis=1, keepdims=True)
    if not mask.any():
        raise ValueError(f"{path}: 'image' is zero or NaN everywhere; expected at least one date with an observation")
    return observed_series("s1", with_ratio_of_decibels(np.where(mask, image, np.float32(0))), mask, days)
