"""Prepared datasets as they are read: ArrayRecord files in TFDS' layout and the statistics beside them."""

import dataclasses
import hashlib
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example, check_essentials, read_card
from data_pipelines.prepare.plan import PLAN_FILE, Plan
from data_pipelines.prepare.records import CorruptTileError, RecordParser, UnreadableTileError
from data_pipelines.prepare.statistics import STATISTICS_FILE, SensorStatistics, load_statistics, mean_and_std
from data_pipelines.prepare.storage import check_manifest
from data_pipelines.windows import Block, block_card, join_blocks

LENGTHS_FILE = "series_lengths.npz"


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the examples of one split, in the order in which they were written."""

    card: DatasetCard
    split: str
    folder: pathlib.Path
    source: Any
    parse: RecordParser

    def __len__(self) -> int:
        return len(self.source) // self.card.blocks**2

    def __getitem__(self, index: int) -> Example:
        """Returns the example at a position.

        Raises:
          UnreadableTileError: the files are damaged; the message names folder, split and tile.
        """
        return join_blocks(self.card, [self._record(index, number) for number in range(self.card.blocks**2)])

    def blocks(self, index: int, numbers: Sequence[int]) -> list[Block]:
        """Returns some blocks of the example at a position, by their numbers; raises as `[index]`."""
        side, places = self.card.extent / self.card.blocks, [divmod(number, self.card.blocks) for number in numbers]
        records = (self._record(index, number) for number in numbers)
        return [Block(one, side, (row * side, column * side)) for one, (row, column) in zip(records, places)]

    def _record(self, index: int, block: int) -> Example:
        try:
            return self.parse(self.source[index * self.card.blocks**2 + block])
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            # ArrayRecord raises RuntimeError for all faults: a missing file differs from a damaged record by its text.
            kind = UnreadableTileError if "No such file" in str(error) else CorruptTileError
            raise kind(
                f"dataset {self.card.name!r}: tile {index} of split {self.split!r} cannot be read ({error}); delete "
                f"{self.folder} and prepare it again"
            ) from error


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder, checked and open."""

    card: DatasetCard
    folder: pathlib.Path
    statistics: dict[str, SensorStatistics]
    limit: int | None = None  # most tiles of each split that were prepared; None: all

    @classmethod
    def open(cls, card: DatasetCard, folder: pathlib.Path) -> "PreparedDataset":
        """Opens a prepared folder.

        Raises:
          FileNotFoundError, ValueError: the statistics are missing or of other sensors or bands, the card of the folder
            has other arrays or classes, or a file is missing or not as it was written.
        """
        # The manifest comes last: errors of single files name a better remedy.
        statistics = load_statistics(folder, card)
        check_essentials(folder, read_card(folder)[1], card)
        path = folder / PLAN_FILE
        try:
            limit = Plan.from_json(path.read_bytes()).facts.limit
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}; delete {folder} and prepare it again") from error
        check_manifest(folder)
        return cls(card, folder, statistics, limit)

    def records(self, split: str) -> Records:
        """Opens the examples of a split.

        Raises:
          ValueError: the dataset has no such split, or its metadata cannot be read.
        """
        import tensorflow_datasets as tfds
        from google.protobuf.json_format import ParseError
        from tensorflow_datasets.core.decode import DeserializeMethod

        try:
            builder = tfds.builder_from_directory(self.folder)
            splits = builder.info.splits
            raw = DeserializeMethod.RAW_BYTES
            source = builder.as_data_source(split=split, deserialize_method=raw) if split in splits else None
        except (ParseError, ValueError, OSError, KeyError, TypeError, RecursionError, ImportError) as error:
            # TFDS checks no type of features.json, and imports TensorFlow for dtypes that numpy does not have.
            remedy = f"delete {self.folder} and prepare it again"
            raise ValueError(f"dataset {self.card.name!r}: the metadata cannot be read ({error}); {remedy}") from error
        if source is None:
            raise ValueError(
                f"dataset {self.card.name!r} has no split {split!r} in {self.folder}; it has {sorted(splits)}"
            )
        return Records(self.card, split, self.folder, source, RecordParser(block_card(self.card)))

    @property
    def mean_and_std(self) -> dict[str, dict[str, list[float]]]:
        """Mean and standard deviation of each sensor's bands, in native units, as JSON values."""
        return mean_and_std(self.statistics)

    @property
    def facts(self) -> dict[str, Any]:
        """Version, number and digest of the tiles, as JSON values that do not depend on where they were prepared."""
        facts = Plan.from_json((self.folder / PLAN_FILE).read_bytes()).facts
        content = "".join([facts.keys, facts.card, (self.folder / STATISTICS_FILE).read_text(encoding="utf-8")])
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return {"version": facts.version, "limit": facts.limit, "tiles": facts.tiles, "tiles_digest": digest}

    def series_lengths(self, split: str) -> dict[str, Int32[np.ndarray, "N"]]:
        """Returns the dates of each series of each tile of a split, in the order of the records; 0: the tile lacks it.

        Raises:
          ValueError: the dataset has no such split, or the numbers are missing or damaged.
        """
        path = self.folder / LENGTHS_FILE
        names = [name for name in self.card.sensors if get_sensor(name).has_dates]
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[f"{split}/{name}"] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            remedy = f"delete {self.folder} and prepare it again"
            raise ValueError(
                f"dataset {self.card.name!r}: no numbers of dates of split {split!r} in {path} ({error}); {remedy}"
            ) from error


def save_lengths(folder: pathlib.Path, lengths: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Writes the number of dates of each series of each tile, by split."""
    arrays = {
        f"{split}/{name}": np.asarray(counts, np.int32)
        for split, one in lengths.items()
        for name, counts in one.items()
    }
    np.savez_compressed(folder / LENGTHS_FILE, **arrays)
