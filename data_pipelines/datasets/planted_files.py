"""PLANTED as `.npz` files: {split}/labels2.json and, for each tile, {split}/ID/ID_SENSOR{,_mask,_timestamp}.npz."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.card import Example
from data_pipelines.datasets.planted_series import CARD, class_number, read_series
from data_pipelines.files import inside, read_json, read_npz
from data_pipelines.reader import ArchiveReader

LABELS = "labels2.json"
FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
_ARRAY = "arr_0"


def label_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The labels of each split that is there."""
    paths = {split: [root / name / LABELS for name in names] for split, names in FOLDERS.items()}
    return {split: path for split, several in paths.items() for path in several if path.is_file()}


class PlantedFiles(ArchiveReader):
    """Reads PLANTED from one folder of `.npz` files for each tile."""

    card = CARD

    def __init__(self, root: pathlib.Path) -> None:
        """Args:
          root: folder of the splits.

        Raises:
          FileNotFoundError: not one labelled tile is there.
          ValueError: the labels are not as expected.
        """
        self._folders: dict[str, pathlib.Path] = {}
        self._labels: dict[str, np.int32] = {}
        tiles, num_listed = {}, 0
        for split, path in label_files(root).items():
            labels = _read_labels(path)
            present = set(os.listdir(path.parent))
            num_listed += len(labels)
            self._folders[split] = path.parent
            tiles[split] = [name for name in labels if name in present]
            self._labels |= {name: labels[name] for name in tiles[split]}
        super().__init__(root, tiles)
        self.summary += f", of {num_listed:,} labelled ones"

    @property
    def fingerprint(self) -> str:
        """Changes with the tiles, their splits and their labels."""
        labels = [int(self._labels[key]) for split in self.splits() for key in self.keys(split)]
        return hashlib.sha256(json.dumps([super().fingerprint, labels]).encode()).hexdigest()

    def example(self, split: str, key: str) -> Example:
        """One tile.

        Raises:
          FileNotFoundError, ValueError: a file is missing, unreadable or not as expected; the message names it.
        """
        folder = inside(self._folders[split], key)
        present = {path.name for path in folder.iterdir()}
        example: Example = {"id": key, "tile": self._labels[key]}
        for sensor in CARD.sensors:
            if f"{key}_{sensor}.npz" in present:
                example |= _read_sensor(folder, key, sensor)
        return example


def _read_labels(path: pathlib.Path) -> Mapping[str, np.int32]:
    labels = read_json(path, "class numbers of tiles, {ID: 0...39}")
    if not isinstance(labels, dict) or not all(type(number) is int for number in labels.values()):
        raise ValueError(f"{path} is not of the form {{ID: class number}}; expected whole numbers from 0 to 39")
    for name in labels:  # a million of them: only what is more than a name is looked at twice
        if "/" in name or not name.strip("."):
            inside(path.parent, name)
    return {name: class_number(f"{path}, tile {name!r}", number) for name, number in labels.items()}


def _read_sensor(folder: pathlib.Path, key: str, sensor: str) -> Example:
    paths = [folder / f"{key}_{sensor}{suffix}.npz" for suffix in ("", "_mask", "_timestamp")]
    values, mask, stamps = (_read_array(path) for path in paths)
    return read_series(str(paths[0]), sensor, values, mask, stamps)


def _read_array(path: pathlib.Path) -> np.ndarray:
    arrays = read_npz(path, f"a .npz file with the array {_ARRAY!r}")
    if _ARRAY not in arrays:
        raise ValueError(f"{path} holds {sorted(arrays)}; expected the array {_ARRAY!r}")
    return arrays[_ARRAY]
