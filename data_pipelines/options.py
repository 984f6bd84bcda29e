"""Options of the datasets in a config's `data` section: their part in training and evaluation."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterator
from typing import Any, Literal, get_args

from anysat_jax.sensors import get_sensor, whole_number
from data_pipelines.card import DatasetCard
from data_pipelines.windows import check_extent

SMALLEST_WEIGHT = 1e-3  # weights become whole numbers of steps in a block, which must stay short
MOST_TILES = 2**16  # of a batch: its arrays would not fit anywhere
Days = Literal["day_of_year", "published", "none"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options by which a tile becomes a sample."""

    max_dates: int | None = None  # upper bound of the dates of a series; None: no bound
    # Fraction of a series' dates that training leaves out at random; at least one date stays.
    temporal_dropout: float = 0.0
    # Percent; of sensors with a cloud layer, dates with a higher mean cover over the sample are left out, except for
    # the clearest. None: all dates.
    max_cloud: float | None = None
    # Lengths that series may be padded to, in rising order; the last is an upper bound like `max_dates`. Empty: always
    # the length of the longest series.
    date_buckets: tuple[int, ...] = ()
    # Side of a sample in metres: training takes windows anywhere in a tile, evaluation all that lie side by side. None:
    # the whole tile.
    extent: float | None = None
    augment: bool = True  # whether training flips and rotates
    # Standard deviation of the normal noise that training adds to standardised values, against overfitting.
    noise: float = 0.0
    # "day_of_year"; "published": days since the card's `date_origin`, as the published readers count; or "none": day 0
    # for all, where the season is that of the site and not of what is seen.
    dates: Days = "day_of_year"

    @property
    def limit(self) -> int | None:
        """Upper bound of the dates of a series."""
        return min((most for most in (self.max_dates, *self.date_buckets[-1:]) if most is not None), default=None)


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """A dataset's part in training and evaluation: the config's `data.datasets.NAME`.

    Raises:
      ValueError: a value that cannot be; the message names the config's key.
    """

    card: DatasetCard
    batch_size: int = 1  # tiles of a training batch over all processes
    weight: float = 1.0  # fraction of the steps, relative to the other datasets' weights
    # Metres; one is drawn for each training batch. Empty: those of the card that fit the samples.
    patch_sizes: tuple[float, ...] = ()
    sampling: Sampling = Sampling()
    fraction: float = 1.0  # of the training tiles that are used, above 0; a smaller fraction lies within a larger one
    fraction_seed: int = 0  # another seed selects other tiles

    def __post_init__(self) -> None:
        values = vars(self) | vars(self.sampling)
        # The values themselves first: the dataset's checks compute with them.
        for key, problem in itertools.chain(
            _problems(self, self.sampling), _problems_of_card(self.card, self.sampling)
        ):
            raise ValueError(f"data.datasets.{self.card.name}.{key} is {values[key]!r}; {problem}")
        # The paper's sizes are for whole tiles: samples of a smaller extent take those that fit.
        sizes = self.patch_sizes or self._fitting_sizes()
        if not sizes:
            raise ValueError(
                f"data.datasets.{self.card.name}.extent is {self.sampling.extent!r}; none of its patch sizes "
                f"{self.card.patch_sizes} divides that: name others in data.datasets.{self.card.name}.patch_sizes"
            )
        object.__setattr__(self, "patch_sizes", tuple(self.check_patch_size(size) for size in sizes))

    @classmethod
    def from_section(cls, card: DatasetCard, section: Any) -> "DatasetOptions":
        """Reads the config's `data.datasets.NAME`, a mapping; values of None mean the default.

        Raises:
          ValueError: a key is unknown, `batch_size` is missing, or a value cannot be; the message names the key.
        """
        own = [field.name for field in dataclasses.fields(cls) if field.name not in ("card", "sampling")]
        of_sampling = [field.name for field in dataclasses.fields(Sampling)]
        if not hasattr(section, "get"):
            raise ValueError(f"data.datasets.{card.name} = {section!r} must be a section with a batch_size")
        if strangers := sorted(set(section) - {*own, *of_sampling}):
            known = ", ".join(sorted([*own, *of_sampling]))
            raise ValueError(f"data.datasets.{card.name}.{strangers[0]} is unknown; the keys are {known}")
        if section.get("batch_size") is None:
            raise ValueError(f"data.datasets.{card.name}.batch_size is missing; give the tiles of a training batch")
        values = {key: section[key] for key in section if section[key] is not None}
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if given.get("patch_sizes") == ():
            key = f"data.datasets.{card.name}.patch_sizes"
            raise ValueError(f"{key} = () must be at least one size in metres above 0, or None for all")
        sampling = Sampling(**{key: given[key] for key in of_sampling if key in given})
        return cls(card, sampling=sampling, **{key: given[key] for key in own if key in given})

    @property
    def extent(self) -> float:
        """Side of a sample in metres."""
        return self.sampling.extent or self.card.extent

    def check_patch_size(self, patch_size: float) -> float:
        """Returns `patch_size` in metres if the dataset's samples can be cut into patches of that side.

        It need not be one of the card's sizes, which are the paper's and the defaults of training.

        Raises:
          ValueError: they cannot; the message gives the reason and the sizes that fit.
        """
        reason = ""
        if patch_size <= 0 or not whole_number(self.extent / patch_size):
            reason = f"samples of {self.extent:g} m are not a whole number of them"
        try:
            for name in self.card.sensors if not reason else ():
                get_sensor(name).subpatches_per_side(patch_size)
        except ValueError as error:
            reason = str(error)
        if reason:
            usual = ", ".join(f"{size:g}" for size in self._fitting_sizes()) or "none that fits"
            what = f"patches of {patch_size:g} m do not fit: {reason}"
            raise ValueError(f"dataset {self.card.name!r}: {what}; the usual sizes are {usual} m")
        return float(patch_size)

    def _fitting_sizes(self) -> list[float]:
        return [size for size in self.card.patch_sizes if whole_number(self.extent / size)]


