"""Datasets opened for training and evaluation, and their batches."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from anysat_jax.batch import Batch
from data_pipelines.batches import WHOLE, BatchMaker, HostShard, InOrder
from data_pipelines.card import DatasetCard
from data_pipelines.locate import find_card, locate
from data_pipelines.options import DatasetOptions
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.prepare.statistics import SPLIT
from data_pipelines.prepare.storage import to_stderr
from data_pipelines.prepared import PreparedDataset, Records
from data_pipelines.transforms import TileTransform
from data_pipelines.windows import window_offsets

if TYPE_CHECKING:
    from data_pipelines.sampler import StepIterator

MOST_WORKERS = 1024  # of which each takes hundreds of megabytes: more is a slip of the keyboard


@dataclasses.dataclass(frozen=True)
class OpenDataset:
    """A prepared dataset and how its tiles become samples."""

    options: DatasetOptions  # of the config's `data.datasets.NAME`, with the dataset's card
    prepared: PreparedDataset
    skip_corrupt: bool = False  # whether tiles with damaged records are left out; otherwise they are an error

    @property
    def name(self) -> str:
        return self.options.card.name

    @property
    def card(self) -> DatasetCard:
        return self.options.card

    def records(self, split: str) -> Records:
        """Returns the examples of a split; raises as `PreparedDataset.records`."""
        return self.prepared.records(split)

    @functools.cached_property
    def training_tiles(self) -> Int32[np.ndarray, "n"]:
        """Positions in the training split of the tiles that training uses: all, or those of the option `fraction`.

        An epoch of training takes each once. The same on every process.
        """
        return chosen_tiles(self.name, len(self.records(SPLIT)), self.options.fraction, self.options.fraction_seed)

    def num_samples(self, split: str, tiles: Sequence[int] | None = None) -> int:
        """Returns the number of samples of `evaluation_batches`: tiles (None: all), times the windows of each.

        Raises:
          ValueError: the dataset has no such split.
        """
        count = len(self.records(split)) if tiles is None else len(tiles)
        return count * len(window_offsets(self.card, self.options.extent))

    def tile_ids(self, split: str, tiles: Sequence[int]) -> list[str]:
        """Returns the names of tiles, for messages, by their positions in a split.

        Raises:
          ValueError: a tile cannot be read.
        """
        records = self.records(split)
        return [bytes(records[int(tile)]["id"]).decode() for tile in tiles]

    def unreadable_tiles(self, split: str, tiles: Sequence[int]) -> list[int]:
        """Returns those of some tiles of a split whose records are corrupt, by their positions. Reads them all."""
        records, found = self.records(split), []
        for tile in tiles:
            try:
                records[int(tile)]
            except CorruptTileError:
                found.append(int(tile))
        return found

    def evaluation_batches(
        self,
        split: str,
        *,
        patch_size: float,
        batch_size: int,
        tiles: Sequence[int] | None = None,
        shard: HostShard = WHOLE,
    ) -> Iterator[Batch]:
        """Yields every sample of a split once, in a fixed order, without augmentation.

        A tile is one sample, or, with the option `extent`, one for each window of it.

        Args:
          patch_size: side of a patch in metres.
          batch_size: samples of a batch over all processes. The last batch is filled up by repeating its last sample;
            the label "valid" is False there, and so it is for samples of tiles that are skipped (`skip_corrupt`), which
            the label "skipped" names.
          tiles: positions in the split of the tiles to take, in that order; None: all.
          shard: the rows that this process reads; all processes get as many batches, of the same shapes.

        Raises:
          ValueError: before the first batch: an unknown split or patch size, a batch size that cannot be cut into equal
            shares, or positions that the split does not have.
        """
        patch_size = self.options.check_patch_size(patch_size)
        _check_divides("batch_size", batch_size, shard)
        maker = self.batch_maker(split)
        positions = None if tiles is None else check_tiles(tiles, len(maker.source))
        return iter(InOrder(maker, batch_size, patch_size, positions, shard))

    def batch_maker(self, split: str) -> BatchMaker:
        """Returns what makes batches of a split."""
        sampling = self.options.sampling
        counts = self.prepared.series_lengths(split) if sampling.date_buckets else None
        transform = TileTransform(self.card, self.prepared.statistics, sampling)
        return BatchMaker(self.records(split), transform, counts, self.skip_corrupt)


def read_options(section: Any) -> dict[str, DatasetOptions]:
    """Returns the options of each dataset of the config's section `data`, by name, sorted by name.

    Nothing is prepared for it.

    Raises:
      ValueError: the section names no dataset, an unknown one, or a value that cannot be; the message names the key.
    """
    if not section.datasets:
        raise ValueError("data.datasets is empty; name at least one dataset")
    if not isinstance(root := section.get("root"), str | None):
        raise ValueError(f"data.root = {root!r} must be a folder or an address, as a text")
    if not isinstance(skip_corrupt := section.get("skip_corrupt", False), bool):
        raise ValueError(f"data.skip_corrupt = {skip_corrupt!r} must be True or False")
    _check_workers(section.get("num_workers", 0))
    cards = {name: find_card(name, section.get("root")) for name in sorted(section.datasets)}
    options = [DatasetOptions.from_section(card, section.datasets[name]) for name, card in cards.items()]
    return {one.card.name: one for one in options}


def open_datasets(section: Any) -> dict[str, OpenDataset]:
    """Opens each dataset of the config's section `data`, by name, sorted by name; prepares those that are not yet.

    Preparing shows a progress bar; a line on stderr names the folder of each dataset.

    Raises:
      ValueError, OSError: an option cannot be, or a dataset is unknown, missing, unreadable, or cannot be written.
    """
    return {
        name: OpenDataset(options, locate(name, section.get("root"), to_stderr), section.get("skip_corrupt", False))
        for name, options in read_options(section).items()
    }


def open_dataset(name: str, root: str | None, skip_corrupt: bool = False) -> OpenDataset:
    """Opens one dataset with default options, for evaluation; `name` and `root` as for `locate`, raises as it."""
    prepared = locate(name, root, to_stderr)
    return OpenDataset(DatasetOptions(prepared.card), prepared, skip_corrupt)


def train_iterator(
    datasets: Mapping[str, OpenDataset], *, seed: int, shard: HostShard = WHOLE, num_workers: int = 0
) -> "StepIterator":
    """Returns this process' share of the training batches, without end.

    The k-th batch depends on the options, the seed and k alone: with several processes, their k-th batches are of one
    dataset, one patch size and one shape, and are the rows of the single process' batch.

    The batches have numpy arrays of this process' tiles, the rows of `shard`. The label "index" is the tile's position
    in the split. With `skip_corrupt`, the label "skipped" is the tile that cannot be read and that this one replaces,
    or -1. `seed` is of order, augmentation and patch sizes; `num_workers` processes read ahead, or threads if it is 0.

    Raises:
      ValueError: a dataset has no training split, a batch size cannot be cut into equal shares, or `num_workers` is
        negative or above 1024.
    """
    # grain takes a second to import.
    from data_pipelines.sampler import StepIterator, Stream, mixture

    _check_workers(num_workers)
    streams = []
    # Sorted, so that the order in a config file does not change the batches.
    for name in sorted(datasets):
        dataset = datasets[name]
        _check_divides(f"data.datasets.{name}.batch_size", dataset.options.batch_size, shard)
        maker = dataset.batch_maker(SPLIT)
        # All tiles need no list of positions, which would be sent to every worker process.
        positions = None if dataset.options.fraction == 1 else dataset.training_tiles
        size = len(maker.source if positions is None else positions)
        streams.append(Stream(size, dataset.options, maker.training, seed=seed, shard=shard, positions=positions))
    return StepIterator(mixture(streams, seed), num_workers=num_workers)


def chosen_tiles(name: str, size: int, fraction: float, seed: int) -> Int32[np.ndarray, "n"]:
    """Returns the positions of the tiles that training uses, in rising order; at least one.

    All tiles are put in an order that depends on name, size and seed alone, and the first ones are taken: so 1 percent
    lies within 10 percent, and every process takes the same. The training split of the dataset `name` has `size` tiles,
    at least one; `fraction` is above 0 and at most 1.
    """
    # crc32, as Python's hash of a text differs between processes.
    order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(size)
    return np.sort(order[: max(1, round(fraction * size))]).astype(np.int32)


def check_tiles(tiles: Sequence[int], size: int) -> Int32[np.ndarray, "n"]:
    """Returns `tiles` as an array if they are different positions in a split of `size` tiles.

    Raises:
      ValueError: they are not.
    """
    positions = np.asarray(tiles, np.int64)
    wrong = positions[(positions < 0) | (positions >= size)]
    if wrong.size or len(np.unique(positions)) < len(positions):
        problem = f"{wrong[0]} is outside" if wrong.size else "one comes twice"
        raise ValueError(f"tiles are to be different positions in a split of {size}; {problem}")
    return positions.astype(np.int32)


def _check_workers(count: Any) -> None:
    if not isinstance(count, int) or not 0 <= count <= MOST_WORKERS:
        raise ValueError(f"data.num_workers = {count!r} must be 0 (threads) or more, and at most {MOST_WORKERS}")


def _check_divides(key: str, batch_size: int, shard: HostShard) -> None:
    if batch_size < 1 or batch_size % shard.count:
        parts = f"{shard.count}, the parts it is cut into"
        raise ValueError(f"{key} is {batch_size}; it must be a positive multiple of {parts}")
