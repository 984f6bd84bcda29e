"""PLANTED: 120 m tiles of planted forest all over the world, five satellites' time series, 40 species."""

import pathlib
import sys

from data_pipelines.datasets.planted_files import LABELS, PlantedFiles, label_files
from data_pipelines.datasets.planted_records import SPECIES, PlantedRecords, record_files, write_species
from data_pipelines.datasets.planted_series import CARD

__all__ = ["CARD", "LAYOUT", "holds_raw", "open_reader"]

LAYOUT = f"*train*.tfrecord-*-of-*, validation and test likewise, and {SPECIES}; or {{train,val,test}}/{LABELS}"


def holds_raw(folder: pathlib.Path) -> bool:
    """Whether a folder holds one of the two layouts."""
    return bool(label_files(folder) or record_files(folder))  # the latter lists the folders below


def open_reader(root: pathlib.Path) -> PlantedRecords | PlantedFiles:
    """The reader of the raw data in `root`: of TFRecords where there are any, else of `.npz` files."""
    return PlantedFiles(root) if label_files(root) and not record_files(root) else PlantedRecords(root)


if __name__ == "__main__":
    print(write_species(pathlib.Path(sys.argv[1])))
