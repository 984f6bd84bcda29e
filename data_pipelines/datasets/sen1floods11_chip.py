"""Sen1Floods11's sample, a chip that comes with its git repository: windows of 640 m, trained left and tested right."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from data_pipelines.card import Example
from data_pipelines.datasets import sen1floods11
from data_pipelines.datasets.sen1floods11 import METADATA, SIDE, Sen1FloodsReader, is_sample
from data_pipelines.reader import ArchiveReader

WINDOW = 64  # pixels
VAL_COLUMN = 3  # of the chip's eight columns of windows; those left of it are for training
TEST_COLUMN = 4  # and all from here on for testing

CARD = dataclasses.replace(
    sen1floods11.CARD,
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
        *(note for note in sen1floods11.CARD.notes if note.startswith(("The third", "s1 is", "Pixels", "Colours"))),
    ),
    url="https://github.com/cloudtostreet/Sen1Floods11/tree/master/sample",
)

FOLDER = "sen1floods11"
LAYOUT = f"{METADATA}, sample/S1/*_S1Hand.tif, sample/S2/*_S2Hand.tif, sample/Labels/*_LabelHand.tif"


def _base(folder: pathlib.Path) -> pathlib.Path:
    return folder / FOLDER if is_sample(folder / FOLDER) else folder


def holds_raw(folder: pathlib.Path) -> bool:
    """Whether a folder is the git repository with its sample, or holds it as a folder sen1floods11."""
    return is_sample(_base(folder))


def open_reader(root: pathlib.Path) -> "ChipReader":
    """The reader of the raw data in `root`."""
    return ChipReader(root)


class ChipReader(ArchiveReader):
    """Reads the sample window by window; a window that a sensor has not seen lacks that sensor."""

    card = CARD

    def __init__(self, root: pathlib.Path) -> None:
        """Args:
          root: the git repository's folder, or one that holds it as sen1floods11.

        Raises:
          FileNotFoundError, ValueError: as `Sen1FloodsReader`.
        """
        self._chips = Sen1FloodsReader(_base(root))
        self._latest: tuple[str, Example] | None = None  # the windows of a chip come one after another
        super().__init__(root, _windows(self._chips.keys("train")))

    @property
    def fingerprint(self) -> str:
        """Changes with the chips and their dates."""
        return self._chips.fingerprint

    def example(self, split: str, key: str) -> Example:
        """One window; its key is "chip/row/column", counted in windows.

        Raises:
          FileNotFoundError, ValueError: a file is missing, unreadable or not as published, or no sensor has seen the
            window; the message names it.
          ImportError: rasterio is not installed.
        """
        name, row, column = key.split("/")
        window = cut_window(self._chip(name), int(row) * WINDOW, int(column) * WINDOW)
        if not any(sensor in window for sensor in self.card.sensors):
            raise ValueError(f"{self.root}: no sensor has seen the window {key} of the sample; leave it out")
        return window | {"id": key}

    def _chip(self, name: str) -> Example:
        latest = self._latest
        if latest is None or latest[0] != name:
            latest = self._latest = (name, self._chips.example("train", name))
        return latest[1]


def split_of(column: int) -> str:
    """The split of a column of windows."""
    return "train" if column < VAL_COLUMN else "val" if column < TEST_COLUMN else "test"


def _windows(chips: Sequence[str]) -> dict[str, list[str]]:
    """Keys of each split's windows, row by row."""
    keys: dict[str, list[str]] = {split: [] for split in CARD.splits}
    count = SIDE // WINDOW
    for chip in chips:
        for row, column in np.ndindex(count, count):
            keys[split_of(column)].append(f"{chip}/{row}/{column}")
    return keys


def cut_window(chip: Example, top: int, left: int) -> Example:
    """The window of a chip whose upper left pixel is (top, left), without the sensors that have not seen it."""
    part = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
    window = chip | {"dense": chip["dense"][part], "transform": _moved(chip["transform"], top, left)}
    for sensor in (name for name in CARD.sensors if name in chip):
        fields = {key: chip[key][part] for key in (sensor, f"{sensor}_mask")}
        if fields[f"{sensor}_mask"].any():
            window |= fields
        else:
            window = {key: value for key, value in window.items() if key.partition("_")[0] != sensor}
    return window


def _moved(transform: Float64[np.ndarray, "6"], top: int, left: int) -> Float64[np.ndarray, "6"]:
    """The affine map of a grid that begins at another pixel."""
    a, b, c, d, e, f = transform
    return np.asarray([a, b, c + a * left + b * top, d, e, f + d * left + e * top])