def _is_within(value: Any, least: float, most: float) -> bool:
    # True counts as a number in Python, and texts cannot be compared with one.
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    return number and least <= value <= most


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def _problems(options: DatasetOptions, sampling: Sampling) -> Iterator[tuple[str, str]]:
    """Yields (key, expectation) for each value that no dataset allows."""
    if not _is_count(options.batch_size, 1) or options.batch_size > MOST_TILES:
        yield "batch_size", f"it must be a positive number of tiles, at most {MOST_TILES}"
    if not _is_within(options.weight, SMALLEST_WEIGHT, 1 / SMALLEST_WEIGHT):
        yield "weight", f"it must be positive, at least {SMALLEST_WEIGHT:g} and at most {1 / SMALLEST_WEIGHT:g}"
    sizes = options.patch_sizes
    if not isinstance(sizes, tuple) or not all(_is_within(size, 0, math.inf) for size in sizes):
        yield "patch_sizes", "it must be sides in metres, such as 10, 20"
    if not _is_within(options.fraction, 0, 1) or options.fraction == 0:
        yield "fraction", "it must be a fraction of the training tiles, above 0 and at most 1"
    if not _is_count(options.fraction_seed, 0):
        yield "fraction_seed", "it must be a whole number, 0 or more"
    if sampling.max_dates is not None and not _is_count(sampling.max_dates, 1):
        yield "max_dates", "it must be positive, or None for all dates"
    if not _is_within(sampling.temporal_dropout, 0, 1) or sampling.temporal_dropout == 1:
        yield "temporal_dropout", "it must be a fraction of the dates, at least 0 and below 1"
    lengths = sampling.date_buckets
    counts = isinstance(lengths, tuple) and all(_is_count(length, 1) for length in lengths)
    if not counts or list(lengths) != sorted(set(lengths)):
        yield "date_buckets", "it must be lengths in rising order, such as 16, 32, 64"
    if not isinstance(sampling.augment, bool):
        yield "augment", "it must be True or False"
    if not _is_within(sampling.noise, 0, math.inf):
        yield "noise", "it must be 0 or more, in standard deviations"


def _problems_of_card(card: DatasetCard, sampling: Sampling) -> Iterator[tuple[str, str]]:
    """Yields (key, problem) for each value that the dataset does not allow."""
    if sampling.max_cloud is not None and not card.clouds:
        yield "max_cloud", "the dataset has no cloud layer; leave it out"
    elif sampling.max_cloud is not None and not _is_within(sampling.max_cloud, 0, 100):
        yield "max_cloud", "it must be percent, 0 to 100"
    if sampling.extent is not None:
        try:
            check_extent(card, sampling.extent)
        except (ValueError, TypeError) as error:
            yield "extent", str(error)
        # A window's label is derived from its map: a multi-label whose classes the map has, too.
        same = card.dense_label == "segmentation" and set(card.tile_classes) <= set(card.dense_classes)
        derived = card.tile_label == "none" or (card.tile_label == "multi_label" and same)
        if sampling.extent < card.extent and not derived:
            reason = "the labels of whole tiles are not those of their parts"
            yield "extent", f"{reason}, and no dense label has the same classes"
    if sampling.dates not in get_args(Days):
        yield "dates", f"it must be one of {', '.join(get_args(Days))}"
    elif sampling.dates == "published" and not card.date_origin:
        yield "dates", "its published dates are days of the year"
