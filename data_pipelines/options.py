"""The config's `data` section, checked once."""

import dataclasses
import fractions
import math
from typing import Any

from data_pipelines.card import DatasetCard
from data_pipelines.registry import get_entry

SMALLEST_WEIGHT = 1e-3  # weights become whole numbers of steps in a block, which must stay short


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """How one dataset takes part in training.

    Attributes:
      card: the dataset's facts.
      batch_size: tiles of a batch over all processes.
      weight: share of the steps, relative to the other datasets' weights.
      patch_sizes: metres; one is drawn for each batch.
      max_dates: upper bound of the dates of a series; None: no bound.
    """

    card: DatasetCard
    batch_size: int
    weight: fractions.Fraction
    patch_sizes: tuple[float, ...]
    max_dates: int | None


def dataset_options(data: Any, process_count: int = 1) -> tuple[DatasetOptions, ...]:
    """Reads `data.datasets`, sorted by name so that the order in a file changes nothing.

    Raises:
      ValueError: no dataset, an unknown one, or a value that cannot be; the message names the config's field.
    """
    if not data.datasets:
        raise ValueError("config.data.datasets is empty; name at least one dataset")
    return tuple(_one(name, data.datasets[name], process_count) for name in sorted(data.datasets))


def num_workers(data: Any) -> int:
    """Worker processes of the reading; 0: threads.

    Raises:
      ValueError: it is negative.
    """
    if data.get("num_workers", 0) < 0:
        raise ValueError(f"config.data.num_workers is {data.num_workers}; it must be 0 (threads) or more")
    return data.get("num_workers", 0)


def check_patch_size(card: DatasetCard, patch_size: float) -> float:
    """`patch_size` in metres, if the dataset's tiles can be cut by it.

    Raises:
      ValueError: they cannot; the message names the sizes that do.
    """
    if patch_size not in card.patch_sizes:
        allowed = ", ".join(f"{size:g}" for size in card.patch_sizes)
        raise ValueError(f"dataset {card.name!r}: patches of {patch_size:g} m are not allowed; allowed are {allowed} m")
    return float(patch_size)


def check_max_dates(name: str, max_dates: int | None) -> int | None:
    """`max_dates`, if it is None or positive.

    Raises:
      ValueError: it is not.
    """
    if max_dates is not None and max_dates < 1:
        raise ValueError(
            f"config.data.datasets.{name}.max_dates is {max_dates}; it must be positive, or None for all dates"
        )
    return max_dates


def _one(name: str, section: Any, process_count: int) -> DatasetOptions:
    card, field = get_entry(name).card, f"config.data.datasets.{name}"
    batch_size, weight = section.batch_size, section.get("weight", 1.0)
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"{field}.batch_size is {batch_size}; it must be a positive multiple of the {process_count} processes"
        )
    if not (math.isfinite(weight) and weight >= SMALLEST_WEIGHT):
        raise ValueError(f"{field}.weight is {weight}; it must be positive, at least {SMALLEST_WEIGHT:g}")
    sizes = section.get("patch_sizes") or card.patch_sizes
    return DatasetOptions(
        card=card,
        batch_size=batch_size,
        weight=fractions.Fraction(weight).limit_denominator(round(1 / SMALLEST_WEIGHT)),
        patch_sizes=tuple(check_patch_size(card, size) for size in sizes),
        max_dates=check_max_dates(name, section.get("max_dates")),
    )
