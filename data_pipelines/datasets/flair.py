"""FLAIR #2 and #1: 100 m tiles of France; aerial image with heights, Sentinel-2 series, a map of land cover.

No published file was at hand: folders, names and bytes are those of IGN's documentation and code, read from made-up
archives only.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipelines.bands import to_uint16
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series, parse_day
from data_pipelines.files import read_json, read_lines, read_npy, stems
from data_pipelines.rasters import read_raster
from data_pipelines.reader import ArchiveReader, digest, layout_check

DOMAIN, AREA = re.compile(r"D\d{3}_\d{4}"), re.compile(r"Z\d+_[A-Z0-9]+")
DATA = "data.npy"

CENTROIDS = (
    "flair-2_centroids_sp_to_patch.json",
    "flair_2_centroids_sp_to_patch.json",
    "aux-data/flair-2_centroids_sp_to_patch.json",
)
SPLITS = "splits.json"
VAL_DOMAINS = (
    *("D004_2021", "D014_2020", "D029_2021", "D031_2019"),
    *("D058_2020", "D066_2021", "D067_2021", "D077_2021"),
)
"""The domains that IGN's baseline of FLAIR #1 holds back for validation; FLAIR #2 has the same 40 domains."""


@dataclasses.dataclass(frozen=True)
class Folders:
    """The folders of one part of the archive; below each are domains, and in those areas."""

    aerial: str
    labels: str
    sentinel: str


TRAIN_FOLDERS = (
    Folders("flair_aerial_train", "flair_labels_train", "flair_sen_train"),
    Folders("flair_2_aerial_train", "flair_2_labels_train", "flair_2_sen_train"),
    Folders("flair_2_toy_aerial_train", "flair_2_toy_labels_train", "flair_2_toy_sen_train"),
    Folders("data/train-val", "data/train-val", "data/train-val"),
)
TEST_FOLDERS = (
    Folders("flair_2_aerial_test", "flair_2_labels_test", "flair_2_sen_test"),
    Folders("flair_2_toy_aerial_test", "flair_2_toy_labels_test", "flair_2_toy_sen_test"),
    Folders("data/flair#2-test", "data/flair#2-test", "data/flair#2-test"),
    Folders("flair_1_aerial_test", "flair_1_labels_test", "flair_1_sen_test"),
    Folders("data/flair#1-test", "data/flair#1-test", "data/flair#1-test"),
)
"""By preference; of several that are there, the first is read. FLAIR #1 has no Sentinel-2 series."""


def choose_folders(root: pathlib.Path, candidates: tuple[Folders, ...]) -> Folders | None:
    """Returns the first of the candidates whose images exist."""
    return next((folders for folders in candidates if (root / folders.aerial).is_dir()), None)


def find_areas(root: pathlib.Path, folders: Folders) -> Iterator[tuple[str, str, list[str], set[str], str]]:
    """Yields the areas of a part in a fixed order; lists each folder once.

    Yields:
      Names of the domain ("D004_2021") and of the area ("Z1_NN"), the numbers of its images, ascending, and of its
      labels, as in the file names, and the path of its Sentinel-2 series, up to "data.npy"; "" for none.

    Raises:
      ValueError: an area has more than one Sentinel-2 series.
    """
    for domain in _folders_in(root / folders.aerial, DOMAIN):
        for name in _folders_in(root / folders.aerial / domain, AREA):
            images = _numbers(file_folder(root / folders.aerial / domain / name, "img"), "IMG_")
            labels = _numbers(file_folder(root / folders.labels / domain / name, "msk"), "MSK_")
            folder = file_folder(root / folders.sentinel / domain / name, "sen")
            found = sorted(stems(folder, DATA))
            if len(found) > 1:
                raise ValueError(f"{folder} holds {len(found)} files *{DATA}; expected the one series of the area")
            series = str((folder / found[0]).relative_to(root)) if found else ""
            # By number, whether or not all names are padded with zeros.
            yield domain, name, sorted(images, key=int), labels, series


