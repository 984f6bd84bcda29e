"""A made-up sample of Sen1Floods11: chips in the layout of its git repository."""

import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.sen1floods11 import METADATA, SAMPLE, SIDE
from data_pipelines.datasets.sen1floods11_chip import TEST_COLUMN, VAL_COLUMN, WINDOW
from data_pipelines.fakes.sen1floods11 import write_chip, write_metadata

_ROWS = SIDE // WINDOW
_COLUMNS = {"train": VAL_COLUMN, "val": TEST_COLUMN - VAL_COLUMN, "test": SIDE // WINDOW - TEST_COLUMN}


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes as many chips as give each split its windows, and their metadata.

    Args:
      folder: where to.
      tiles: windows of each split at least; a chip gives 24, 8 and 32.
      seed: of all values. The first chip has no radar in its left quarter.
    """
    rng = np.random.default_rng(seed)
    chips = max(-(-count // (_ROWS * _COLUMNS[split])) for split, count in tiles.items())
    folders = {layer: folder / "sample" / name for layer, name in SAMPLE.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_metadata(folder / METADATA)
    for number in range(chips):
        write_chip(folders, f"Ghana_{number}", number, rng)
