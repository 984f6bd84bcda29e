"""Statistics of a sensor's bands in one pass, in float64, in parts that can be merged.

Parts are merged in the order of the shards, so that how many processes gathered them changes no bit of the result.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num, Shaped

from data_pipelines import histograms

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
        self.counts = np.zeros((num_bands, histograms.num_bins(self.dtype)), np.int64)
        self._moments = None if histograms.is_exact(self.dtype) else Moments.empty(num_bands)

    def update(self, values: Num[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"] | None = None) -> None:
        """Adds a tile: its values in native units, and which are valid (True; None: all)."""
        bands = _valid_values(values, mask)
        for band, valid in enumerate(bands):
            histograms.add_counts(self.counts, band, histograms.bins_of(valid))
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
        values = histograms.bin_values(self.dtype)
        return _moments_of_counts(self.counts, values)

    def percentiles(self) -> Float64[np.ndarray, "percents C"]:
        """The percentiles PERCENTS, within the range of the values; NaN for a band without a valid value."""
        values, moments = histograms.bin_values(self.dtype), self.moments()
        found = np.array([[histograms.percentile(row, values, p) for row in self.counts] for p in PERCENTS])
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
