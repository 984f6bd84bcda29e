"""The tiles to look at: read from an archive, or from what `prepare` wrote."""

import dataclasses
import pathlib
from collections.abc import Callable

from data_pipelines.card import DatasetCard, Example, Reader
from data_pipelines.features import check_example
from data_pipelines.prepared import PreparedDataset, prepared_folder


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of a split.

    Attributes:
      card: the dataset's facts.
      split: the split's name.
      count: how many there are.
      read: gives the tile at a position, as a reader gives it.
      origin: where they come from, in words.
    """

    card: DatasetCard
    split: str
    count: int
    read: Callable[[int], Example]
    origin: str


def raw_tiles(reader: Reader, split: str) -> Tiles:
    """A split of an archive.

    Raises:
      ValueError: there is no tile of that split.
    """
    if split not in reader.splits():
        raise ValueError(f"{reader.card.name} has no tiles of split {split!r}; there are {', '.join(reader.splits())}")
    keys = reader.keys(split)

    def read(position: int) -> Example:
        example = reader.example(split, keys[position])
        check_example(reader.card, keys[position], example)
        return example

    return Tiles(reader.card, split, len(keys), read, getattr(reader, "summary", "made by this project's code"))


def prepared_tiles(card: DatasetCard, root: pathlib.Path, version: str, split: str) -> Tiles:
    """A split of a prepared dataset.

    Args:
      card: the dataset's facts.
      root: what holds `<name>/<version>`, or that folder itself.
      version: of the reader's output.
      split: the split's name.

    Raises:
      FileNotFoundError: the dataset is not prepared there.
      ValueError: it has no such split.
    """
    below = prepared_folder(root, card.name, version)
    folder = root if (root / "statistics.json").is_file() else below
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{card.name} is not prepared in {root}: no {below}; `python -m data_pipelines prepare` writes it"
        )
    records = PreparedDataset.open(card, folder).records(split)
    return Tiles(card, split, len(records), lambda position: as_read(card, records[position]), f"prepared in {folder}")


def as_read(card: DatasetCard, complete: Example) -> Example:
    """A prepared example without the empty arrays of sensors that the tile lacks."""
    absent = [name for name in card.optional if not complete[f"{name}_present"]]
    fields = {f"{name}{end}" for name in absent for end in ("", "_dates", "_years", "_mask", "_cloud")}
    flags = {f"{name}_present" for name in card.optional}
    texts = {key: _text(complete[key]) for key in ("id", "crs") if key in complete}
    return {key: value for key, value in complete.items() if key not in fields | flags} | texts


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
