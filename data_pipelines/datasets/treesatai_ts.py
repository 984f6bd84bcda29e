"""TreeSatAI Time-Series: 60 m forest tiles of Lower Saxony; aerial image, Sentinel-1 and -2 series, 15 tree genera.

Read from published files: one tile (GeoTIFF and HDF5), all labels, and the lists of train and test, in the original
layout. The list of val, which comes with the series, and the layout of the download were read from made-up archives
only.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import pick_bands, to_uint16
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import day_in_name, observed_series
from data_pipelines.files import check_array, find_place, read_hdf5, read_json, read_lines, stems
from data_pipelines.rasters import read_raster
from data_pipelines.reader import ArchiveReader, digest, num_tiles

GENERA = (
    "Abies",
    "Acer",
    "Alnus",
    "Betula",
    "Cleared",
    "Fagus",
    "Fraxinus",
    "Larix",
    "Picea",
    "Pinus",
    "Populus",
    "Prunus",
    "Pseudotsuga",
    "Quercus",
    "Tilia",
)
MIN_AREA = 0.07  # a genus counts where it covers strictly more of the tile

CARD = DatasetCard(
    name="treesatai_ts",
    title="TreeSatAI Time-Series",
    sensors=("aerial", "s2", "s1-asc"),
    extent=60.0,
    patch_sizes=(10, 20, 30),
    splits=("train", "val", "test"),
    arrays={"aerial": "uint8", "s2": "uint16", "s1-asc": "float32"},
    sides={"aerial": 304},
    masks={"s2": "pixel", "s1-asc": "pixel"},
    clouds=("s2",),
    georeferenced="aerial",
    file_bands={"aerial": ("NIR", "G", "B", "R")},
    units={"aerial": "grey values", "s2": "L2A reflectance x 10000", "s1-asc": "linear power"},
    dates={"s2": "2020, up to 146, clouds not removed", "s1-asc": "2020, about 60"},
    tile_label="multi_label",
    tile_classes=GENERA,
    split_rule="published lists; val comes with the time series, the original archive has train and test",
    natural_colour={"aerial": (0, 1, 2), "s2": (2, 1, 0)},
    size="50,381 tiles, 180 km2",
    notes=(
        "The file's first aerial band is the infrared (IR, G, B, R), not red.",
        "Labels are genera on more than 7 % of the tile; tiles without any are left out, as in the published reader.",
        "The paper's text says 20 classes; the archive's labels name 15.",
        "The aerial image has 304 pixels a side; the 300 in its centre match six Sentinel pixels.",
        "The download names a series TILE_YEAR.h5, the authors' own disk TILE.h5; both are read.",
    ),
    licence="CC-BY-4.0",
    citation="Ahlswede et al., TreeSatAI Benchmark Archive, ESSD 2023; time series: Astruc et al., OmniSat, ECCV 2024",
    url="https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series",
)

_LABELS = "TreeSatBA_v9_60m_multi_labels.json"
LAYOUTS = {
    "original": {"lists": "{split}_filenames.lst", "labels": f"labels/{_LABELS}", "series": "sentinel/{tile}.h5"},
    "download": {
        "lists": "split/{split}_filenames.lst",
        "labels": _LABELS,
        "series": "sentinel-ts/{tile}_{year}.h5",  # e.g. Abies_alba_1_1005_WEFL_NLF_2020.h5
    },
}
"""Where files lie on the authors' disk, and where the zips of the card's address put them; the aerial images are in
aerial/ in both. The download's folder sentinel/ holds single dates, which are not read."""
LABELS = LAYOUTS["original"]["labels"]
LAYOUT = (
    "aerial/TILE.tif; split/train_filenames.lst and test_filenames.lst, sentinel-ts/TILE_YEAR.h5, "
    f"{_LABELS}; or the lists at the top, sentinel/TILE.h5 and {LABELS}"
)
_PUBLISHED = f"TreeSatAI-TS as published: {LAYOUT}"
CLOUDS = "sen-2-masks"
VERSION = "1.1.0"  # clouds, years and places since 1.1


