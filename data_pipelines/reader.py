"""Readers of raw data, their splits, and the entries of the registry."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from data_pipelines.card import DatasetCard, Example


class ArchiveReader:
    """Base of the readers of published archives.

    A subclass takes the archive's folder, lists its tiles, passes them on, and implements `Reader.example`. It raises
      FileNotFoundError: a list or table of the archive is missing, or not one of its tiles is on disk.
      ValueError: a list, a table or a file's name is not as published.
      ImportError: the package for the files' format is not installed.
    """

    def __init__(self, card: DatasetCard, root: pathlib.Path, tiles: Mapping[str, Sequence[str]]) -> None:
        """Takes the archive's card and folder, and the keys of the tiles found, by split.

        Raises:
          FileNotFoundError: there is not a single tile.
        """
        self.card, self.root = card, root
        self.tiles = {split: tuple(tiles.get(split, ())) for split in card.splits}  # in a fixed order
        if not any(self.tiles.values()):
            raise FileNotFoundError(f"{root} holds no tile of {card.name!r}; see {card.url} for the download")
        counts = ", ".join(f"{split} {len(keys):,}" for split, keys in self.tiles.items() if keys)
        self.summary = f"{card.name}: {sum(map(len, self.tiles.values())):,} tiles in {root} ({counts})"
        # Of the tiles and their splits; a subclass adds what else decides the examples.
        self.fingerprint = digest(self.tiles)

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, keys in self.tiles.items() if keys)

    def keys(self, split: str) -> Sequence[str]:
        return self.tiles[split]


def digest(facts: Any) -> str:
    """Returns the SHA-256 of what JSON can hold, for fingerprints."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def hashed_split(name: str, val: float, test: float = 0.0, seed: int = 0) -> str:
    """Returns the split of a tile, or of a group of tiles that must stay together: "train", "val" or "test".

    `val` and `test` are the fractions that are held out, 0 to 1; another seed gives another split. As it depends on
    nothing but the name of the tile or the group, added tiles do not move others.
    """
    # sha256, as Python's hash of a text differs between processes; its first 64 bits are a number in [0, 1).
    number = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64
    return "val" if number < val else "test" if number < val + test else "train"


class Reader(Protocol):
    """Reads one dataset's raw files, each tile on its own.

    A reader is pickled to worker processes: it keeps paths, lists and small tables, no open file.
    It may have `summary`, a line to print when it is opened, and `fingerprint`, a text that changes with the tiles.
    """

    card: DatasetCard

    def splits(self) -> tuple[str, ...]:
        """Returns the card's splits that have tiles."""

    def keys(self, split: str) -> Sequence[str]:
        """Returns the keys of a split's tiles in a fixed order, unique over all splits."""

    def example(self, split: str, key: str) -> Example:
        """Reads one tile; `prepare.shards.read_tile` checks it afterwards.

        Raises:
          ValueError, OSError: a file is missing, unreadable or not as published; the message has its name, the
            expectation and a remedy.
        """


def layout_check(*patterns: str, enough: Callable[[Iterable[bool]], bool] = all) -> Callable[[pathlib.Path], bool]:
    """Returns a check of whether a folder holds the published layout: all of these, or one of them with `enough=any`.

    Patterns are relative to the folder; they are of files, or with "/" at their end of folders.
    """

    def holds(folder: pathlib.Path, pattern: str) -> bool:
        return any(path.is_dir() if pattern.endswith("/") else path.is_file() for path in folder.glob(pattern))

    return lambda folder: enough(holds(folder, pattern) for pattern in patterns)


def num_tiles(reader: Reader) -> int:
    """Returns the number of tiles of all splits."""
    return sum(len(reader.keys(split)) for split in reader.splits())


@dataclasses.dataclass(frozen=True)
class DatasetEntry:
    """A dataset of the registry: its card, and its raw or generated data."""

    card: DatasetCard  # its facts
    # Makes the reader of raw data from their folder; None for data that are generated.
    open_reader: Callable[[pathlib.Path], Reader] | None = None
    # Whether a folder holds the published layout; None for data that are generated.
    holds_raw: Callable[[pathlib.Path], bool] | None = None
    layout: str = ""  # the published layout in words, for errors
    # "major.minor.patch" of the reader's examples; raise it when the same raw data give other examples.
    version: str = "1.0.0"
    code: tuple[str, ...] = ()  # modules that generate the data, which are made again after a change of their text
    source: pathlib.Path | None = None  # default folder of the raw data, of a described folder
    generate: Callable[[], Reader] | None = None  # makes the reader of data that are generated; None for raw data

    def reader(self, folder: pathlib.Path | None = None) -> Reader:
        """Opens the raw or generated data.

        `folder` is the download's, or holds it under the dataset's name; None is the dataset's own `source`.

        Raises:
          ValueError: the data are generated and a folder is given, or they are not and none is known.
          FileNotFoundError: the folder does not exist or does not hold the published layout.
        """
        name, folder = self.card.name, folder or self.source
        if self.generate is not None:
            if folder is not None:
                raise ValueError(f"{name} is made by this project's code, not read from {folder}; leave out --source")
            return self.generate()
        if folder is None or self.open_reader is None:
            where = f"; get it from {self.card.url}" if self.card.url else ""
            raise ValueError(f"{name} is read from a download: give its folder as --source DIR{where}")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; expected that of the download of {name}")
        if (raw := self.find_raw(folder)) is None:
            problem = f"{folder} does not hold {name} as it is published; expected {self.layout}"
            raise FileNotFoundError(f"{problem}{self.found_deeper(folder)}")
        return self.open_reader(raw)

    def find_raw(self, base: pathlib.Path) -> pathlib.Path | None:
        """Returns the folder with the published layout: `base/<name>`, else `base`; None if it is neither."""
        return next(
            (place for place in (base / self.card.name, base) if self.holds_raw and self.holds_raw(place)), None
        )

    def found_deeper(self, base: pathlib.Path) -> str:
        """Returns, for the error of a folder without the layout, a hint at a folder one level up or down with it."""
        tops = [place for place in (base, base / self.card.name) if place.is_dir()]
        # A folder with more names is not one of downloads, and listing it would take long.
        below = itertools.chain.from_iterable(itertools.islice(os.scandir(top), 100) for top in tops)
        near = [base.resolve().parent, *(pathlib.Path(entry.path) for entry in below if entry.is_dir())]
        found = sorted(str(place) for place in near if self.find_raw(place))
        return f"; {' or '.join(found[:3])} does: name that folder" if found else ""
