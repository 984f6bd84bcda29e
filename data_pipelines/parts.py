"""What is known of a finished shard, kept beside it: from the parts of all shards follow statistics and report."""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.statistics import DatasetStatistics
from data_pipelines.tally import Tally

Lengths = dict[str, Int32[np.ndarray, "N"]]
"""Dates of each series of each tile; 0 where the tile lacks it."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A tile that was left out, and why."""

    split: str
    tile: str
    reason: str


class Part:
    """Gathers what is to be known of a shard while its examples pass by.

    Attributes:
      split: the shard's split.
      statistics: of each sensor's bands.
      tally: counts for the report.
      lengths: dates of each series of each tile.
      skipped: tiles that were left out.
      record_bytes: of the records.
      file_bytes: of the shard's file.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.split = split
        self.tally = Tally(card)
        self.statistics = DatasetStatistics(card)
        self._lengths: dict[str, list[int]] = {s: [] for s in card.sensors if get_sensor(s).has_dates}
        self.examples = 0
        self.skipped: list[Skipped] = []
        self.record_bytes = 0
        self.file_bytes = 0

    @property
    def lengths(self) -> Lengths:
        return {name: np.asarray(counts, np.int32) for name, counts in self._lengths.items()}

    def update(self, example: Example, record_bytes: int) -> None:
        """Adds a complete, checked example."""
        self.examples += 1
        self.record_bytes += record_bytes
        self.tally.update(example)
        for name, counts in self._lengths.items():
            counts.append(len(example[name]))
        self.statistics.update(self.split, example)

    def to_bytes(self) -> bytes:
        """A `.npz` file; the same part always gives the same bytes."""
        facts = {
            "examples": self.examples,
            "record_bytes": self.record_bytes,
            "file_bytes": self.file_bytes,
            "skipped": [dataclasses.asdict(one) for one in self.skipped],
            "tally": self.tally.to_json(),
        }
        arrays = {f"lengths/{name}": counts for name, counts in self.lengths.items()}
        arrays |= {f"statistics/{key}": array for key, array in self.statistics.state().items()}
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, facts=text, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, card: DatasetCard, split: str, content: bytes) -> "Part":
        """The part of `to_bytes`.

        Raises:
          ValueError: it is something else.
        """
        part = cls(card, split)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            part._restore(card, json.loads(arrays["facts"].tobytes()), arrays)
        except Exception as error:  # what a damaged zip file raises is not documented
            raise ValueError(f"it is no record of a finished shard ({type(error).__name__}: {error})") from error
        return part

    def _restore(self, card: DatasetCard, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.examples, self.record_bytes, self.file_bytes = (
            int(facts[key]) for key in ("examples", "record_bytes", "file_bytes")
        )
        self.skipped = [Skipped(**one) for one in facts["skipped"]]
        self.tally = Tally.from_json(card, facts["tally"])
        self._lengths = {name: arrays[f"lengths/{name}"].tolist() for name in self._lengths}
        prefix = "statistics/"
        state = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        self.statistics = DatasetStatistics.restore(card, state)


class Whole:
    """All parts of a dataset, merged in the order of the shards.

    Attributes:
      statistics: of each sensor's bands.
      tallies: counts of each split.
      lengths: dates of each series of each tile, by split.
      shard_lengths: examples of each shard, by split.
      record_bytes, file_bytes: of each split.
      skipped: tiles that were left out.
    """

    def __init__(self, card: DatasetCard, parts: Iterator[Part]) -> None:
        self.statistics = DatasetStatistics(card)
        self.tallies: dict[str, Tally] = {}
        self.shard_lengths: dict[str, list[int]] = {}
        self.record_bytes: dict[str, int] = {}
        self.file_bytes: dict[str, int] = {}
        self.skipped: list[Skipped] = []
        self._lengths: dict[str, list[Lengths]] = {}
        for part in parts:
            self._add(card, part)

    def _add(self, card: DatasetCard, part: Part) -> None:
        split = part.split
        self.tallies.setdefault(split, Tally(card)).merge(part.tally)
        self.shard_lengths.setdefault(split, []).append(part.examples)
        self.record_bytes[split] = self.record_bytes.get(split, 0) + part.record_bytes
        self.file_bytes[split] = self.file_bytes.get(split, 0) + part.file_bytes
        self.skipped += part.skipped
        self._lengths.setdefault(split, []).append(part.lengths)
        self.statistics.merge(part.statistics)

    @property
    def lengths(self) -> dict[str, Lengths]:
        return {
            split: {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
            for split, parts in self._lengths.items()
        }
