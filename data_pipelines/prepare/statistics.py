"""Band statistics of a dataset: gathered while it is prepared, kept beside it, applied in `transforms` only.

They are pooled: one mean and one standard deviation a band over every valid pixel of every date of every tile of the
split "train", so that held-out tiles leave no trace in the inputs.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num, Shaped

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example

RELATIVE_ERROR = 1 / 256  # of the percentiles of floats: half a bin's width over its smallest value


def is_exact(dtype: np.dtype) -> bool:
    """Whether each value of a dtype has its own bin."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def num_bins(dtype: np.dtype) -> int:
    """Bins that values of a dtype may fall into."""
    return 256 if dtype.kind in "iu" and dtype.itemsize == 1 else 65536


def bins_of(values: Num[np.ndarray, "*axes"]) -> Int64[np.ndarray, "*axes"]:
    """The bin of each finite value; larger values never have smaller bins."""
    if is_exact(values.dtype):
        return values.astype(np.int64) - np.iinfo(values.dtype).min
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(values.shape)
    negative = bits >> 31 == 1
    return (np.where(negative, ~bits, bits | np.uint32(1 << 31)) >> 16).astype(np.int64)


def bin_values(dtype: np.dtype) -> Float64[np.ndarray, "bins"]:
    """The value of each bin: the value itself, or the middle of the bin's range; NaN where no number falls."""
    bins = np.arange(num_bins(dtype))
    if is_exact(dtype):
        return bins.astype(np.float64) + np.iinfo(dtype).min
    ends = (bins.astype(np.uint32) << 16)[:, None] + np.array([0, 0xFFFF], np.uint32)
    bits = np.where(bins[:, None] < 32768, ~ends, ends & np.uint32(0x7FFFFFFF))
    with np.errstate(invalid="ignore"):
        values = bits.astype(np.uint32).view(np.float32).astype(np.float64).mean(axis=1)
    return np.where(np.isfinite(values), values, np.nan)


def add_counts(counts: Int64[np.ndarray, "C bins"], band: int, bins: Int64[np.ndarray, "n"]) -> None:
    """Counts the bins of one band's values, in place."""
    if bins.size < counts.shape[1] // 8:  # few values: a whole row of counts would cost more than they do
        np.add.at(counts[band], bins, 1)
    else:
        counts[band] += np.bincount(bins, minlength=counts.shape[1])


def percentile(counts: Int64[np.ndarray, "bins"], values: Float64[np.ndarray, "bins"], percent: float) -> float:
    """A percentile, between neighbours in linear proportion as numpy takes it; NaN without a value."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    below, share = divmod((total - 1) * percent / 100, 1.0)
    cumulative = np.cumsum(counts)
    low, high = (values[np.searchsorted(cumulative, min(rank, total - 1), side="right")] for rank in (below, below + 1))
    return float(low + (high - low) * share)


PERCENTS = (1.0, 99.0)


@dataclasses.dataclass
class Moments:
    """Count, mean, sum of squared deviations and range of several bands.

    Each tile's own mean and sum of squared deviations are merged into the total (Chan, Golub and LeVeque, 1983): sums
    of squares, which cancel where the mean is large against the spread, are never taken.

    Attributes:
      count: (C,) int64.
      mean, deviation, minimum, maximum: (C,) float64; inf and -inf for the range of nothing.
    """

    count: Int64[np.ndarray, "C"]
    mean: Float64[np.ndarray, "C"]
    deviation: Float64[np.ndarray, "C"]
    minimum: Float64[np.ndarray, "C"]
    maximum: Float64[np.ndarray, "C"]

    @classmethod
    def empty(cls, num_bands: int) -> "Moments":
        """Of no value at all."""
        zeros = np.zeros(num_bands)
        return cls(np.zeros(num_bands, np.int64), zeros, zeros.copy(), zeros + np.inf, zeros - np.inf)

    @classmethod
    def of(cls, bands: list[Num[np.ndarray, "n"]]) -> "Moments":
        """Of each band's values; bands may have different numbers of them."""
        result = cls.empty(len(bands))
        for band, values in enumerate(bands):
            if values.size:
                exact = values.astype(np.float64)
                result.count[band], result.mean[band] = exact.size, exact.mean()
                result.deviation[band] = np.square(exact - result.mean[band]).sum()
                result.minimum[band], result.maximum[band] = exact.min(), exact.max()
        return result

    def merge(self, other: "Moments") -> None:
        """Adds other values, in place."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        shift = other.mean - self.mean
        self.deviation = self.deviation + other.deviation + np.square(shift) * self.count * share
        self.mean = self.mean + shift * share
        self.count = total
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)

    @property
    def std(self) -> Float64[np.ndarray, "C"]:
        """Standard deviation; 0 of nothing."""
        return np.sqrt(self.deviation / np.maximum(self.count, 1))


class RunningStatistics:
    """What is gathered of one sensor: counts of bins, and moments where the bins do not tell them exactly."""

    def __init__(self, num_bands: int, dtype: np.dtype) -> None:
        """Args:
        num_bands: C.
        dtype: of the sensor's values.
        """
        self.dtype = np.dtype(dtype)
        self.counts = np.zeros((num_bands, num_bins(self.dtype)), np.int64)
        self._moments = None if is_exact(self.dtype) else Moments.empty(num_bands)

    def update(self, values: Num[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"] | None = None) -> None:
        """Adds a tile: its values in native units, and which are valid (True; None: all)."""
        bands = _valid_values(values, mask)
        for band, valid in enumerate(bands):
            add_counts(self.counts, band, bins_of(valid))
        if self._moments is not None:
            self._moments.merge(Moments.of(bands))

    def merge(self, other: "RunningStatistics") -> None:
        """Adds what another part gathered of the same sensor."""
        self.counts += other.counts
        if self._moments is not None and other._moments is not None:
            self._moments.merge(other._moments)

    def moments(self) -> Moments:
        """Moments of all values so far."""
        if self._moments is not None:
            return self._moments
        values = bin_values(self.dtype)
        return _moments_of_counts(self.counts, values)

    def percentiles(self) -> Float64[np.ndarray, "percents C"]:
        """The percentiles PERCENTS, within the range of the values; NaN for a band without a valid value."""
        values, moments = bin_values(self.dtype), self.moments()
        found = np.array([[percentile(row, values, p) for row in self.counts] for p in PERCENTS])
        return np.clip(found, moments.minimum, np.where(moments.count > 0, moments.maximum, np.inf))

    def state(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Arrays that `restore` takes; of the counts only those that are not zero."""
        filled = np.flatnonzero(self.counts)
        arrays = {"filled": filled.astype(np.uint32), "counts": self.counts.ravel()[filled]}
        return arrays if self._moments is None else arrays | dataclasses.asdict(self._moments)

    @classmethod
    def restore(cls, num_bands: int, dtype: np.dtype, arrays: Mapping[str, np.ndarray]) -> "RunningStatistics":
        """The statistics of a `state`."""
        restored = cls(num_bands, dtype)
        restored.counts.ravel()[arrays["filled"]] = arrays["counts"]
        if restored._moments is not None:
            restored._moments = Moments(**{f.name: arrays[f.name] for f in dataclasses.fields(Moments)})
        return restored


