"""The tiles to look at: read from an archive, or from what `prepare` wrote."""

import dataclasses
from collections.abc import Callable

from data_pipelines.card import DatasetCard, Example, Reader
from data_pipelines.features import check_example
from data_pipelines.locate import find_prepared


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


def prepared_tiles(name: str, root: str, split: str) -> Tiles:
    """A split of a prepared dataset.

    Args:
      name: the dataset's; one that is not registered is found by the card beside the data.
      root: folder that holds `<name>/<version>`, or the address of one.
      split: the split's name.

    Raises:
      FileNotFoundError: the dataset is not prepared there.
      ValueError: it has no such split, or cannot be read.
    """
    prepared = find_prepared(name, root)
    if prepared is None:
        raise FileNotFoundError(f"{name} is not prepared in {root}; `python -m data_pipelines prepare` does that")
    card, records = prepared.card, prepared.records(split)
    return Tiles(card, split, len(records), lambda n: as_read(card, records[n]), f"prepared in {prepared.folder}")


def as_read(card: DatasetCard, complete: Example) -> Example:
    """A prepared example without the empty arrays of sensors that the tile lacks."""
    absent = [name for name in card.optional if not complete[f"{name}_present"]]
    fields = {f"{name}{end}" for name in absent for end in ("", "_dates", "_years", "_mask", "_cloud")}
    flags = {f"{name}_present" for name in card.optional}
    texts = {key: _text(complete[key]) for key in ("id", "crs") if key in complete}
    return {key: value for key, value in complete.items() if key not in fields | flags} | texts


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
