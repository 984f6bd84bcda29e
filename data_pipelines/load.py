"""Batches for training and evaluation: what the rest of the library uses of `data_pipelines`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from anysat_jax.batch import Batch
from data_pipelines.card import DatasetCard
from data_pipelines.locate import locate, to_stderr
from data_pipelines.options import check_max_dates, check_patch_size, dataset_options, num_workers
from data_pipelines.registry import get_entry
from data_pipelines.sampler import Indexed, StepIterator, batches_of, indexed_sample, schedule_of
from data_pipelines.statistics import SPLIT
from data_pipelines.transforms import ExampleTransform, collate


def dataset_card(name: str, root: str | None = None) -> DatasetCard:
    """A dataset's facts: sensors, extent, patch sizes, labels, class names and colours.

    Raises:
      ValueError: no dataset has that name.
    """
    return get_entry(name).card


def prepare(data: Any) -> None:
    """Makes sure that every dataset of the config is prepared; a progress bar, and a line that says where each is.

    Args:
      data: the config's section `data`.

    Raises:
      ValueError, OSError: a dataset is unknown, missing, unreadable, or cannot be written.
    """
    for options in dataset_options(data):
        locate(options.card.name, data.root, to_stderr)


def train_iterator(data: Any, *, seed: int, process_index: int = 0, process_count: int = 1) -> StepIterator:
    """This process' share of the training batches, without end.

    The k-th batch depends on the config, the seed and k alone: with several processes, their k-th batches are of one
    dataset and one patch size and together hold the tiles of the single process' batch.

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
    import grain

    options = dataset_options(data, process_count)
    streams = []
    for one in options:
        dataset = locate(one.card.name, data.root)
        transform = ExampleTransform(one.card, dataset.statistics, one.max_dates)
        shard = dict(seed=seed, process_index=process_index, process_count=process_count)
        streams.append(batches_of(dataset.records(SPLIT), one, transform, **shard))
    batches = grain.MapDataset.select_from_datasets(streams, schedule_of(options, seed))
    return StepIterator(batches, num_workers=num_workers(data))


def evaluation_batches(data: Any, dataset: str, split: str, *, patch_size: float, batch_size: int) -> Iterator[Batch]:
    """Every tile of a split once, in a fixed order, without augmentation.

    Args:
      data: the config's section `data`; `max_dates` is taken from it where it names the dataset.
      dataset: name of the dataset.
      split: name of the split.
      patch_size: side of a patch in metres.
      batch_size: tiles of a batch. The last batch is filled up by repeating its last tile; the label "valid" is False
        there.

    Raises:
      ValueError, OSError: before the first batch: an unknown dataset, split or patch size, or data that cannot be had.
    """
    card = dataset_card(dataset)
    patch_size = check_patch_size(card, patch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be positive")
    section = data.datasets.get(dataset, {})
    prepared = locate(dataset, data.root)
    max_dates = check_max_dates(dataset, section.get("max_dates"))
    transform = ExampleTransform(card, prepared.statistics, max_dates)
    return _in_order(Indexed(prepared.records(split)), transform, patch_size, batch_size)


def _in_order(source: Indexed, transform: ExampleTransform, patch_size: float, batch_size: int) -> Iterator[Batch]:
    import grain

    def assemble(start: int) -> Batch:
        wanted = np.arange(start, start + batch_size)
        samples = [indexed_sample(transform, source[min(int(i), len(source) - 1)]) for i in wanted]
        batch = collate(samples, dataset=transform.card.name, patch_size=patch_size)
        return batch.replace(labels=batch.labels | {"valid": wanted < len(source)})

    starts = grain.MapDataset.range(0, len(source), batch_size).map(assemble)
    return iter(starts.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))