def _valid_values(values: np.ndarray, mask: np.ndarray | None) -> list[Num[np.ndarray, "n"]]:
    """The valid values of each band."""
    bands = np.moveaxis(values, -3, 0)
    if mask is None:
        return [band.ravel() for band in bands]
    valid = np.moveaxis(np.broadcast_to(mask, values.shape), -3, 0)
    return [band[keep] for band, keep in zip(bands, valid)]


def _moments_of_counts(counts: Int64[np.ndarray, "C bins"], values: Float64[np.ndarray, "bins"]) -> Moments:
    """Moments of values that each have their own bin; sums are exact in int64 up to 1e14 values."""
    result = Moments.empty(len(counts))
    for band, row in enumerate(counts):
        filled = np.flatnonzero(row)
        if filled.size:
            number, found = row[filled], values[filled]
            result.count[band] = number.sum()
            result.mean[band] = int(number @ found.astype(np.int64)) / int(result.count[band])
            result.deviation[band] = (number * np.square(found - result.mean[band])).sum()
            result.minimum[band], result.maximum[band] = found[0], found[-1]
    return result


FILE_NAME = "statistics.json"
SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class SensorStatistics:
    """Statistics of one sensor's bands, in native units.

    Attributes:
      bands: band names, in the order of the channel axis.
      mean, std: (C,) float64. A band without a valid value has mean 0 and std 1; so that nothing is divided by zero, a
        constant band has std 1.
      minimum, maximum: (C,) float64; NaN for a band without a valid value.
      count: (C,) int64, valid values.
      longest_series: dates of the longest series over all splits; 0 for an image.
      percentile_1, percentile_99: (C,) float64, exact for integers of up to 16 bits, else within 1/256 of their value;
        NaN for a band without a valid value. None for statistics that were not gathered from data.
    """

    bands: tuple[str, ...]
    mean: Float64[np.ndarray, "C"]
    std: Float64[np.ndarray, "C"]
    minimum: Float64[np.ndarray, "C"]
    maximum: Float64[np.ndarray, "C"]
    count: Int64[np.ndarray, "C"]
    longest_series: int = 0
    percentile_1: Float64[np.ndarray, "C"] | None = None
    percentile_99: Float64[np.ndarray, "C"] | None = None


