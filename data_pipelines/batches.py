"""Batches of a dataset: reads the tiles, chooses what each sample shows, and has them written side by side."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from anysat_jax.batch import Batch
from anysat_jax.sensors import get_sensor
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.transforms import TileTransform, padded_lengths
from data_pipelines.windows import Piece, View, all_corners, covering, draw_view, whole_tile


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The rows of a batch that a process reads: some of `count` equal runs of rows; the default is the whole batch.

    A batch has the same rows whoever reads them, so that what is drawn for a row, such as its masks, does not depend on
    the number of processes. Processes whose devices hold the same rows have the same shard.

    Attributes:
      indices: of the runs, rising.
      count: runs in a batch.

    Raises:
      ValueError: there are no indices, or one is outside 0 to `count` - 1.
    """

    indices: tuple[int, ...] = (0,)
    count: int = 1

    def __post_init__(self) -> None:
        if not self.indices or not all(0 <= index < self.count for index in self.indices):
            raise ValueError(
                f"shard {self.indices} of a batch that is cut into {self.count}: indices must be below that"
            )

    def rows(self, batch_size: int) -> Int[np.ndarray, "b"]:
        """Returns the positions of the rows in the whole batch; `count` divides `batch_size`."""
        return np.arange(batch_size).reshape(self.count, -1)[list(self.indices)].reshape(-1)


WHOLE = HostShard()


