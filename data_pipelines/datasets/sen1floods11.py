"""Sen1Floods11: chips of 512 x 512 pixels around eleven floods; Sentinel-1 and -2 of one day each, hand-drawn water.

The git repository's sample, one chip, is a dataset of its own, `sen1floods11_chip`: windows of 640 m, the left half for
training and the right half for testing.

Read from published files: the repository's sample and the floods' metadata. The bucket's folder v1.1, the tar of v1.1
and their lists were read from made-up archives only.
"""

import dataclasses
import datetime
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import pick_bands, with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series, parse_day
from data_pipelines.files import find_place, inside, read_json, read_lines, stems
from data_pipelines.rasters import read_class_map, read_raster
from data_pipelines.reader import ArchiveReader, DatasetEntry, digest

S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
SIDE = 512

CARD = DatasetCard(
    name="sen1floods11",
    title="Sen1Floods11",
    sensors=("s2", "s1"),
    extent=5120.0,
    patch_sizes=(80,),
    splits=("train", "val", "test", "bolivia"),
    arrays={"s2": "uint16", "s1": "float32", "dense": "int8"},
    blocks=4,
    masks={"s2": "pixel", "s1": "pixel"},
    optional=("s2", "s1"),
    georeferenced="s2",
    file_bands={"s2": S2_BANDS, "s1": ("VV", "VH")},
    units={"s2": "L1C (top of atmosphere) reflectance x 10000", "s1": "dB; the third band is VV - VH"},
    dates={"s2": "one day of each flood, 2016 to 2019", "s1": "one day of each flood, at most two from that of s2"},
    dense_label="segmentation",
    dense_classes=("not water", "water"),
    dense_colours=("#e9dfc7", "#1f5fa8"),
    split_rule="published lists of the hand-labelled chips; bolivia is a flood that no other list has",
    natural_colour={"s2": (2, 1, 0)},
    size="446 chips (252 train, 89 val, 90 test, 15 bolivia), 11,690 km2",
    notes=(
        "Only the hand-labelled chips are read; Table C's 4.8k pairs count the weakly labelled ones too.",
        "The paper takes patches of 80 m of the whole chip; sub-tiles (option extent) may have smaller ones.",
        "The third band of s1 is VV - VH in dB. The published reader divides one by the other, which is no ratio of "
        "power.",
        "s1 is NaN outside the swath and s2 is 0 where any band saw nothing: both are masked. A chip whose image is so "
        "everywhere (Paraguay_34417 in s1) lacks that sensor.",
        "Some chips have no labelled pixel at all (five of Ghana).",
        "Dates come from the flood's entry in Sen1Floods11_Metadata.geojson. It calls the flood of the Mekong chips "
        "Cambodia; the published reader does not find it there and dates those chips 1 January 1998.",
        "Pixels are 10 m at the equator, and narrower in degrees of longitude away from it (EPSG:4326).",
        "Without split lists, as in the git repository's sample, all chips are train.",
        "Colours are ours; the archive has no official ones.",
    ),
    licence="not stated by its authors; made of Copernicus Sentinel data",
    citation="Bonafilia, Tellman, Anderson, Issenberg, Sen1Floods11, CVPR Workshops 2020",
    url="https://github.com/cloudtostreet/Sen1Floods11",
)

METADATA = "Sen1Floods11_Metadata.geojson"
LISTS = "splits/flood_handlabeled"
LIST_NAMES = {"train": "train", "val": "valid", "test": "test", "bolivia": "bolivia"}  # the last may be missing
DATA = "data/flood_events/HandLabeled"
LAYERS = ("S1Hand", "S2Hand", "LabelHand")
SAMPLE = {"S1Hand": "S1", "S2Hand": "S2", "LabelHand": "Labels"}  # folders of the git repository's sample
LAYOUTS: dict[str, dict[str, str]] = {
    "original": {"lists": f"{LISTS}/flood_{{split}}_data.csv"} | {layer: f"{DATA}/{layer}" for layer in LAYERS},
    "download": {
        "lists": "splits/flood_{split}_data.txt",  # a chip's name a line
        "S1Hand": "data/S1GRDHand",
        "S2Hand": "data/S2L1CHand",
        "LabelHand": "data/LabelHand",
    },
}
"""Where lists and layers lie, below the bucket's folder v1.1 and below the tar's sen1floods11_v1.1."""
LAYOUT = (
    f"v1.1/{METADATA}, v1.1/{LISTS}/flood_*_data.csv, v1.1/{DATA}/{{{','.join(LAYERS)}}}/*.tif; or as one tar: "
    f"{METADATA}, splits/flood_*_data.txt, data/{{S1GRDHand,S2L1CHand,LabelHand}}/*.tif"
)
EVENTS = {"Mekong": "Cambodia"}  # where the chips' name of a flood is not the metadata's

Days = dict[str, datetime.date]


def _base(root: pathlib.Path) -> pathlib.Path:
    """Returns the folder v1.1 of the bucket or that of the tar, which `root` holds or is."""
    return next((root / name for name in ("v1.1", "sen1floods11_v1.1") if (root / name).is_dir()), root)


