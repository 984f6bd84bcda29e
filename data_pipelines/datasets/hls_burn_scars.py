"""HLS Burn Scars: Harmonized Landsat and Sentinel-2 scenes of the United States, 15 km wide, with the burnt area.

Read from published files: one mask. Scenes and lists were read from made-up archives, and scenes with values of another
HLS product.
"""

import datetime
import hashlib
import pathlib
import re

import numpy as np

from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import day_fields, parse_day_of_year
from data_pipelines.files import read_lines, stems
from data_pipelines.rasters import read_class_map, read_raster
from data_pipelines.reader import ArchiveReader, num_tiles

SIDE = 512
NODATA = 9999.0
HIGHEST = 3.28  # the products are int16 of reflectance x 10000

CARD = DatasetCard(
    name="hls_burn_scars",
    title="HLS Burn Scars",
    sensors=("hls",),
    extent=15360.0,
    patch_sizes=(240,),
    splits=("train", "val", "test"),
    arrays={"hls": "float32", "dense": "int8"},
    blocks=4,
    masks={"hls": "band"},
    georeferenced="hls",
    file_bands={"hls": ("B02", "B03", "B04", "B8A", "B11", "B12")},
    units={"hls": "surface reflectance, 0 to 1"},
    dates={"hls": "one day, 2018 to 2021, from the file's name"},
    dense_label="segmentation",
    dense_classes=("not burned", "burn scar"),
    dense_colours=("#d9e4c5", "#b5261e"),
    dense_metres=30.0,
    split_rule="the published lists, if there are any; else test is the published folder validation, and of training, "
    "the scenes of about every tenth square of the satellites' grid (by a hash of its name, so that a place is on one "
    "side only) are val",
    natural_colour={"hls": (2, 1, 0)},
    size="804 scenes (two thirds in training), 190,000 km2",
    notes=(
        "Scene and mask are paired by name; the published reader pairs two sorted lists.",
        "The date is that of the file's name, 2018285 being day 284 of 2018 counted from 0; the published reader gives "
        "0 to all.",
        "The published code draws its tenth of training for val at random (seed 23); ours are other scenes.",
        "Reflectance of 9999, below 0 or NaN is masked, band by band; the published reader sets 9999 to 0.",
        "The paper takes patches of 240 m of the whole scene; sub-tiles (option extent) may have smaller ones.",
        "Table C gives 15.3 km; 512 pixels of 30 m are 15.36 km.",
        "Colours are ours; the archive has no official ones.",
    ),
    licence="CC-BY-4.0",
    citation="Phillips, Roy, Ankur, Ramachandran, HLS Foundation Burnscars Dataset, 2023",
    url="https://huggingface.co/datasets/ibm-nasa-geospatial/hls_burn_scars",
)

LAYOUTS = {
    "original": {"train": "training", "val": "training", "test": "validation"},
    "download": {"train": "data", "val": "data", "test": "data", "lists": "splits/{split}.txt"},
}
"""Folders of each split's *_merged.tif and *.mask.tif in the archive's first form, and in its later one, whose lists
name a scene a line, like subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4."""
LISTS = LAYOUTS["download"]["lists"]
LAYOUT = "data/ with *_merged.tif and *.mask.tif, and splits/{train,val,test}.txt; or training/ and validation/ alike"
SCENE, MASK = "_merged.tif", ".mask.tif"
NAME = re.compile(r"HLS\.[SL]30\.(?P<square>T\w{5})\.(?P<day>\d{7})\.")


def holds_raw(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds the published layout."""
    listed = (folder / LISTS.format(split="train")).is_file() and bool(stems(folder / "data", SCENE))
    return listed or any(stems(folder / name, SCENE) for name in LAYOUTS["original"].values())


def split_of(folder: str, square: str) -> str:
    """Returns the split of a scene from its folder and its square of the satellites' grid, e.g. "T10TGS"."""
    if folder == "validation":
        return "test"
    # By square: scenes of one place on several days must not lie in two splits.
    return "val" if hashlib.sha256(square.encode()).digest()[0] < 26 else "train"  # 26 of 256


class BurnScarsReader(ArchiveReader):
    """Reads HLS Burn Scars in its layouts; a scene's key is its file's name without what follows v1.4."""

    def __init__(self, root: pathlib.Path) -> None:
        lists: dict[str, list[str]] = {}
        for split in CARD.splits if (root / LISTS.format(split="train")).is_file() else ():
            lines = read_lines(root / LISTS.format(split=split), f"HLS Burn Scars as published: {LAYOUT}")
            lists[split] = sorted({line.removesuffix(SCENE).removesuffix(MASK) for line in lines})
        self._scenes: dict[str, tuple[str, datetime.date]] = {}
        tiles: dict[str, list[str]] = {split: [] for split in CARD.splits}
        alone = 0
        for folder in dict.fromkeys(LAYOUTS["download" if lists else "original"][split] for split in CARD.splits):
            scenes, masks = stems(root / folder, SCENE), stems(root / folder, MASK)
            alone += len(scenes ^ masks)
            for key in sorted(scenes & masks):
                named = NAME.search(f"{key}{SCENE}")
                path = root / folder / f"{key}{SCENE}"
                if not named:
                    expected = f"a name like subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4{SCENE}"
                    raise ValueError(f"{path} does not name a place and a day; expected {expected}")
                self._scenes[key] = folder, parse_day_of_year(named["day"], str(path))
                if not lists:
                    tiles[split_of(folder, named["square"])].append(key)
        super().__init__(CARD, root, {s: [k for k in lists[s] if k in self._scenes] for s in lists} or tiles)
        self.summary += f"; {alone} files without the scene or mask they belong to left out" if alone else ""
        if lists:
            num_listed, there = sum(map(len, lists.values())), num_tiles(self)
            self.summary += f"; {there} of {num_listed} listed scenes, {len(self._scenes) - there} in no list left out"

    def example(self, split: str, key: str) -> Example:
        folder, day = self._scenes[key]
        path, bands = self.root / folder / f"{key}{SCENE}", CARD.file_bands["hls"]
        expected = f"a GeoTIFF of {len(bands)} bands {', '.join(bands)}, {SIDE} x {SIDE} pixels, float32"
        values, place = read_raster(path, (len(bands), SIDE, SIDE), "f", expected)
        # Where it is dark, the correction of the atmosphere may overshoot: a reflectance below 0 is not one.
        mask = np.isfinite(values) & (values >= 0) & (values != NODATA)
        highest = values.max(where=mask, initial=0.0)
        if highest > HIGHEST:
            remedy = "divide what is x 10000 by 10000"
            raise ValueError(f"{path} goes up to {highest:g}; expected reflectance from 0 to about 1: {remedy}")
        if not mask.any():
            raise ValueError(f"{path} holds no valid value; expected at least one reflectance of 0 or more")
        kinds = "whole numbers -1 (missing), 0 (not burned), 1 (burned)"
        expected = f"a GeoTIFF of one band, {SIDE} x {SIDE} pixels, {kinds}"
        label = read_class_map(self.root / folder / f"{key}{MASK}", SIDE, (-1, 0, 1), expected)
        scene = {"hls": values[None].astype(np.float32), "hls_mask": mask[None], **place}
        return {"id": key, **scene, **day_fields("hls", [day]), "dense": label}