Pick = tuple[int, np.random.Generator]
"""A tile's position in the split, and the generator of what is drawn for it."""


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Makes batches of one split of a dataset.

    The label "index" is a sample's tile, by its position in the split; where samples are parts of tiles, "window" is
    where they begin, (B, 2) float32, metres from the tile's upper and left edge. Where corrupt tiles are skipped,
    another tile of the batch stands in for each, and "skipped" is the tile that it stands for; -1 elsewhere. In an
    evaluation, where whole batches may be windows of one tile, a row that no tile can stand in for is left empty.

    Attributes:
      source: the examples, by position; `pieces` gives some blocks of one, where the card's tiles have several.
      transform: how they are written.
      counts: dates of each tile, for each series; None: each batch is padded for the longest series of the dataset.
      skip_corrupt: whether corrupt tiles are skipped; else they are an error.
    """

    source: Any
    transform: TileTransform
    counts: Mapping[str, Int[np.ndarray, "N"]] | None = None
    skip_corrupt: bool = False

    def training(self, picks: Sequence[Pick], together: Sequence[int], patch_size: float) -> Batch:
        """A batch of training.

        Args:
          picks: the tiles of this process.
          together: positions of the tiles of all processes, which agree on the shapes.
          patch_size: metres.

        Raises:
          UnreadableTileError: a tile cannot be read, and is not skipped.
        """
        card, sampling = self.transform.card, self.transform.sampling
        batch = self._empty(len(picks), together, patch_size, training=True)
        for row, (index, rng) in enumerate(picks):
            view = draw_view(card, self.transform.extent, sampling.augment, rng)
            found, pieces = self._readable(index, together, covering(card, view.corner, view.extent))
            self._write(batch, row, (index, found), pieces, view, rng)
        return batch

    @property
    def windows(self) -> int:
        """Samples that evaluation takes from a tile."""
        return len(all_corners(self.transform.card, self.transform.extent))

    def evaluation(self, samples: Sequence[int], patch_size: float, together: Sequence[int] | None = None) -> Batch:
        """A batch of evaluation: the n-th sample is the (n % windows)-th window of the (n // windows)-th tile.

        Args:
          samples: of this process.
          patch_size: metres.
          together: the samples of all processes, which agree on the shapes; None: there is one process.
        """
        corners = all_corners(self.transform.card, self.transform.extent)
        places = [divmod(sample, len(corners)) for sample in samples]
        tiles = [sample // len(corners) for sample in together or samples]
        batch = self._empty(len(samples), tiles, patch_size, training=False)
        latest, found, pieces = None, -1, []
        for row, (index, window) in enumerate(places):
            view = View(self.transform.extent, corners[window])
            wanted = (index, covering(self.transform.card, view.corner, view.extent))
            if wanted != latest:
                latest, (found, pieces) = wanted, self._readable_or_none(index, tiles, wanted[1])
            if pieces:
                self._write(batch, row, (index, found), pieces, view, None)
            else:
                self._leave_empty(batch, row, index)
        return batch

    def _readable(self, index: int, together: Sequence[int], blocks: Sequence[int]) -> tuple[int, list[Piece]]:
        """A tile and its pieces; instead of a corrupt one, where these are skipped, the next of the batch that is not.

        Only a tile of the batch will do, as the batch may be too short for the series of others. All processes agree.
        """
        try:
            return index, self._read(index, blocks)
        except CorruptTileError:
            place = list(together).index(index)
            for other in (*together[place + 1 :], *together[:place]) if self.skip_corrupt else ():
                with contextlib.suppress(CorruptTileError):
                    return other, self._read(other, blocks)
            raise

    def _readable_or_none(self, index: int, together: Sequence[int], blocks: Sequence[int]) -> tuple[int, list[Piece]]:
        """As `_readable`, but without any pieces where corrupt tiles are skipped and the batch has no others."""
        try:
            return self._readable(index, together, blocks)
        except CorruptTileError:
            if not self.skip_corrupt:
                raise
            return index, []

    def _read(self, index: int, blocks: Sequence[int]) -> list[Piece]:
        card = self.transform.card
        return [whole_tile(card, self.source[index])] if card.blocks == 1 else self.source.pieces(index, blocks)

    def _empty(self, batch_size: int, together: Sequence[int], patch_size: float, training: bool) -> Batch:
        transform = self.transform
        series = [name for name in transform.card.sensors if get_sensor(name).has_dates]
        longest = {name: transform.statistics[name].longest_series for name in series}
        counts = None if self.counts is None else {name: self.counts[name][list(together)] for name in series}
        lengths = padded_lengths(longest, transform.sampling, training, counts)
        batch = transform.empty_batch(batch_size, lengths, patch_size)
        batch.labels["index"] = np.zeros(batch_size, np.int32)
        if transform.extent < transform.card.extent:
            batch.labels["window"] = np.zeros((batch_size, 2), np.float32)
        if self.skip_corrupt:
            batch.labels["skipped"] = np.full(batch_size, -1, np.int32)
        return batch

    def _write(
        self,
        batch: Batch,
        row: int,
        tile: tuple[int, int],
        pieces: Sequence[Piece],
        view: View,
        rng: np.random.Generator | None,
    ) -> None:
        """Writes a row; `tile` is the one that was wanted, and the one that `pieces` are of."""
        wanted, found = tile
        self.transform.write(batch, row, pieces, view, rng)
        batch.labels["index"][row] = found
        if "window" in batch.labels:
            batch.labels["window"][row] = view.corner
        if found != wanted:
            batch.labels["skipped"][row] = wanted

    def _leave_empty(self, batch: Batch, row: int, index: int) -> None:
        """Writes zeros, which nobody looks at but which are finite."""
        for observation in batch.observations.values():
            observation.values[row] = 0
        batch.labels["index"][row] = index
        batch.labels["skipped"][row] = index


@dataclasses.dataclass(frozen=True)
class InOrder:
    """The batches of an evaluation: every sample once; the last batch repeats its last one where "valid" is False.

    Attributes:
      maker: makes them.
      batch_size: samples of a batch over all processes.
      patch_size: metres.
      tiles: positions of the tiles that are taken, in their order; None: all.
      shard: the rows that this process has.
    """

    maker: BatchMaker
    batch_size: int
    patch_size: float
    tiles: Int[np.ndarray, "n"] | None = None
    shard: HostShard = WHOLE

    @property
    def total(self) -> int:
        """Samples of all batches."""
        return (len(self.maker.source) if self.tiles is None else len(self.tiles)) * self.maker.windows

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        wanted = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        samples = self._samples(np.minimum(wanted, self.total - 1))
        own = self.shard.rows(self.batch_size)
        batch = self.maker.evaluation([samples[row] for row in own], self.patch_size, samples)
        valid = wanted[own] < self.total
        if "skipped" in batch.labels:
            batch.labels["skipped"][~valid] = -1  # a repetition is no sample that could be left out
            valid &= self._tell(batch)
        return batch.replace(labels=batch.labels | {"valid": valid})

    def _tell(self, batch: Batch) -> Bool[np.ndarray, "B"]:
        """Warns of tiles that were skipped. Returns where none was."""
        skipped = batch.labels["skipped"]
        for tile in np.unique(skipped[skipped >= 0]):
            logging.warning("%s: tile %d cannot be read and is left out", batch.dataset, tile)
        return skipped < 0

    def _samples(self, numbers: Int[np.ndarray, "B"]) -> list[int]:
        """Numbers among the samples of all tiles, of numbers among those that are taken."""
        if self.tiles is None:
            return numbers.tolist()
        place, window = np.divmod(numbers, self.maker.windows)
        return (self.tiles[place].astype(np.int64) * self.maker.windows + window).tolist()

    def __iter__(self) -> Iterator[Batch]:
        import grain

        numbers = grain.MapDataset.range(len(self)).map(self.__getitem__)
        return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))