def is_sample(root: pathlib.Path) -> bool:
    """Returns whether it is the git repository, whose sample has no lists."""
    lists = find_place(_base(root), LAYOUTS, "lists", split="train").parent
    return (root / "sample" / "S1").is_dir() and not lists.is_dir()


def holds_raw(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds the published layout, or the git repository's with its sample."""
    return find_place(_base(folder), LAYOUTS, "lists", split="train").is_file() or is_sample(folder)


class Sen1FloodsReader(ArchiveReader):
    """Reads the hand-labelled chips; `root` holds the folder v1.1 or the tar's, is it, or is the git repository."""

    def __init__(self, root: pathlib.Path) -> None:
        sample = is_sample(root)
        base = root if sample else _base(root)
        lists = find_place(base, LAYOUTS, "lists", split="train")
        places = next(one for one in LAYOUTS.values() if base / one["lists"].format(split="train") == lists)
        places = {layer: f"sample/{SAMPLE[layer]}" for layer in LAYERS} if sample else places
        self._folders = {layer: base / places[layer] for layer in LAYERS}
        present = set.intersection(*(stems(f, f"_{layer}.tif") for layer, f in self._folders.items()))
        listed = {"train": sorted(present)} if sample else _read_lists(base, places, self._folders["S1Hand"])
        super().__init__(CARD, root, {split: [k for k in keys if k in present] for split, keys in listed.items()})
        chips = [key for keys in self.tiles.values() for key in keys]
        self._days = _read_days(base / METADATA, {_event(key) for key in chips})
        self.summary += f"; {len(chips)} of {sum(map(len, listed.values()))} listed chips are there"
        days = {event: [str(day) for day in days.values()] for event, days in sorted(self._days.items())}
        self.fingerprint = digest([self.fingerprint, days])

    def example(self, split: str, key: str) -> Example:
        """Reads one chip, without a sensor that has no data; raises as the base, or if no sensor has any."""
        radar, optical, label = (folder / f"{key}_{layer}.tif" for layer, folder in self._folders.items())
        days = self._days[_event(key)]
        expected = f"a GeoTIFF of 13 bands B1 to B12 with B8A, {SIDE} x {SIDE} pixels, int16 or uint16"
        values, place = read_raster(optical, (len(S2_BANDS), SIDE, SIDE), ("int16", "uint16"), expected)
        values = pick_bands(values, S2_BANDS, get_sensor("s2").bands)
        # 0 is the files' nodata; a band that saw nothing is 0 where others have values.
        mask = (values > 0).all(axis=0, keepdims=True)
        series = observed_series("s2", np.maximum(values, 0).astype(np.uint16)[None], mask[None], [days["s2"]])
        expected = f"a GeoTIFF of VV and VH in dB, {SIDE} x {SIDE} pixels, float32"
        values, _ = read_raster(radar, (2, SIDE, SIDE), "f", expected)
        mask = np.isfinite(values).all(axis=0, keepdims=True)
        three = with_ratio_of_decibels(values.astype(np.float32))
        series |= observed_series("s1", three[None], mask[None], [days["s1"]])
        if not series:
            raise ValueError(f"{optical} and {radar.name} hold no data at all; leave the chip out")
        kinds = "whole numbers -1 (no label), 0 (not water), 1 (water)"
        dense = read_class_map(label, SIDE, (-1, 0, 1), f"a GeoTIFF of one band, {SIDE} x {SIDE} pixels, {kinds}")
        return {"id": key, **place, **series, "dense": dense}


def _read_lists(base: pathlib.Path, places: Mapping[str, str], radar: pathlib.Path) -> dict[str, list[str]]:
    """Reads the keys of each split's chips from the lists; `radar` is the folder of their files."""
    lists: dict[str, list[str]] = {}
    for split, name in LIST_NAMES.items():
        path = base / places["lists"].format(split=name)
        if split == "bolivia" and not path.is_file():
            continue
        lists[split] = []
        for line in read_lines(path, f"Sen1Floods11 as published: {LAYOUT}"):
            file, _, label = (part.strip() for part in line.partition(","))
            key = file.removesuffix("_S1Hand.tif")
            if path.suffix == ".txt":
                fits, expected = re.fullmatch(r"[\w-]+_\d+", line), "a line like Ghana_103272"
            else:
                fits = key != file and "_" in key and label == f"{key}_LabelHand.tif"
                expected = "a line like Ghana_103272_S1Hand.tif,Ghana_103272_LabelHand.tif"
            if not fits:
                raise ValueError(f"{path}: {line!r}, expected {expected}")
            inside(radar, f"{key}_S1Hand.tif")
            lists[split].append(key)
    return lists


def _event(key: str) -> str:
    """Returns the flood of a chip: "Sri-Lanka" of "Sri-Lanka_31559"."""
    return key.rpartition("_")[0]


def _read_days(path: pathlib.Path, events: Iterable[str]) -> dict[str, Days]:
    """Reads the days of acquisition of "s1" and "s2" by the chips' name of the flood."""
    expected = f"the floods' metadata: features with location, s1_date and s2_date, as in {CARD.url}"
    metadata = read_json(path, expected)
    try:
        floods = {f["properties"]["location"]: f["properties"] for f in metadata["features"]}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} lacks {error}; expected {expected}") from error
    days = {}
    for event in sorted(events):
        name = event if event in floods else EVENTS.get(event, event)
        if name not in floods:
            raise ValueError(
                f"{path} has no flood {event!r}, which chips are named after, so that their dates are unknown; it has "
                f"{', '.join(map(str, floods))}. Take the metadata of the chips' own version, or remove those chips"
            )
        texts = {sensor: str(floods[name].get(f"{sensor}_date")) for sensor in ("s1", "s2")}
        days[event] = {s: parse_day(text, f"{path}: {s}_date of {name}") for s, text in texts.items()}
    return days


