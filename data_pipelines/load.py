"""Batches for training and evaluation: what the rest of the library uses of `data_pipelines`."""

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from anysat_jax.batch import Batch
from data_pipelines.batches import WHOLE, BatchMaker, InOrder, Share
from data_pipelines.card import DatasetCard
from data_pipelines.locate import find_card, locate, to_stderr
from data_pipelines.options import (
    DatasetOptions,
    Sampling,
    check_patch_size,
    dataset_options,
    fraction_options,
    num_workers,
    sampling_options,
    skips_corrupt,
)
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.prepare.statistics import SPLIT
from data_pipelines.prepared import PreparedDataset
from data_pipelines.transforms import TileTransform
from data_pipelines.windows import all_corners

if TYPE_CHECKING:
    from data_pipelines.sampler import StepIterator


def chosen_tiles(name: str, size: int, fraction: float, seed: int) -> Int32[np.ndarray, "n"]:
    """Positions of the tiles that training uses, in rising order; at least one.

    All tiles are put in an order that depends on name, size and seed alone, and the first ones are taken: so 1 percent
    lies within 10 percent, and every process takes the same.

    Args:
      name: of the dataset.
      size: tiles that its training split has, at least one.
      fraction: share of them, above 0, at most 1.
      seed: another seed takes others.
    """
    order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(size)
    return np.sort(order[: max(1, round(fraction * size))]).astype(np.int32)


def check_tiles(tiles: Sequence[int], size: int) -> Int32[np.ndarray, "n"]:
    """`tiles` as positions in a split, if each is one and none comes twice.

    Raises:
      ValueError: they are not.
    """
    positions = np.asarray(tiles, np.int64)
    wrong = positions[(positions < 0) | (positions >= size)]
    if wrong.size or len(np.unique(positions)) < len(positions):
        what = f"{wrong[0]} is none" if wrong.size else "one comes twice"
        raise ValueError(f"tiles are to be different positions in a split of {size}; {what}")
    return positions.astype(np.int32)


def dataset_card(name: str, root: str | None = None) -> DatasetCard:
    """A dataset's facts: sensors, extent, patch sizes, labels, class names and colours.

    Args:
      name: the dataset's name.
      root: the config's `data.root`; what is prepared below it is known by the card beside it.

    Raises:
      ValueError: no dataset has that name.
    """
    return find_card(name, root)


def prepare(data: Any) -> None:
    """Makes sure that every dataset of the config is prepared; a progress bar, and a line that says where each is.

    Args:
      data: the config's section `data`.

    Raises:
      ValueError, OSError: a dataset is unknown, missing, unreadable, or cannot be written.
    """
    for options in dataset_options(data):
        locate(options.card.name, data.root, to_stderr)


def prepared_facts(data: Any) -> dict[str, Any]:
    """What the prepared datasets of the config hold, by name, JSON values: to be compared between machines.

    Raises:
      ValueError, OSError: as `prepare`.
    """
    names = [options.card.name for options in dataset_options(data)]
    return {name: locate(name, data.root).facts for name in names}


def train_iterator(data: Any, *, seed: int, share: Share = WHOLE) -> "StepIterator":
    """This process' share of the training batches, without end.

    The k-th batch depends on the config, the seed and k alone: with several processes, their k-th batches are of one
    dataset, one patch size and one shape, and are the rows of the single process' batch.

    Args:
      data: the config's section `data`; `batch_size` counts the tiles of all processes.
      seed: of order, augmentation and patch sizes.
      share: the rows that this process reads.

    Returns:
      An iterator over batches of numpy arrays of this share's tiles. The label "index" is the tile's position in the
      split. With `skip_corrupt`, the label "skipped" is the tile that cannot be read and that this one stands for, or
      -1.

    Raises:
      ValueError, OSError: as `prepare`, or the config cannot be; the message names the field.
    """
    from data_pipelines.sampler import StepIterator, Stream, mixture

    streams = []
    for one in dataset_options(data, share.count):
        maker = _maker(locate(one.card.name, data.root), SPLIT, one.sampling, skips_corrupt(data))
        positions = _positions(one, len(maker.source))
        size = len(maker.source) if positions is None else len(positions)
        streams.append(Stream(size, one, maker.training, seed=seed, share=share, positions=positions))
    return StepIterator(mixture(streams, seed), num_workers=num_workers(data))


