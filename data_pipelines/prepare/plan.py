"""The plan of a preparation: its tiles by shard, and a fingerprint of everything that decides what is written."""

import dataclasses
import itertools
import json
import re

import numpy as np

from data_pipelines.card import decode_json, essentials
from data_pipelines.reader import Reader, digest

PLAN_FILE = "plan.json"
FORMAT = 3  # of the prepared folder; raise it when a reader of older folders would misread newer ones
# Small enough to keep many workers busy and to lose little in a crash; beyond MANY_SHARDS of a split they grow up to
# LARGEST_SHARD, as a reader keeps each file open.
SHARD_BYTES, LARGEST_SHARD, MANY_SHARDS = 128 * 2**20, 512 * 2**20, 256
NUM_PROBES = 3  # tiles read to estimate the size of a tile


@dataclasses.dataclass(frozen=True)
class Shard:
    """File `number` of `count` of a split: the tiles from `start` to `stop` in the reader's list of keys."""

    dataset: str
    split: str
    number: int
    count: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        # The scheme of TFDS, which finds the files by it.
        return f"{self.dataset}-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"

    @property
    def stats_name(self) -> str:
        return f"{self.file_name}.json"


@dataclasses.dataclass(frozen=True)
class PlanFacts:
    """Everything that decides what a preparation writes."""

    format: int  # of the prepared folder, FORMAT
    dataset: str
    version: str  # of the prepared dataset, "major.minor.patch"
    limit: int | None  # first tiles taken of each split; None: all
    source: str  # where the raw data are, in words
    reader: str  # qualified name of the reader's class
    tiles: dict[str, int]  # number of tiles of each split
    keys: str  # digest of the tiles' keys and of the reader's fingerprint
    card: str  # digest of the card's essentials


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shards that a preparation writes."""

    facts: PlanFacts  # shards of an interrupted run are reused if its facts are equal
    # For each split the position of each shard's first tile and, last, the number of tiles.
    starts: dict[str, tuple[int, ...]]
    tile_bytes: int  # estimated size of a tile

    def shards(self) -> list[Shard]:
        """Returns all shards, in order."""
        return [
            Shard(self.facts.dataset, split, number, len(starts) - 1, start, stop)
            for split, starts in self.starts.items()
            for number, (start, stop) in enumerate(itertools.pairwise(starts))
        ]

    def to_json(self) -> str:
        """Returns the text of `plan.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Reads the text of `to_json`.

        Raises:
          ValueError: the text is not a plan.
        """
        try:
            return decode_json(text, cls)
        except ValueError as error:
            raise ValueError(f"not a plan of a preparation ({error})") from error


def plan_facts(reader: Reader, version: str, limit: int | None, source: str | None) -> PlanFacts:
    """Collects everything that decides what is written: all tiles of each split, or the first `limit`.

    The reader's `fingerprint`, if it has one, is part of it.

    Raises:
      ValueError: the limit is not positive, a key occurs twice, or the dataset's name, a split or the version cannot be
        part of a file name.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be positive, or None for all tiles")
    card, owners, place = reader.card, {}, f" in {source}" if source else ""
    keys = {split: list(reader.keys(split)[:limit]) for split in reader.splits()}
    for split, key in ((split, key) for split, names in keys.items() for key in names):
        if key in owners:
            where = f"twice in split {split!r}" if owners[key] == split else f"in {owners[key]!r} and {split!r}"
            raise ValueError(f"dataset {card.name!r}{place}: tile {key!r} comes {where}; expected once in all")
        owners[key] = split
    keys = {split: names for split, names in keys.items() if names}
    # A name must neither leave its folder nor change how TFDS parses the file's name.
    for what, name in (("name", card.name), *(("split", split) for split in keys)):
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name):
            raise ValueError(f"dataset {card.name!r}: {what} {name!r} is not a file name; use letters, digits and _")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"dataset {card.name!r}: version {version!r} must be three numbers like 1.0.0")
    return PlanFacts(
        format=FORMAT,
        dataset=card.name,
        version=version,
        limit=limit,
        source=source or "",
        reader=f"{type(reader).__module__}.{type(reader).__qualname__}",
        tiles={split: len(names) for split, names in keys.items()},
        keys=digest([keys, getattr(reader, "fingerprint", "")]),
        card=digest(essentials(card)),
    )


def make_plan(facts: PlanFacts, tile_bytes: int) -> Plan:
    """Cuts each split into shards of nearly equal numbers of tiles, whose size is estimated as `tile_bytes`."""
    starts = {}
    for split, tiles in facts.tiles.items():
        total = tiles * tile_bytes
        size = min(max(SHARD_BYTES, total // MANY_SHARDS), LARGEST_SHARD)
        count = min(tiles, -(-total // size))
        starts[split] = tuple(number * tiles // count for number in range(count + 1))
    return Plan(facts, starts, tile_bytes)


def probe_positions(tiles: int) -> list[int]:
    """Returns positions of up to NUM_PROBES tiles, spread evenly over a split."""
    return np.unique(np.linspace(0, tiles - 1, min(tiles, NUM_PROBES)).astype(int)).tolist()
