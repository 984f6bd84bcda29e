"""Band statistics of a dataset: computed while it is prepared, stored beside it, applied by `transforms` only.

They are pooled: one mean and one standard deviation per band over every valid pixel of every date of every tile of the
split "train", so that held-out tiles do not influence the inputs.
"""

import dataclasses
import json
import pathlib
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example

STATISTICS_FILE = "statistics.json"
SPLIT = "train"


@dataclasses.dataclass
class RunningMoments:
    """Count, mean, sum of squared deviations and range of the values of several bands.

    The mean and squared deviations of each tile are merged into the total (Chan, Golub and LeVeque, 1983). Sums of
    squares, which cancel where the mean is large against the spread, are never formed.

    Attributes:
      count: (C,) int64.
      total: (C,) int64, exact sum of the values of integer bands, whose mean then depends on no order; 0 for floats.
      mean, deviation: (C,) float64; 0 for a band without values.
      minimum, maximum: (C,) float64; NaN for a band without values.
    """

    count: Int64[np.ndarray, "C"]
    total: Int64[np.ndarray, "C"]
    mean: Float64[np.ndarray, "C"]
    deviation: Float64[np.ndarray, "C"]
    minimum: Float64[np.ndarray, "C"]
    maximum: Float64[np.ndarray, "C"]

    @classmethod
    def empty(cls, num_bands: int) -> "RunningMoments":
        """Returns the moments of no values."""
        whole, zeros = np.zeros(num_bands, np.int64), np.zeros(num_bands)
        return cls(whole, whole.copy(), zeros, zeros.copy(), zeros + np.nan, zeros + np.nan)

    @classmethod
    def of(cls, bands: list[Num[np.ndarray, "n"]]) -> "RunningMoments":
        """Returns the moments of each band's values; bands may have different numbers of values."""
        result = cls.empty(len(bands))
        for band, values in enumerate(bands):
            if not values.size:
                continue
            floats = values.astype(np.float64)
            result.count[band], result.mean[band] = floats.size, floats.mean()
            if _is_exact(values.dtype):
                result.total[band] = values.sum(dtype=np.int64)
                result.mean[band] = result.total[band] / floats.size
            result.deviation[band] = np.square(floats - result.mean[band]).sum()
            result.minimum[band], result.maximum[band] = floats.min(), floats.max()
        return result

    def update(self, values: Num[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"] | None = None) -> None:
        """Adds a tile.

        Args:
          values: in native units; with or without an axis of dates.
          mask: True where valid, with C channels or one; None: all are valid.
        """
        bands = np.moveaxis(values, -3, 0)
        if mask is None:
            self.merge(RunningMoments.of([band.ravel() for band in bands]))
            return
        valid = np.moveaxis(np.broadcast_to(mask, values.shape), -3, 0)
        self.merge(RunningMoments.of([band[keep] for band, keep in zip(bands, valid)]))

    def merge(self, other: "RunningMoments") -> None:
        """Adds the values of other moments, in place."""
        count = self.count + other.count
        fraction = other.count / np.maximum(count, 1)
        shift = other.mean - self.mean
        self.deviation = self.deviation + other.deviation + np.square(shift) * self.count * fraction
        self.total = self.total + other.total
        merged = self.mean + shift * fraction
        self.mean = np.where(self.total != 0, self.total / np.maximum(count, 1), merged)
        self.count = count
        self.minimum = np.fmin(self.minimum, other.minimum)
        self.maximum = np.fmax(self.maximum, other.maximum)

    @property
    def std(self) -> Float64[np.ndarray, "C"]:
        """Standard deviation; 0 for a band without values."""
        return np.sqrt(self.deviation / np.maximum(self.count, 1))


def _is_exact(dtype: np.dtype) -> bool:
    # Sums of integers of 16 bits fit into int64 for up to 1e14 values, more than any archive has.
    return dtype.kind in "iu" and dtype.itemsize <= 2


class SensorStatistics(msgspec.Struct, frozen=True, rename={"minimum": "min", "maximum": "max"}):
    """Statistics of one sensor's bands, in native units.

    Attributes:
      bands: band names, in the order of the channel axis.
      mean, std: (C,) float64. A band without a valid value has mean 0 and std 1; a constant band has std 1, so that
        nothing is divided by zero.
      minimum, maximum: (C,) float64; NaN for a band without a valid value.
      count: (C,) int64, valid values.
      longest_series: dates of the longest series over all splits; 0 for an image.
    """

    bands: tuple[str, ...]
    mean: Float64[np.ndarray, "C"]
    std: Float64[np.ndarray, "C"]
    minimum: Float64[np.ndarray, "C"]
    maximum: Float64[np.ndarray, "C"]
    count: Int64[np.ndarray, "C"]
    longest_series: int = 0


@dataclasses.dataclass
class RunningStatistics:
    """Moments of every sensor of a dataset, updated example by example; parts can be merged.

    Attributes:
      moments: of each sensor, over the split "train".
      longest: dates of each sensor's longest series, over all splits.
    """

    moments: dict[str, RunningMoments]
    longest: dict[str, int]

    @classmethod
    def empty(cls, card: DatasetCard) -> "RunningStatistics":
        """Returns the statistics of no example."""
        moments = {name: RunningMoments.empty(get_sensor(name).num_bands) for name in card.sensors}
        return cls(moments, dict.fromkeys(card.sensors, 0))

    def update(self, split: str, example: Example) -> None:
        """Adds a complete example: the lengths of its series and, in the split "train", its values."""
        for name, moments in self.moments.items():
            values = example[name]
            if values.ndim == 4:
                self.longest[name] = max(self.longest[name], len(values))
            if split == SPLIT and example.get(f"{name}_present", True):
                moments.update(values, example.get(f"{name}_mask"))

    def merge(self, other: "RunningStatistics") -> None:
        """Adds the examples of other statistics, in place."""
        for name, moments in self.moments.items():
            moments.merge(other.moments[name])
            self.longest[name] = max(self.longest[name], other.longest[name])

    def result(self) -> dict[str, SensorStatistics]:
        """Returns the statistics of all examples so far, by sensor."""
        return {
            name: SensorStatistics(
                bands=get_sensor(name).bands,
                mean=moments.mean,
                std=np.where(moments.std > 0, moments.std, 1.0),
                minimum=moments.minimum,
                maximum=moments.maximum,
                count=moments.count,
                longest_series=self.longest[name],
            )
            for name, moments in self.moments.items()
        }


def array_to_list(array: np.ndarray) -> list[Any]:
    """Encodes an array for JSON, NaN as None (msgspec's `enc_hook`)."""
    return [None if value != value else value for value in array.tolist()]


def list_to_array(annotation: Any, values: list[Any]) -> np.ndarray:
    """Decodes an array of JSON by the dtype of its jaxtyping annotation, None as NaN (msgspec's `dec_hook`)."""
    return np.asarray(values, annotation.dtypes[0])


def save_statistics(folder: pathlib.Path, dataset: str, statistics: dict[str, SensorStatistics]) -> None:
    """Writes `statistics.json` into a dataset's folder."""
    sensors = msgspec.to_builtins(statistics, enc_hook=array_to_list)
    text = json.dumps({"dataset": dataset, "split": SPLIT, "sensors": sensors}, indent=1, allow_nan=False)
    (folder / STATISTICS_FILE).write_text(text + "\n", encoding="utf-8")


class _StatisticsFile(msgspec.Struct):
    sensors: dict[str, SensorStatistics]


def load_statistics(folder: pathlib.Path, card: DatasetCard) -> dict[str, SensorStatistics]:
    """Reads the statistics of a prepared dataset.

    Raises:
      FileNotFoundError: the folder holds no statistics.
      ValueError: the file cannot be read, or its sensors or bands are not the card's.
    """
    path = folder / STATISTICS_FILE
    remedy = f"delete {folder} and prepare the dataset again"
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_StatisticsFile, dec_hook=list_to_array)
    except FileNotFoundError:
        missing = f"dataset {card.name!r}: no {path}, so its inputs cannot be standardised; {remedy}"
        raise FileNotFoundError(missing) from None
    except ValueError as error:
        raise ValueError(f"{path} is not a statistics file ({type(error).__name__}: {error}); {remedy}") from error
    _check(path, card, content.sensors, remedy)
    return content.sensors


def _check(path: pathlib.Path, card: DatasetCard, statistics: dict[str, SensorStatistics], remedy: str) -> None:
    if set(statistics) != set(card.sensors):
        raise ValueError(
            f"{path} is of sensors {sorted(statistics)}, but dataset {card.name!r} has {sorted(card.sensors)}; {remedy}"
        )
    for name, one in statistics.items():
        bands, arrays = get_sensor(name).bands, (one.mean, one.std, one.minimum, one.maximum, one.count)
        if one.bands != bands or any(array.shape != (len(bands),) for array in arrays):
            raise ValueError(f"{path}: sensor {name!r} has bands {one.bands}, expected {bands}; {remedy}")
        if not (np.isfinite(one.mean).all() and np.isfinite(one.std).all() and (one.std > 0).all()):
            raise ValueError(f"{path}: sensor {name!r} has means or deviations that are not positive numbers; {remedy}")