def training_tiles(data: Any, dataset: str) -> Int32[np.ndarray, "n"]:
    """Positions in the training split of the tiles that training uses: all, or those of the config's `fraction`.

    An epoch of training takes each once. The same on every process.

    Raises:
      ValueError, OSError: an unknown dataset, a share that cannot be, or data that cannot be had.
    """
    fraction, seed = fraction_options(dataset_card(dataset, data.root), data.datasets.get(dataset, {}))
    return chosen_tiles(dataset, len(locate(dataset, data.root).records(SPLIT)), fraction, seed)


def tile_ids(data: Any, dataset: str, tiles: Sequence[int]) -> list[str]:
    """Names of training tiles by their position in the split, for messages.

    Raises:
      ValueError, OSError: an unknown dataset, or a tile that cannot be read.
    """
    records = locate(dataset, data.root).records(SPLIT)
    return [bytes(records[int(tile)]["id"]).decode() for tile in tiles]


def unreadable_tiles(data: Any, dataset: str, split: str, tiles: Sequence[int]) -> list[int]:
    """Which of some tiles of a split are corrupt, by their position. Reads them.

    Raises:
      ValueError, OSError: an unknown dataset or split, or data that are gone.
    """
    records, found = locate(dataset, data.root).records(split), []
    for tile in tiles:
        try:
            records[int(tile)]
        except CorruptTileError:
            found.append(int(tile))
    return found


def num_samples(data: Any, dataset: str, split: str, tiles: Sequence[int] | None = None) -> int:
    """How many samples `evaluation_batches` gives of a split: its tiles, times the windows of each.

    Args:
      tiles: positions of the tiles that are taken; None: all.

    Raises:
      ValueError, OSError: an unknown dataset or split, or data that cannot be had.
    """
    card = dataset_card(dataset, data.root)
    sampling = sampling_options(card, data.datasets.get(dataset, {}))
    count = len(locate(dataset, data.root).records(split)) if tiles is None else len(tiles)
    return count * len(all_corners(card, sampling.extent or card.extent))


def evaluation_batches(
    data: Any,
    dataset: str,
    split: str,
    *,
    patch_size: float,
    batch_size: int,
    tiles: Sequence[int] | None = None,
    share: Share = WHOLE,
) -> Iterator[Batch]:
    """Every tile of a split once, in a fixed order, without augmentation; or every part of it, where samples are parts.

    Args:
      data: the config's section `data`; how tiles become samples is taken from it where it names the dataset.
      dataset: name of the dataset.
      split: name of the split.
      patch_size: side of a patch in metres.
      batch_size: samples of a batch over all processes. The last batch is filled up by repeating its last sample; the
        label "valid" is False there, and so it is for samples of tiles that are skipped (`skip_corrupt`), which the
        label "skipped" names.
      tiles: positions in the split of the tiles to take, in that order; None: all.
      share: the rows that this process reads; all processes get as many batches, of the same shapes.

    Raises:
      ValueError, OSError: before the first batch: an unknown dataset, split or patch size, a batch size that the
        share's parts do not divide, tiles that the split has not, or data that cannot be had.
    """
    card = dataset_card(dataset, data.root)
    sampling = sampling_options(card, data.datasets.get(dataset, {}))
    patch_size = check_patch_size(card, patch_size, sampling.extent)
    if batch_size < 1 or batch_size % share.count:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a positive multiple of {share.count}, the parts it is cut into"
        )
    maker = _maker(locate(dataset, data.root), split, sampling, skips_corrupt(data))
    positions = None if tiles is None else check_tiles(tiles, len(maker.source))
    return iter(InOrder(maker, batch_size, patch_size, positions, share))


def _positions(options: DatasetOptions, size: int) -> Int32[np.ndarray, "n"] | None:
    """The tiles that training uses; None: all, which need no list."""
    if options.fraction == 1:
        return None
    return chosen_tiles(options.card.name, size, options.fraction, options.fraction_seed)


def _maker(prepared: PreparedDataset, split: str, sampling: Sampling, skip_corrupt: bool) -> BatchMaker:
    counts = prepared.series_lengths(split) if sampling.date_buckets else None
    transform = TileTransform(prepared.card, prepared.statistics, sampling)
    return BatchMaker(prepared.records(split), transform, counts, skip_corrupt)
