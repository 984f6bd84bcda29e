"""What the readers of published archives share: a list of tiles for each split."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from data_pipelines.card import DatasetCard, Example


class ArchiveReader:
    """Base of the readers (the Reader of `card.py`): a subclass fills `tiles` and says how one tile is read.

    Attributes:
      card: the dataset's facts; a class attribute of the subclass.
      root: folder of the archive.
      tiles: keys of each split, in a fixed order.
      summary: what was found, a line.
    """

    card: DatasetCard

    def __init__(self, root: pathlib.Path, tiles: Mapping[str, Sequence[str]]) -> None:
        """Args:
          root: folder of the archive.
          tiles: keys of the tiles that are there, by split.

        Raises:
          FileNotFoundError: there is not one tile.
          ValueError: a key stands in two splits, or twice in one.
        """
        self.root = root
        self.tiles = {split: tuple(tiles.get(split, ())) for split in self.card.splits}
        if not any(self.tiles.values()):
            raise FileNotFoundError(f"{root} holds no tile of {self.card.name!r}; see {self.card.url} for the download")
        self._check_unique()
        counts = ", ".join(f"{split} {len(keys):,}" for split, keys in self.tiles.items() if keys)
        self.summary = f"{self.card.name}: {sum(map(len, self.tiles.values())):,} tiles in {root} ({counts})"

    def _check_unique(self) -> None:
        owners: dict[str, str] = {}
        for split, keys in self.tiles.items():
            for key in keys:
                if key in owners:
                    where = f"in {owners[key]!r} and in {split!r}"
                    raise ValueError(f"{self.root}: tile {key!r} is listed {where}; expected once in all")
                owners[key] = split

    @property
    def fingerprint(self) -> str:
        """Changes with the tiles and their splits."""
        return hashlib.sha256(json.dumps(self.tiles).encode()).hexdigest()

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, keys in self.tiles.items() if keys)

    def keys(self, split: str) -> Sequence[str]:
        return self.tiles[split]

    def example(self, split: str, key: str) -> Example:
        raise TypeError(f"{type(self).__name__} does not say how a tile is read")
