"""Where FLAIR's files are: folders of images, labels and Sentinel-2 series, by domain and area."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping

from data_pipelines.files import read_json, stems

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


@dataclasses.dataclass(frozen=True)
class Area:
    """A stretch of land with its tiles.

    Attributes:
      domain: name of its domain, e.g. "D004_2021".
      name: its own, e.g. "Z1_NN".
      images, labels: the numbers of the tiles that have one, as in the file names, in numerical order.
      series: the path of its Sentinel-2 series, up to "data.npy"; "" for none.
    """

    domain: str
    name: str
    images: tuple[str, ...]
    labels: frozenset[str]
    series: str


def choose_folders(root: pathlib.Path, candidates: tuple[Folders, ...]) -> Folders | None:
    """The first of the candidates whose images are there."""
    return next((folders for folders in candidates if (root / folders.aerial).is_dir()), None)


def find_areas(root: pathlib.Path, folders: Folders) -> Iterator[Area]:
    """The areas of a part, in a fixed order; each folder is listed once."""
    for domain in _folders_in(root / folders.aerial, DOMAIN):
        for name in _folders_in(root / folders.aerial / domain, AREA):
            images = _numbers(file_folder(root / folders.aerial / domain / name, "img"), "IMG_")
            labels = _numbers(file_folder(root / folders.labels / domain / name, "msk"), "MSK_")
            series = _series(root, file_folder(root / folders.sentinel / domain / name, "sen"))
            yield Area(domain, name, tuple(sorted(images, key=int)), frozenset(labels), series)


def file_folder(area: pathlib.Path, kind: str) -> pathlib.Path:
    """Where an area's files are: in a folder `kind` of its own, or right in the area's."""
    return area / kind if (area / kind).is_dir() else area


def _folders_in(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []


def _numbers(folder: pathlib.Path, prefix: str) -> set[str]:
    return {number for number in stems(folder, ".tif", prefix) if number.isdecimal()}


def _series(root: pathlib.Path, folder: pathlib.Path) -> str:
    found = sorted(stems(folder, DATA))
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} files *{DATA}; expected the one series of the area")
    return str((folder / found[0]).relative_to(root)) if found else ""


def read_splits(root: pathlib.Path) -> dict[str, str] | None:
    """The split of each domain as `splits.json` lists them; None without that file.

    Raises:
      ValueError: it is no JSON, or no lists of domains, or names one twice.
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
    """The file of the centroids, and by tile number (row, column) of its middle in the area's Sentinel-2 series.

    Raises:
      FileNotFoundError, ValueError: it is missing, or no JSON of image names with two whole numbers each.
    """
    path = next((root / name for name in CENTROIDS if (root / name).is_file()), root / CENTROIDS[0])
    expected = "FLAIR #2's places of the images in the Sentinel-2 series, like {'IMG_000001.tif': [56, 85]}"
    table = read_json(path, expected)
    try:
        places = {name[4:-4]: (int(row), int(column)) for name, (row, column) in table.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{path} is not as published; expected {expected}") from None
    return path, places
