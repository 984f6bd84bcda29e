"""Batches for training and evaluation: what the rest of the library uses of `data_pipelines`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from anysat_jax.batch import Batch
from data_pipelines.batches import BatchMaker, InOrder
from data_pipelines.card import DatasetCard
from data_pipelines.locate import find_card, locate, to_stderr
from data_pipelines.options import Sampling, check_patch_size, dataset_options, num_workers, sampling_options
from data_pipelines.prepared import PreparedDataset
from data_pipelines.statistics import SPLIT
from data_pipelines.transforms import TileTransform

if TYPE_CHECKING:
    from data_pipelines.sampler import StepIterator


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


def train_iterator(data: Any, *, seed: int, process_index: int = 0, process_count: int = 1) -> "StepIterator":
    """This process' share of the training batches, without end.

    The k-th batch depends on the config, the seed and k alone: with several processes, their k-th batches are of one
    dataset, one patch size and one shape, and together hold the tiles of the single process' batch.

    Args:
      data: the config's section `data`; `batch_size` counts the tiles of all processes.
      seed: of order, augmentation and patch sizes.

    Returns:
      An iterator over batches of numpy arrays of `batch_size // process_count` tiles. The label "index" is the tile's
      position in the split.

    Raises:
      ValueError, OSError: as `prepare`, or the config cannot be; the message names the field.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not one of {process_count} processes")
    from data_pipelines.sampler import StepIterator, Stream, mixture

    streams = []
    for one in dataset_options(data, process_count):
        maker = _maker(locate(one.card.name, data.root), SPLIT, one.sampling)
        share = dict(seed=seed, process_index=process_index, process_count=process_count)
        streams.append(Stream(len(maker.source), one, maker.training, **share))
    return StepIterator(mixture(streams, seed), num_workers=num_workers(data))


def evaluation_batches(data: Any, dataset: str, split: str, *, patch_size: float, batch_size: int) -> Iterator[Batch]:
    """Every tile of a split once, in a fixed order, without augmentation; or every part of it, where samples are parts.

    Args:
      data: the config's section `data`; how tiles become samples is taken from it where it names the dataset.
      dataset: name of the dataset.
      split: name of the split.
      patch_size: side of a patch in metres.
      batch_size: samples of a batch. The last batch is filled up by repeating its last sample; the label "valid" is
        False there.

    Raises:
      ValueError, OSError: before the first batch: an unknown dataset, split or patch size, or data that cannot be had.
    """
    card = dataset_card(dataset, data.root)
    sampling = sampling_options(card, data.datasets.get(dataset, {}))
    patch_size = check_patch_size(card, patch_size, sampling.extent)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be positive")
    return iter(InOrder(_maker(locate(dataset, data.root), split, sampling), batch_size, patch_size))


def _maker(prepared: PreparedDataset, split: str, sampling: Sampling) -> BatchMaker:
    counts = prepared.series_lengths(split) if sampling.date_buckets else None
    return BatchMaker(prepared.records(split), TileTransform(prepared.card, prepared.statistics, sampling), counts)
