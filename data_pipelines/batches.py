"""Batches of a dataset: tiles are read, a window of each is chosen, and the transform writes them side by side."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from anysat_jax.batch import Batch
from anysat_jax.sensors import get_sensor
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.transforms import Rng, TileTransform, padded_lengths
from data_pipelines.windows import Block, Offset, Window, covering_blocks, sample_window, window_offsets


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The rows of a batch that a process reads: runs of rows, by their rising `indices` among `count` equal ones.

    A batch has the same rows whichever process reads them, so that what is sampled for a row, such as its masks, does
    not depend on the number of processes. Processes whose devices hold the same rows have the same shard.

    Raises:
      ValueError: there are no indices, or one is outside 0 to `count` - 1.
    """

    indices: tuple[int, ...] = (0,)
    count: int = 1

    def __post_init__(self) -> None:
        if not self.indices or not all(0 <= index < self.count for index in self.indices):
            what = f"shard {self.indices} of a batch that is cut into {self.count}"
            raise ValueError(f"{what}: indices must be below that")

    def rows(self, batch_size: int) -> Int[np.ndarray, "b"]:
        """Returns the positions of the rows in the whole batch; `count` divides `batch_size`."""
        return np.arange(batch_size).reshape(self.count, -1)[list(self.indices)].reshape(-1)


WHOLE = HostShard()