def holds_raw(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds the published layout."""
    return find_place(folder, LAYOUTS, "lists", split="train").is_file() and (folder / "aerial").is_dir()


# The beginning of a series' HDF5 keys, the "_" field of its products' names that is the date, and such a name.
_SERIES = {
    "s2": ("sen-2", 2, "S2A_MSIL2A_20200102T102421_..."),
    "s1-asc": ("sen-1-asc", 4, "S1A_IW_GRDH_1SDV_20200103T170841_..."),
}


class TreeSatReader(ArchiveReader):
    """Reads TreeSatAI-TS in its layouts, which may be mixed.

    The lists name the tiles of each split; those on disk are read. A tile in two lists belongs to the one held out.
    Tiles without any genus above 7 % of the area are left out, as in the published reader.
    """

    def __init__(self, root: pathlib.Path) -> None:
        path = find_place(root, LAYOUTS, "labels")
        labels = read_json(path, _PUBLISHED)
        if not isinstance(labels, dict):
            found = f"{path} holds a {type(labels).__name__}"
            raise ValueError(f"{found}, expected tile names with lists of [genus, area]")
        listed = _read_lists(root)
        self._series = _find_series(root, stems(root / "aerial", ".tif"))
        found = {split: [name for name in names if name in self._series] for split, names in listed.items()}
        num_listed, num_found = (sum(map(len, lists.values())) for lists in (listed, found))
        if not num_found:
            raise FileNotFoundError(
                f"none of the {num_listed} tiles listed in {root} is there; expected aerial/TILE.tif and "
                "sentinel-ts/TILE_YEAR.h5 or sentinel/TILE.h5"
            )
        self._labels = {name: _label(path, labels, name) for names in found.values() for name in names}
        super().__init__(CARD, root, {s: [n for n in names if self._labels[n].any()] for s, names in found.items()})
        dropped = num_found - num_tiles(self)
        without = f"; {dropped} without a genus above {MIN_AREA:.0%} left out" if dropped else ""
        counts = ", ".join(f"{split} {len(self.keys(split))}" for split in self.splits())
        self.summary = f"treesatai_ts: {num_found} of {num_listed} listed tiles are in {root} ({counts}{without})"
        tiles = [name for split in self.splits() for name in self.keys(split)]
        # The year of a series is in its file's name.
        facts = [[self._labels[tile].tolist(), self._series[tile]] for tile in tiles]
        self.fingerprint = digest([self.fingerprint, facts])

    def example(self, split: str, key: str) -> Example:
        expected = "a GeoTIFF of 4 bands IR, G, B, R, 304 x 304 pixels, uint8"
        image, place = read_raster(self.root / "aerial" / f"{key}.tif", (4, 304, 304), "uint8", expected)
        # The archive's first band is the infrared, where the sensor's order is R, G, B, NIR.
        aerial = pick_bands(image, CARD.file_bands["aerial"], get_sensor("aerial").bands)
        path = self.root / self._series[key]
        keys = [f"{name}-{kind}" for name, *_ in _SERIES.values() for kind in ("data", "products")]
        arrays = read_hdf5(path, [*keys, CLOUDS], f"an HDF5 file with {keys} and {CLOUDS!r}")
        series = _read_series(path, "s2", arrays) | _read_series(path, "s1-asc", arrays)
        return {"id": key, "aerial": aerial, **place, **series, "tile": self._labels[key]}


def _read_lists(root: pathlib.Path) -> dict[str, list[str]]:
    """Reads tile names by split, each in one split only."""
    taken: set[str] = set()
    lists = {}
    # The parts that are held out come first: a tile that one of them names is not trained on.
    for split in ("test", "val", "train"):
        path = find_place(root, LAYOUTS, "lists", split=split)
        if split == "val" and not path.is_file():  # the original archive has none
            continue
        lines = read_lines(path, _PUBLISHED)
        if strange := [line for line in lines if line == ".tif" or "/" in line or "\\" in line]:
            expected = "one name like Abies_alba_1_1005_WEFL_NLF.tif a line"
            raise ValueError(f"{path}: {strange[0]!r} is not a tile; expected {expected}")
        names = dict.fromkeys(line.removesuffix(".tif") for line in lines)
        lists[split] = [name for name in names if name not in taken]
        taken |= set(names)
    return lists


def _find_series(root: pathlib.Path, tiles: set[str]) -> dict[str, str]:
    """Returns the file of each tile's series, relative to `root`; the download's names have a year after the tile's."""
    found: dict[str, str] = {}
    for folder in (layout["series"].partition("/")[0] for layout in LAYOUTS.values()):
        here: dict[str, str] = {}
        for stem in sorted(stems(root / folder, ".h5")):
            tile = stem if stem in tiles else re.sub(r"_(19|20)\d\d$", "", stem)
            if tile in here:
                raise ValueError(
                    f"{root}: {here[tile]} and {stem}.h5 are of one tile; expected one year, keep that file"
                )
            here[tile] = f"{folder}/{stem}.h5"
        found |= here  # the download's folder sentinel/ holds something else
    return {tile: file for tile, file in found.items() if tile in tiles}


def _label(path: pathlib.Path, labels: dict[str, Any], name: str) -> UInt8[np.ndarray, "15"]:
    """Returns the genera that cover more than 7 % of the tile, multi-hot."""
    if f"{name}.tif" not in labels:
        raise ValueError(f"{path}: no labels of tile {name}.tif, which a split list names")
    hot = np.zeros(len(GENERA), np.uint8)
    try:
        for genus, area in labels[f"{name}.tif"]:
            # A genus may be listed with several areas, of which one suffices.
            hot[GENERA.index(genus)] |= float(area) > MIN_AREA
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: tile {name}.tif has {labels[f'{name}.tif']!r}, expected pairs [genus, area] with a genus of "
            f"{', '.join(GENERA)}"
        ) from error
    return hot


