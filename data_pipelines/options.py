"""The config's `data` section, checked once."""

import dataclasses
import fractions
import math
from typing import Any, Literal, get_args

from anysat_jax.sensors import get_sensor, whole_number
from data_pipelines.card import DatasetCard
from data_pipelines.locate import find_card
from data_pipelines.windows import check_extent

SMALLEST_WEIGHT = 1e-3  # weights become whole numbers of steps in a block, which must stay short
Days = Literal["day_of_year", "published"]
_OF_TRAINING = ("batch_size", "weight", "patch_sizes", "fraction", "fraction_seed")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a tile becomes a sample.

    Attributes:
      max_dates: upper bound of the dates of a series; None: no bound.
      temporal_dropout: share of a series' dates that training leaves out at random; at least one date stays.
      max_cloud: percent; dates that are clouded more, in the mean over the sample, are left out, but for the clearest.
        For sensors with a cloud layer. None: all dates.
      date_buckets: lengths that series may be padded to, in rising order; the last is an upper bound like `max_dates`.
        Empty: always the length of the longest series.
      extent: side of a sample in metres: training takes windows anywhere in a tile, evaluation all that lie side by
        side. None: the whole tile.
      augment: whether training flips and turns.
      noise: deviation of the normal noise that training adds to standardised values; little data overfit less.
      dates: "day_of_year", or "published": days since the card's `date_origin`, as the published readers count.
    """

    max_dates: int | None = None
    temporal_dropout: float = 0.0
    max_cloud: float | None = None
    date_buckets: tuple[int, ...] = ()
    extent: float | None = None
    augment: bool = True
    noise: float = 0.0
    dates: Days = "day_of_year"

    @property
    def limit(self) -> int | None:
        """Upper bound of the dates of a series."""
        bounds = [bound for bound in (self.max_dates, *self.date_buckets[-1:]) if bound is not None]
        return min(bounds, default=None)


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """How one dataset takes part in training.

    Attributes:
      card: the dataset's facts.
      batch_size: tiles of a batch over all processes.
      weight: share of the steps, relative to the other datasets' weights.
      patch_sizes: metres; one is drawn for each batch.
      sampling: how its tiles become samples.
      fraction: share of the training tiles that are used, above 0; a smaller share lies within a larger one.
      fraction_seed: another seed, other tiles.
    """

    card: DatasetCard
    batch_size: int
    weight: fractions.Fraction
    patch_sizes: tuple[float, ...]
    sampling: Sampling = Sampling()
    fraction: float = 1.0
    fraction_seed: int = 0


def dataset_options(data: Any, parts: int = 1) -> tuple[DatasetOptions, ...]:
    """Reads `data.datasets`, sorted by name so that the order in a file changes nothing.

    Args:
      data: the config's section `data`.
      parts: equal parts that each batch is to be cut into, see `Share`.

    Raises:
      ValueError: no dataset, an unknown one, or a value that cannot be; the message names the config's field.
    """
    if not data.datasets:
        raise ValueError("config.data.datasets is empty; name at least one dataset")
    cards = {name: find_card(name, data.get("root")) for name in sorted(data.datasets)}
    return tuple(_one(card, data.datasets[name], parts) for name, card in cards.items())


def num_workers(data: Any) -> int:
    """Worker processes of the reading; 0: threads.

    Raises:
      ValueError: it is negative.
    """
    if data.get("num_workers", 0) < 0:
        raise ValueError(f"config.data.num_workers is {data.num_workers}; it must be 0 (threads) or more")
    return data.get("num_workers", 0)


def skips_corrupt(data: Any) -> bool:
    """Whether tiles whose records are damaged are left out; else they are an error."""
    return bool(data.get("skip_corrupt", False))


def check_patch_size(card: DatasetCard, patch_size: float, extent: float | None = None) -> float:
    """`patch_size` in metres, if the dataset's samples can be cut by it.

    That may be another size than those of the card, which are the paper's and the ones that training draws from.

    Args:
      extent: side of a sample in metres; None: the tile's.

    Raises:
      ValueError: they cannot; the message says why.
    """
    if reason := _misfit(card, patch_size, extent or card.extent):
        usual = ", ".join(f"{size:g}" for size in _fitting(card, extent)) or "none that fits"
        raise ValueError(
            f"dataset {card.name!r}: patches of {patch_size:g} m do not fit: {reason}; the usual sizes are {usual} m"
        )
    return float(patch_size)


def _misfit(card: DatasetCard, patch_size: float, extent: float) -> str:
    """Why samples cannot be cut by a patch size; "" if they can."""
    if patch_size <= 0 or not whole_number(extent / patch_size):
        return f"samples of {extent:g} m are no whole number of them"
    try:
        for name in card.sensors:
            get_sensor(name).subpatches_per_side(patch_size)
    except ValueError as error:
        return str(error)
    return ""


def _fitting(card: DatasetCard, extent: float | None) -> list[float]:
    return [size for size in card.patch_sizes if whole_number((extent or card.extent) / size)]


def sampling_options(card: DatasetCard, section: Any) -> Sampling:
    """Reads the fields of `Sampling` from a dataset's section.

    Args:
      section: of the config, or an empty dict for a dataset that the config does not train on.

    Raises:
      ValueError: a value that cannot be; the message names the config's field.
    """
    known = {field.name for field in dataclasses.fields(Sampling)} | set(_OF_TRAINING)
    if strangers := sorted(set(section) - known):
        names = ", ".join(sorted(known))
        raise ValueError(f"config.data.datasets.{card.name}.{strangers[0]} is no field; the fields are {names}")
    given = {key: section[key] for key in section if key not in _OF_TRAINING}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if wrong := _CHECKS[key](card, value):
            raise ValueError(f"config.data.datasets.{card.name}.{key} is {value!r}; {wrong}")
    if "date_buckets" in given:
        given["date_buckets"] = tuple(given["date_buckets"])
    return Sampling(**given)


def _check_extent(card: DatasetCard, extent: Any) -> str:
    try:
        check_extent(card, extent)
    except ValueError as error:
        return str(error)
    if extent < card.extent and card.tile_label != "none" and not has_tile_label_of_windows(card):
        return "the labels of whole tiles are not those of their parts, and no dense label has the same classes"
    return ""


def has_tile_label_of_windows(card: DatasetCard) -> bool:
    """Whether the label of a part of a tile can be told: its multi-label names classes of its map."""
    same = set(card.tile_classes) <= set(card.dense_classes)
    return card.tile_label == "multi_label" and card.dense_label == "segmentation" and same


def _check_dates(card: DatasetCard, dates: Any) -> str:
    if dates not in get_args(Days):
        return f"it must be one of {', '.join(get_args(Days))}"
    return "" if dates != "published" or card.date_origin else "its published dates are days of the year"


def _check_buckets(card: DatasetCard, buckets: Any) -> str:
    rising = all(isinstance(one, int) and one > 0 for one in buckets) and list(buckets) == sorted(set(buckets))
    return "" if rising else "it must be lengths in rising order, such as (16, 32, 64)"


def _check_cloud(card: DatasetCard, percent: Any) -> str:
    if not card.clouds:
        return "the dataset has no cloud layer; leave it out"
    return "" if 0 <= percent <= 100 else "it must be percent, 0 to 100"


_CHECKS = {
    "max_dates": lambda _, v: "" if v >= 1 else "it must be positive, or None for all dates",
    "temporal_dropout": lambda _, v: "" if 0 <= v < 1 else "it must be a share of the dates, at least 0 and below 1",
    "max_cloud": _check_cloud,
    "date_buckets": _check_buckets,
    "extent": _check_extent,
    "noise": lambda _, v: "" if 0 <= v < math.inf else "it must be 0 or more, in standard deviations",
    "augment": lambda _, v: "" if isinstance(v, bool) else "it must be True or False",
    "dates": _check_dates,
}


def _one(card: DatasetCard, section: Any, parts: int) -> DatasetOptions:
    field = f"config.data.datasets.{card.name}"
    batch_size, weight = section.batch_size, section.get("weight", 1.0)
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"{field}.batch_size is {batch_size}; it must be a positive multiple of {parts}, the parts it is cut into"
        )
    if not (math.isfinite(weight) and weight >= SMALLEST_WEIGHT):
        raise ValueError(f"{field}.weight is {weight}; it must be positive, at least {SMALLEST_WEIGHT:g}")
    sampling = sampling_options(card, section)
    fraction, fraction_seed = fraction_options(card, section)
    sizes = section.get("patch_sizes") or _fitting(card, sampling.extent)
    if not sizes:
        raise ValueError(
            f"{field}.extent is {sampling.extent!r}; none of its patch sizes {card.patch_sizes} divides that: "
            f"name others in {field}.patch_sizes"
        )
    return DatasetOptions(
        card=card,
        batch_size=batch_size,
        weight=fractions.Fraction(weight).limit_denominator(round(1 / SMALLEST_WEIGHT)),
        patch_sizes=tuple(check_patch_size(card, size, sampling.extent) for size in sizes),
        sampling=sampling,
        fraction=fraction,
        fraction_seed=fraction_seed,
    )


def fraction_options(card: DatasetCard, section: Any) -> tuple[float, int]:
    """Reads which share of the training tiles is used, and the seed that says which tiles, from a dataset's section.

    Raises:
      ValueError: a value that cannot be; the message names the config's field.
    """
    field, fraction, seed = f"config.data.datasets.{card.name}", section.get("fraction"), section.get("fraction_seed")
    fraction, seed = 1.0 if fraction is None else fraction, seed or 0
    if not 0 < fraction <= 1:
        raise ValueError(f"{field}.fraction is {fraction!r}; it must be a share of the tiles, above 0 and at most 1")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{field}.fraction_seed is {seed!r}; it must be a whole number, 0 or more")
    return float(fraction), seed