Pick = tuple[int, np.random.Generator]
"""A tile's position in the split, and the random generator of its augmentation."""


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes batches of one split of a dataset.

    The label "index" is a sample's tile, by its position in the split; where samples are windows of tiles, "window" is
    where they begin, (B, 2) float32, metres from the tile's upper and left edge. Where corrupt tiles are skipped,
    another tile of the batch replaces each, and "skipped" is the tile that it replaces; -1 elsewhere. In an evaluation,
    where a whole batch may be windows of one tile, a row that no tile can replace is left empty.
    """

    source: Any  # the examples, by position; `blocks` reads some blocks of one, where the card's tiles have several
    transform: TileTransform
    # Dates of each tile, for each series; None: each batch is padded for the longest series of the dataset.
    counts: Mapping[str, Int[np.ndarray, "N"]] | None = None
    skip_corrupt: bool = False  # whether corrupt tiles are skipped; otherwise they are an error

    def training(self, picks: Sequence[Pick], all_tiles: Sequence[int], patch_size: float) -> Batch:
        """Returns a batch of the tiles of this process; all processes agree on shapes by the positions of `all_tiles`.

        Raises:
          UnreadableTileError: a tile cannot be read, and is not skipped.
        """
        card, augment = self.transform.card, self.transform.sampling.augment
        batch = self._empty(len(picks), all_tiles, patch_size, training=True)
        for row, (index, rng) in enumerate(picks):
            window = sample_window(card, self.transform.extent, augment, rng)
            found, blocks = self._read_or_replace(index, all_tiles, window)
            self._write(batch, row, (index, found), blocks, window, rng)
        return batch

    @functools.cached_property
    def offsets(self) -> list[Offset]:
        """Offsets of the windows that evaluation takes from a tile."""
        return window_offsets(self.transform.card, self.transform.extent)

    def evaluation(self, samples: Sequence[int], all_samples: Sequence[int], patch_size: float) -> Batch:
        """Returns a batch of samples of this process; sample n is window n % W of tile n // W, of W windows a tile."""
        all_tiles = [sample // len(self.offsets) for sample in all_samples]
        batch = self._empty(len(samples), all_tiles, patch_size, training=False)
        # Windows of one tile follow each other, and often cover the same blocks: these are read once.
        latest, found, blocks = None, -1, []
        for row, sample in enumerate(samples):
            index, number = divmod(sample, len(self.offsets))
            window = Window(self.transform.extent, self.offsets[number])
            wanted = (index, covering_blocks(self.transform.card, window.offset, window.extent))
            if wanted != latest:
                latest = wanted
                try:
                    found, blocks = self._read_or_replace(index, all_tiles, window)
                except CorruptTileError:
                    if not self.skip_corrupt:
                        raise
                    blocks = []
            if blocks:
                self._write(batch, row, (index, found), blocks, window, None)
                continue
            for observation in batch.observations.values():
                # Masked, but what was in the memory may be NaN, and NaN times 0 is NaN.
                observation.values[row] = 0
            batch.labels["index"][row] = batch.labels["skipped"][row] = index
        return batch

    def _read_or_replace(self, index: int, all_tiles: Sequence[int], window: Window) -> tuple[int, list[Block]]:
        """Reads a tile's blocks; in place of a corrupt tile, if these are skipped, those of the next one that is not.

        All processes agree on them.
        """
        # Only tiles of the batch replace others: it may be too short for the series of the rest of the split.
        try:
            return index, self._read(index, window)
        except CorruptTileError:
            place = list(all_tiles).index(index)
            for other in (*all_tiles[place + 1 :], *all_tiles[:place]) if self.skip_corrupt else ():
                with contextlib.suppress(CorruptTileError):
                    return other, self._read(other, window)
            raise

    def _read(self, index: int, window: Window) -> list[Block]:
        card = self.transform.card
        if card.blocks == 1:
            return [Block(self.source[index], card.extent)]
        return self.source.blocks(index, covering_blocks(card, window.offset, window.extent))

    def _empty(self, batch_size: int, all_tiles: Sequence[int], patch_size: float, training: bool) -> Batch:
        transform = self.transform
        series = [name for name in transform.card.sensors if get_sensor(name).has_dates]
        longest = {name: transform.statistics[name].longest_series for name in series}
        # Of the tiles of all processes, which must agree on the shapes.
        counts = None if self.counts is None else {name: self.counts[name][list(all_tiles)] for name in series}
        lengths = padded_lengths(longest, transform.sampling, training, counts)
        batch = transform.empty_batch(batch_size, lengths, patch_size)
        batch.labels["index"] = np.zeros(batch_size, np.int32)
        if transform.extent < transform.card.extent:
            batch.labels["window"] = np.zeros((batch_size, 2), np.float32)
        if self.skip_corrupt:
            batch.labels["skipped"] = np.full(batch_size, -1, np.int32)
        return batch

    def _write(
        self, batch: Batch, row: int, tile: tuple[int, int], blocks: Sequence[Block], window: Window, rng: Rng
    ) -> None:
        """Writes a row; `tile` is the wanted position, and that of the tile that was read."""
        wanted, found = tile
        self.transform.write(batch, row, blocks, window, rng)
        batch.labels["index"][row] = found
        if "window" in batch.labels:
            batch.labels["window"][row] = window.offset
        if found != wanted:
            batch.labels["skipped"][row] = wanted


@dataclasses.dataclass(frozen=True)
class InOrder:
    """The batches of an evaluation: every sample once; the last batch repeats its last one where "valid" is False.

    A batch has `batch_size` samples over all processes. `tiles` are the positions of those taken, in order; None: all.
    """

    maker: BatchMaker
    batch_size: int
    patch_size: float
    tiles: Int[np.ndarray, "n"] | None = None
    shard: HostShard = WHOLE

    @property
    def total(self) -> int:
        """Samples of all batches."""
        return (len(self.maker.source) if self.tiles is None else len(self.tiles)) * len(self.maker.offsets)

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        wanted = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        samples = np.minimum(wanted, self.total - 1)
        if self.tiles is not None:
            # From numbers among the samples that are taken to numbers among the samples of all tiles; in int64, as
            # positions are int32 and their products may not be.
            place, window = np.divmod(samples, len(self.maker.offsets))
            samples = self.tiles[place].astype(np.int64) * len(self.maker.offsets) + window
        samples = samples.tolist()
        own = self.shard.rows(self.batch_size)
        batch = self.maker.evaluation([samples[row] for row in own], samples, self.patch_size)
        valid = wanted[own] < self.total
        if "skipped" in batch.labels:
            skipped = batch.labels["skipped"]
            # A repetition is not a sample that could be left out.
            skipped[~valid] = -1
            for tile in np.unique(skipped[skipped >= 0]):
                logging.warning("%s: tile %d cannot be read and is left out", batch.dataset, tile)
            valid &= skipped < 0
        return batch.replace(labels=batch.labels | {"valid": valid})

    def __iter__(self) -> Iterator[Batch]:
        import grain

        numbers = grain.MapDataset.range(len(self)).map(self.__getitem__)
        return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))