WINDOW = 64  # pixels
VAL_COLUMN = 3  # of the chip's eight columns of windows; those left of it are for training
TEST_COLUMN = 4  # and all from here on for testing

CHIP_CARD = dataclasses.replace(
    CARD,
    name="sen1floods11_chip",
    title="Sen1Floods11's sample",
    extent=10.0 * WINDOW,
    patch_sizes=(20, 40, 80),
    splits=("train", "val", "test"),
    blocks=1,
    dates={"s2": "18 September 2019 in Spain", "s1": "the day before"},
    split_rule=(
        "by column of the chip, so that no window touches one of another split but along an edge: 0 to 191 train, 192 "
        "to 255 val, 256 to 511 test"
    ),
    size="64 windows of one chip (24 train, 8 val, 32 test), 26 km2",
    notes=(
        "The hand-labelled chip Spain_7370579, as it is in the git repository; other chips in its folder sample are "
        "cut alike.",
        "The left half is for training, but for a strip of 640 m at its right, where the best checkpoint is chosen; "
        "the right half is for testing.",
        *(note for note in CARD.notes if note.startswith(("The third", "s1 is", "Pixels", "Colours"))),
    ),
    url="https://github.com/cloudtostreet/Sen1Floods11/tree/master/sample",
)

CHIP_FOLDER = "sen1floods11"
CHIP_LAYOUT = f"{METADATA}, sample/S1/*_S1Hand.tif, sample/S2/*_S2Hand.tif, sample/Labels/*_LabelHand.tif"


def _repository(folder: pathlib.Path) -> pathlib.Path:
    return folder / CHIP_FOLDER if is_sample(folder / CHIP_FOLDER) else folder


def holds_sample(folder: pathlib.Path) -> bool:
    """Returns whether a folder is the git repository with its sample, or holds it as a folder sen1floods11."""
    return is_sample(_repository(folder))


class ChipReader(ArchiveReader):
    """Reads the sample window by window; a window that a sensor has not seen lacks that sensor.

    `root` is the git repository's folder, or holds it as sen1floods11.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self._chips = Sen1FloodsReader(_repository(root))
        self._latest: tuple[str, Example] = ("", {})
        keys: dict[str, list[str]] = {split: [] for split in CHIP_CARD.splits}
        for chip in self._chips.keys("train"):
            for row, column in np.ndindex(SIDE // WINDOW, SIDE // WINDOW):
                keys[split_of(column)].append(f"{chip}/{row}/{column}")
        super().__init__(CHIP_CARD, root, keys)
        self.fingerprint = self._chips.fingerprint

    def example(self, split: str, key: str) -> Example:
        """Reads one window; its key is "chip/row/column", counted in windows. Raises as the base, or if none saw it."""
        name, row, column = key.split("/")
        # The windows of a chip come one after another; its files are read once for all 64.
        if self._latest[0] != name:
            self._latest = (name, self._chips.example("train", name))
        window = cut_window(self._latest[1], int(row) * WINDOW, int(column) * WINDOW)
        if not any(sensor in window for sensor in CHIP_CARD.sensors):
            raise ValueError(f"{self.root}: no sensor has seen the window {key} of the sample; leave it out")
        return window | {"id": key}


def split_of(column: int) -> str:
    """Returns the split of a column of windows."""
    # By column: neighbours look alike, and here splits only meet along two lines.
    return "train" if column < VAL_COLUMN else "val" if column < TEST_COLUMN else "test"


def cut_window(chip: Example, top: int, left: int) -> Example:
    """Cuts the window with upper left pixel (top, left) out of a chip, without sensors that have not seen it."""
    part = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
    a, b, c, d, e, f = chip["transform"]
    # The map of the window's (0, 0) is that of the chip's (left, top).
    moved = np.asarray([a, b, c + a * left + b * top, d, e, f + d * left + e * top])
    window = chip | {"dense": chip["dense"][part], "transform": moved}
    for sensor in (name for name in CARD.sensors if name in chip):
        fields = {key: chip[key][part] for key in (sensor, f"{sensor}_mask")}
        if fields[f"{sensor}_mask"].any():
            window |= fields
        else:
            window = {key: value for key, value in window.items() if key.partition("_")[0] != sensor}
    return window


CHIP_ENTRY = DatasetEntry(CHIP_CARD, ChipReader, holds_sample, CHIP_LAYOUT)
