"""A prepared dataset, as it is read: ArrayRecord files in TFDS' layout and the statistics beside them."""

import dataclasses
import pathlib
from typing import Any

from data_pipelines.card import DatasetCard, Example
from data_pipelines.statistics import SensorStatistics, load_statistics


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the examples of one split, in the order in which they were written."""

    dataset: str
    split: str
    folder: pathlib.Path
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The example at a position.

        Raises:
          ValueError: the files are damaged; the message names folder, split and tile.
        """
        try:
            return self.source[index]
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise ValueError(
                f"dataset {self.dataset!r}: tile {index} of split {self.split!r} cannot be read ({error}); delete "
                f"{self.folder} and prepare it again"
            ) from error


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A dataset ready to be read: its card, its folder and its statistics."""

    card: DatasetCard
    folder: pathlib.Path
    statistics: dict[str, SensorStatistics]

    @classmethod
    def open(cls, card: DatasetCard, folder: pathlib.Path) -> "PreparedDataset":
        """Opens a prepared folder.

        Raises:
          FileNotFoundError, ValueError: its statistics are missing or of other sensors or bands.
        """
        return cls(card, folder, load_statistics(folder, card))

    def records(self, split: str) -> Records:
        """The examples of a split.

        Raises:
          ValueError: the dataset has no such split, or its metadata cannot be read.
        """
        return open_records(self.card.name, self.folder, split)


def prepared_folder(base: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """Where the prepared dataset lives below `base`; it exists only when whole."""
    return base / name / version


def open_records(name: str, folder: pathlib.Path, split: str) -> Records:
    """Opens one split of a prepared folder; see `PreparedDataset.records`."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder_from_directory(folder)
    except (ParseError, ValueError, OSError, KeyError) as error:
        remedy = f"delete {folder} and prepare it again"
        raise ValueError(f"dataset {name!r}: the metadata cannot be read ({error}); {remedy}") from error
    splits = builder.info.splits
    if split not in splits:
        raise ValueError(f"dataset {name!r} has no split {split!r} in {folder}; it has {sorted(splits)}")
    return Records(name, split, folder, builder.as_data_source(split=split))