class DatasetStatistics:
    """Gathers the statistics of every sensor of a dataset while its examples pass by, in parts that can be merged."""

    def __init__(self, card: DatasetCard) -> None:
        self._running = {s: RunningStatistics(get_sensor(s).num_bands, card.dtype(s)) for s in card.sensors}
        self._longest = dict.fromkeys(card.sensors, 0)

    def update(self, split: str, example: Example) -> None:
        """Counts a complete example's dates and, in the split "train", its values."""
        for name, running in self._running.items():
            values = example[name]
            if values.ndim == 4:
                self._longest[name] = max(self._longest[name], len(values))
            if split == SPLIT and example.get(f"{name}_present", True):
                running.update(values, example.get(f"{name}_mask"))

    def merge(self, other: "DatasetStatistics") -> None:
        """Adds what another part gathered."""
        for name, running in self._running.items():
            running.merge(other._running[name])
            self._longest[name] = max(self._longest[name], other._longest[name])

    def result(self) -> dict[str, SensorStatistics]:
        """Statistics of all values so far."""
        return {name: _summarise(r, get_sensor(name).bands, self._longest[name]) for name, r in self._running.items()}

    def state(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Arrays that `restore` takes."""
        arrays = {f"{name}/longest": np.asarray(longest) for name, longest in self._longest.items()}
        for name, running in self._running.items():
            arrays |= {f"{name}/{key}": array for key, array in running.state().items()}
        return arrays

    @classmethod
    def restore(cls, card: DatasetCard, arrays: Mapping[str, np.ndarray]) -> "DatasetStatistics":
        """The statistics of a `state`."""
        restored = cls(card)
        for name, running in restored._running.items():
            mine = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
            restored._longest[name] = int(mine["longest"])
            restored._running[name] = RunningStatistics.restore(len(running.counts), running.dtype, mine)
        return restored


def _summarise(running: RunningStatistics, bands: tuple[str, ...], longest_series: int) -> SensorStatistics:
    """What is kept of a sensor's values once all have passed by."""
    moments, (low, high) = running.moments(), running.percentiles()
    std, seen = moments.std, moments.count > 0
    return SensorStatistics(
        bands=bands,
        mean=moments.mean,
        std=np.where(std > 0, std, 1.0),
        minimum=np.where(seen, moments.minimum, np.nan),
        maximum=np.where(seen, moments.maximum, np.nan),
        count=moments.count,
        longest_series=longest_series,
        percentile_1=low,
        percentile_99=high,
    )


def save_statistics(folder: pathlib.Path, dataset: str, statistics: dict[str, SensorStatistics]) -> None:
    """Writes `statistics.json` into a dataset's folder."""
    sensors = {name: _to_json(one) for name, one in statistics.items()}
    text = json.dumps({"dataset": dataset, "split": SPLIT, "sensors": sensors}, indent=1, allow_nan=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def load_statistics(folder: pathlib.Path, card: DatasetCard) -> dict[str, SensorStatistics]:
    """Reads the statistics of a prepared dataset.

    Raises:
      FileNotFoundError: the folder holds none.
      ValueError: they cannot be read, or belong to other sensors or bands than the card's.
    """
    path = folder / FILE_NAME
    remedy = f"delete {folder} and prepare the dataset again"
    if not path.is_file():
        raise FileNotFoundError(f"dataset {card.name!r}: no {path}, so its inputs cannot be standardised; {remedy}")
    try:
        sensors = json.loads(path.read_text(encoding="utf-8"))["sensors"]
        statistics = {name: _from_json(one) for name, one in sensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a statistics file ({type(error).__name__}: {error}); {remedy}") from error
    _check(path, card, statistics, remedy)
    return statistics


def _check(path: pathlib.Path, card: DatasetCard, statistics: dict[str, SensorStatistics], remedy: str) -> None:
    if set(statistics) != set(card.sensors):
        raise ValueError(
            f"{path} is of sensors {sorted(statistics)}, but dataset {card.name!r} has {sorted(card.sensors)}; {remedy}"
        )
    for name, one in statistics.items():
        bands = get_sensor(name).bands
        if one.bands != bands or any(len(getattr(one, a)) != len(bands) for a in _ARRAYS.values()):
            raise ValueError(f"{path}: sensor {name!r} has bands {one.bands}, expected {bands}; {remedy}")
        if not (np.isfinite(one.mean).all() and np.isfinite(one.std).all() and (one.std > 0).all()):
            raise ValueError(f"{path}: sensor {name!r} has means or deviations that are no positive numbers; {remedy}")


_ARRAYS = {
    "mean": "mean",
    "std": "std",
    "min": "minimum",
    "max": "maximum",
    "percentile_1": "percentile_1",
    "percentile_99": "percentile_99",
    "count": "count",
}  # names in the file, and of the attributes


def _to_json(one: SensorStatistics) -> dict[str, Any]:
    fields: dict[str, Any] = {"bands": list(one.bands)}
    for key, attribute in _ARRAYS.items():
        fields[key] = [None if np.isnan(value) else value for value in getattr(one, attribute).tolist()]
    return fields | {"longest_series": one.longest_series}


def _from_json(fields: dict[str, Any]) -> SensorStatistics:
    arrays = {
        attribute: np.asarray(fields[key], np.int64 if key == "count" else np.float64)
        for key, attribute in _ARRAYS.items()
    }
    return SensorStatistics(bands=tuple(fields["bands"]), longest_series=int(fields["longest_series"]), **arrays)