def file_folder(area: pathlib.Path, kind: str) -> pathlib.Path:
    """Returns the folder of an area's files: its subfolder `kind` if there is one, else its own."""
    return area / kind if (area / kind).is_dir() else area


def _folders_in(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []


def _numbers(folder: pathlib.Path, prefix: str) -> set[str]:
    return {number for number in stems(folder, ".tif", prefix) if number.isdecimal()}


def read_splits(root: pathlib.Path) -> dict[str, str] | None:
    """Reads the split of each domain from `splits.json`; None without that file.

    Raises:
      ValueError: it is not JSON, lacks a list of domains, or names a domain twice.
    """
    path = root / SPLITS
    if not path.is_file():
        return None
    expected = '{"train": ["D006_2020", ...], "val": [...], "test": [...]}, every domain once'
    table = read_json(path, expected)
    if not isinstance(table, dict) or not all(isinstance(table.get(split), list) for split in ("train", "val", "test")):
        raise ValueError(f"{path} has no lists 'train', 'val' and 'test'; expected {expected}")
    pairs = [(domain, split) for split in ("train", "val", "test") for domain in table[split]]
    splits = {str(domain): split for domain, split in pairs}
    if len(splits) < len(pairs):
        raise ValueError(f"{path} names {len(pairs) - len(splits)} domains more than once; expected {expected}")
    return splits


def read_centroids(root: pathlib.Path) -> tuple[pathlib.Path, Mapping[str, tuple[int, int]]]:
    """Reads the centroids: their file, and by tile number (row, column) of its centre in the area's Sentinel-2 series.

    Raises:
      FileNotFoundError, ValueError: it is missing, or not JSON of image names with two whole numbers each.
    """
    path = next((root / name for name in CENTROIDS if (root / name).is_file()), root / CENTROIDS[0])
    expected = "FLAIR #2's places of the images in the Sentinel-2 series, like {'IMG_000001.tif': [56, 85]}"
    table = read_json(path, expected)
    try:
        places = {name[4:-4]: (int(row), int(column)) for name, (row, column) in table.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{path} is not as published; expected {expected}") from None
    return path, places


CLASSES = (
    "building",
    "pervious surface",
    "impervious surface",
    "bare soil",
    "water",
    "coniferous",
    "deciduous",
    "brushwood",
    "vineyard",
    "herbaceous vegetation",
    "agricultural land",
    "plowed land",
    "other",
)
NUM_LABELS = 19  # of the full nomenclature; those from 13 on are "other"
SIDE = 512

CARD = DatasetCard(
    name="flair",
    title="FLAIR #2",
    sensors=("aerial-flair", "s2"),
    extent=100.0,
    patch_sizes=(10, 20, 50),
    splits=("train", "val", "test"),
    arrays={"aerial-flair": "uint8", "s2": "uint16"},
    sides={"aerial-flair": SIDE, "dense": SIDE},
    masks={"s2": "pixel"},
    clouds=("s2",),
    optional=("s2",),
    georeferenced="aerial-flair",
    units={
        "aerial-flair": "grey values; elevation: height above ground, 0.2 m a step",
        "s2": "L2A reflectance x 10000",
    },
    dates={"s2": "one year for each area, 56 on average, clouds not removed"},
    tile_label="multi_label",
    tile_classes=CLASSES,
    dense_label="segmentation",
    dense_classes=CLASSES,
    dense_colours=(
        *("#db0e9a", "#938e7b", "#f80c00", "#a97101", "#1553ae", "#194a26", "#46e483", "#f3a60d"),
        *("#660082", "#55ff00", "#fff30d", "#e4df7c", "#000000"),
    ),
    dense_metres=0.2,
    split_rule="by domain: splits.json where there is one; else the published test folders, and of the training "
    f"folders the baseline's {len(VAL_DOMAINS)} validation domains are val",
    natural_colour={"aerial-flair": (0, 1, 2), "s2": (2, 1, 0)},
    size="77,762 tiles of 50 domains, 817 km2, about 95 GB",
    notes=(
        "Labels count from 1 in the files and from 0 here; 13 to 19 (swimming pool, snow, clear cut, mixed, ligneous, "
        "greenhouse, other) are one class, other. The published score leaves that class out; here it is an ordinary "
        "class, so leave it out of a mean to compare.",
        "Images and labels have 512 pixels a side; the 500 in their centre match ten Sentinel pixels.",
        "The multi-label names the classes of all 512 x 512 pixels, as the published code does.",
        "Image and label belong together by the number in their names.",
        "Sentinel-2 comes as one series for each area, larger than it; the tile's part lies around the pixel that "
        "flair-2_centroids_sp_to_patch.json names.",
        "s2_cloud is the larger of the probabilities of snow and cloud; pixels that are zero in all bands are masked, "
        "and dates without any other left out; a tile without any date lacks s2.",
        "FLAIR #1 (no Sentinel-2) reads as well. Where the test sets of both are there, that of #2 is read.",
        "The paper says tiles of 102.4 m, all of an image; its code and this reader use 100 m.",
    ),
    licence="Etalab Open Licence 2.0",
    citation="Garioud et al., FLAIR: a Country-Scale Land Cover Semantic Segmentation Dataset From Multi-Source "
    "Optical Imagery, NeurIPS 2023",
    url="https://ignf.github.io/FLAIR/",
)

LAYOUT = (
    "flair_aerial_train, flair_labels_train, flair_sen_train, the same as flair_2_*_test, in each "
    "DOMAIN/AREA/img/IMG_*.tif, msk/MSK_*.tif and sen/*data.npy, and flair-2_centroids_sp_to_patch.json"
)
holds_raw = layout_check(*(f"{folders.aerial}/" for folders in (*TRAIN_FOLDERS, *TEST_FOLDERS)), enough=any)


class FlairReader(ArchiveReader):
    """Reads FLAIR in its published layout. A tile's key is DOMAIN-AREA-NUMBER; images without labels are left out."""

    def __init__(self, root: pathlib.Path) -> None:
        self._train, self._test = (choose_folders(root, c) for c in (TRAIN_FOLDERS, TEST_FOLDERS))
        self._series: dict[str, str] = {}
        counts = dict.fromkeys(("images", "without labels", "of no split", "without s2"), 0)
        named = read_splits(root)
        tiles: dict[str, list[str]] = {split: [] for split in CARD.splits}
        for folders in (self._train, self._test):
            for domain, area, images, labels, series in find_areas(root, folders) if folders else ():
                whole = [number for number in images if number in labels]
                counts["images"] += len(images)
                counts["without labels"] += len(images) - len(whole)
                split = "test" if folders is self._test else "val" if domain in VAL_DOMAINS else "train"
                if named is not None:
                    # A published test tile is never trained on, whatever its domain's entry in splits.json.
                    there = named.get(domain, "")
                    split = there if (there == "test") == (split == "test") else ""
                if not split:
                    counts["of no split"] += len(whole)
                    continue
                place = f"{domain}-{area}"
                tiles[split] += [f"{place}-{number}" for number in whole]
                if series:
                    self._series[place] = series
                else:
                    counts["without s2"] += len(whole)
        super().__init__(CARD, root, tiles)
        self._centroids, self._places = None, {}
        if self._series:
            self._centroids, places = read_centroids(root)
            # Of 77,762 places, only those of the tiles on disk count for the fingerprint and travel to workers.
            numbers = {key.rsplit("-", 1)[1] for keys in self.tiles.values() for key in keys}
            self._places = {number: place for number, place in places.items() if number in numbers}
        self.summary += f"; {', '.join(f'{count:,} {what}' for what, count in counts.items())}"
        self.fingerprint = digest([self.fingerprint, sorted(self._series.items()), sorted(self._places.items())])

    def example(self, split: str, key: str) -> Example:
        folders = self._test if split == "test" else self._train
        domain, area, number = key.split("-")
        path = file_folder(self.root / folders.aerial / domain / area, "img") / f"IMG_{number}.tif"
        expected = f"a GeoTIFF of 5 bands R, G, B, NIR, elevation, {SIDE} x {SIDE} pixels, uint8"
        image, place = read_raster(path, (5, SIDE, SIDE), "uint8", expected)
        example: Example = {"id": key, "aerial-flair": image, **place}
        path = file_folder(self.root / folders.labels / domain / area, "msk") / f"MSK_{number}.tif"
        expected = f"a GeoTIFF of one band, {SIDE} x {SIDE} pixels, whole numbers from 1 to {NUM_LABELS}"
        (labels,), _ = read_raster(path, (1, SIDE, SIDE), "iu", expected)
        if labels.min() < 1 or labels.max() > NUM_LABELS:
            raise ValueError(f"{path} holds labels {labels.min()} to {labels.max()}; expected {expected}")
        # The rare classes of the full nomenclature, from 13 on, become one, as in the published baseline.
        dense = (np.minimum(labels, len(CLASSES)) - 1).astype(np.int8)
        if series := self._series.get(f"{domain}-{area}"):
            if number not in self._places:
                raise ValueError(f"{self._centroids} does not name IMG_{number}.tif; expected its row and column")
            example |= _read_series(self.root / series, self._places[number])
        return {**example, "dense": dense, "tile": np.isin(np.arange(len(CLASSES)), dense).astype(np.uint8)}


def _read_series(stem: pathlib.Path, place: tuple[int, int]) -> Example:
    """Reads 10 x 10 pixels around a position, in time order, without dates on which nothing was observed.

    Returns {} if no date is left: the tile lacks the sensor.
    """
    path, clouds, products = (stem.with_name(stem.name + end) for end in (DATA, "masks.npy", "products.txt"))
    lines = read_lines(products, "names of Sentinel-2 products, one a line")
    if not lines:
        raise ValueError(f"{products} is empty; expected names of Sentinel-2 products, one a line")
    # The day of S2A_MSIL2A_20210415T105021_...
    days = [parse_day(line[11:19], f"{products}, {line!r}") for line in lines]
    expected = f"reflectances of shape ({len(days)}, 10, height, width), a date for each line of {products.name}"
    # Mapped: a tile needs a few kilobytes of a series of the whole area.
    whole = read_npy(path, (len(days), 10, None, None), "iuf", expected, mapped=True)
    cut = _cut(path, whole, place)
    mask = np.isfinite(cut).all(axis=1, keepdims=True) & (cut != 0).any(axis=1, keepdims=True)
    values = to_uint16(path, np.where(mask, cut, 0), "reflectances x 10000, 0 to 65535")
    height, width = whole.shape[2:]
    expected = f"percentages of snow and cloud of shape ({len(days)}, 2, {height}, {width})"
    both = _cut(clouds, read_npy(clouds, (len(days), 2, height, width), "iuf", expected, mapped=True), place)
    if not ((both >= 0) & (both <= 100)).all():
        raise ValueError(f"{clouds} runs from {both.min():g} to {both.max():g}; expected {expected}, 0 to 100")
    # A pixel is as unusable under snow as under cloud: the larger probability counts.
    percent = np.rint(both.max(axis=1, keepdims=True)).astype(np.uint8)
    return observed_series("s2", values, mask, days, percent)


def _cut(path: pathlib.Path, whole: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """Returns a tile's pixels: five on each side of the pixel corner `place`."""
    # The place is the corner between four pixels: 10 pixels have no middle one.
    row, column = place
    height, width = whole.shape[-2:]
    if not (5 <= row <= height - 5 and 5 <= column <= width - 5):
        raise ValueError(
            f"{path} has {height} x {width} pixels, but the tile's 10 x 10 lie around {place}; expected them inside: "
            "the centroids are of another version, or the series is"
        )
    return np.array(whole[..., row - 5 : row + 5, column - 5 : column + 5])
