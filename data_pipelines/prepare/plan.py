"""The plan of a preparation: which tiles go to which shard, and a fingerprint of all that decides it."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.card import Example, essentials
from data_pipelines.reader import Reader

FILE_NAME = "plan.json"
FORMAT = 3  # of the prepared folder; raise it when what is written changes
SHARD_BYTES = 128 * 2**20  # a pool stays busy, and a crash loses little
LARGEST_SHARD = 512 * 2**20
MANY_SHARDS = 256  # of a split; with more, shards grow until LARGEST_SHARD, as a reader keeps each file open
NUM_PROBES = 3  # tiles read to learn how large they are


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of a split: the tiles from `start` to `stop`.

    Attributes:
      dataset: name of the dataset.
      split: name of the split.
      number, count: which of the split's files it is.
      start, stop: positions of its tiles in the reader's list.
    """

    dataset: str
    split: str
    number: int
    count: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """As TFDS names it."""
        return f"{self.dataset}-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"

    @property
    def part_name(self) -> str:
        """The record of what the shard holds."""
        return f"{self.file_name}.npz"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a preparation is to write.

    Attributes:
      facts: all that decides what is written; leftovers are taken up where they are equal.
      starts: for each split the position of each shard's first tile, and last the number of tiles.
      tile_bytes: how large a tile is, about.
    """

    facts: Mapping[str, Any]
    starts: Mapping[str, tuple[int, ...]]
    tile_bytes: int

    @property
    def limit(self) -> int | None:
        """First tiles of each split that are taken; None: all."""
        return self.facts["limit"]

    def shards(self) -> list[Shard]:
        """All shards, in order."""
        name = self.facts["dataset"]
        return [
            Shard(name, split, number, len(starts) - 1, start, stop)
            for split, starts in self.starts.items()
            for number, (start, stop) in enumerate(itertools.pairwise(starts))
        ]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """The plan of `to_json`.

        Raises:
          ValueError: it is something else.
        """
        try:
            content = json.loads(text)
            starts = {split: tuple(map(int, positions)) for split, positions in content["starts"].items()}
            plan = cls({key: content["facts"][key] for key in _FACTS}, starts, int(content["tile_bytes"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no plan of a preparation ({type(error).__name__}: {error})") from error
        return plan


_FACTS = ("format", "dataset", "version", "limit", "source", "reader", "tiles", "keys", "card")


def plan_facts(
    reader: Reader, version: str, keys: Mapping[str, Sequence[str]], limit: int | None, source: str | None
) -> dict[str, Any]:
    """All that decides what is written.

    Args:
      reader: of the raw data; its `fingerprint`, if it has one, is part of the facts.
      version: of the prepared dataset.
      keys: of the tiles to write, by split, as `chosen_keys` gives them.
      limit: first tiles of each split that are taken; None: all.
      source: where the raw data are, in words.

    Raises:
      ValueError: the name, a split or the version would not do as part of a file name.
    """
    card = reader.card
    _check_names(card.name, version, tuple(keys))
    return {
        "format": FORMAT,
        "dataset": card.name,
        "version": version,
        "limit": limit,
        "source": source or "",
        "reader": f"{type(reader).__module__}.{type(reader).__qualname__}",
        "tiles": {split: len(names) for split, names in keys.items()},
        "keys": _digest([dict(keys), getattr(reader, "fingerprint", "")]),
        "card": _digest(essentials(card)),
    }


def chosen_keys(reader: Reader, limit: int | None) -> dict[str, list[str]]:
    """Keys of the tiles to write: of each split all, or the first `limit`.

    Raises:
      ValueError: the limit is not positive, or a key comes twice.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be positive, or None for all tiles")
    chosen: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for split in reader.splits():
        chosen[split] = list(reader.keys(split)[:limit])
        for key in chosen[split]:
            if key in owners:
                where = f"twice in split {split!r}" if owners[key] == split else f"in {owners[key]!r} and {split!r}"
                raise ValueError(f"dataset {reader.card.name!r}: tile {key!r} comes {where}")
            owners[key] = split
    return {split: names for split, names in chosen.items() if names}


def make_plan(facts: Mapping[str, Any], tile_bytes: int) -> Plan:
    """Cuts each split into shards of nearly equal numbers of tiles.

    Args:
      facts: of `plan_facts`.
      tile_bytes: how large a tile is.
    """
    starts = {}
    for split, tiles in facts["tiles"].items():
        total = tiles * tile_bytes
        size = min(max(SHARD_BYTES, total // MANY_SHARDS), LARGEST_SHARD)
        count = min(tiles, -(-total // size))
        starts[split] = tuple(number * tiles // count for number in range(count + 1))
    return Plan(facts, starts, tile_bytes)


def probe_positions(tiles: int) -> list[int]:
    """Positions of the tiles to measure, spread over a split."""
    return np.unique(np.linspace(0, tiles - 1, min(tiles, NUM_PROBES)).astype(int)).tolist()


def num_bytes(example: Example) -> int:
    """Bytes of an example's arrays."""
    return max(1, sum(np.asarray(value).nbytes for value in example.values()))


def _check_names(dataset: str, version: str, splits: Sequence[str]) -> None:
    """No name may lead out of its folder, or be read by TFDS as something else."""
    for what, name in (("name", dataset), *(("split", split) for split in splits)):
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name):
            raise ValueError(f"dataset {dataset!r}: {what} {name!r} is no name for files; take letters, digits and _")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"dataset {dataset!r}: version {version!r} must be three numbers like 1.0.0")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