def _read_series(path: pathlib.Path, sensor: str, arrays: Mapping[str, Any]) -> Example:
    """Returns a series in time order, without dates on which nothing was observed."""
    name, date_field, example = _SERIES[sensor]
    where, bands, products = f"{path}: '{name}-data'", get_sensor(sensor).num_bands, arrays[f"{name}-products"]
    expected = f"numbers of shape (dates, {bands}, 6, 6)"
    values = check_array(where, arrays[f"{name}-data"], (None, bands, 6, 6), "fiu", expected)
    if np.shape(products) != values.shape[:1] or not len(values):
        found = f"'{name}-products' is {np.shape(products)}"
        raise ValueError(f"{path}: {found}; expected one name for each of {len(values)} > 0 dates")
    clouds = None
    if sensor in CARD.clouds:
        layers, expected = arrays[CLOUDS], f"percentages of shape ({len(values)}, 2 or more, 6, 6)"
        check_array(path, layers, (len(values), None, 6, 6), "fiu", f"{CLOUDS!r}: {expected}")
        # Snow is as useless as cloud for a forest's spectrum; the file's other eight layers are empty.
        percent = layers[:, :2].max(axis=1, keepdims=True) if layers.shape[1] >= 2 else layers
        if layers.shape[1] < 2 or not (percent >= 0).all() or not (percent <= 100).all():
            found = f"{CLOUDS!r} is {layers.shape} or has values outside 0 to 100"
            raise ValueError(f"{path}: {found}; expected {expected}")
        clouds = np.rint(percent).astype(np.uint8)
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in products]
    days = [day_in_name(text, date_field, f"{path}: '{name}-products'", example) for text in texts]
    # Pixels outside a swath are 0 in all bands; one band that is not finite spoils a pixel.
    finite = np.isfinite(values).all(axis=1, keepdims=True)
    mask = finite & (values != 0).any(axis=1, keepdims=True)
    values = np.where(finite, values, 0)
    if not mask.any():
        raise ValueError(f"{where} is zero or NaN everywhere; expected at least one date with an observation")
    values = values.astype(np.float32)
    if sensor == "s2":
        values = to_uint16(where, values, "digital numbers, 0 to 65535")
    return observed_series(sensor, values, mask, days, clouds)
