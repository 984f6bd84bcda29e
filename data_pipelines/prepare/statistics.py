"""Statistics of a dataset, gathered shard by shard while it is prepared: bands, labels, masks, clouds, dates.

Those of bands are stored beside the records and applied by `transforms` only. They are pooled: one mean and one
standard deviation per band over every valid pixel of every date of every tile of the split "train", so that held-out
tiles do not influence the inputs.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example, decode_json
from data_pipelines.prepare.leaks import Footprint

STATISTICS_FILE = "statistics.json"
SPLIT = "train"
CLOUDY = 50  # percent from which a pixel counts as cloudy
SAMPLE = 4096  # values of a tile in which its most frequent one is searched
FREQUENT = 0.02  # fraction of a tile's values from which one of them is counted


@dataclasses.dataclass
class RunningMoments:
    """Count, mean, sum of squared deviations and range of the values of several bands."""

    count: Int64[np.ndarray, "C"]  # (C,) int64
    # (C,) int64, exact sum of the values of integer bands, whose mean then depends on no order; 0 for floats.
    total: Int64[np.ndarray, "C"]
    # mean, deviation: (C,) float64; 0 for a band without values.
    mean: Float64[np.ndarray, "C"]
    deviation: Float64[np.ndarray, "C"]
    # minimum, maximum: (C,) float64; NaN for a band without values.
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
        for band, values in ((band, values) for band, values in enumerate(bands) if values.size):
            # float32 has 24 bits, too few for the sum of a tile of 16-bit values.
            floats = values.astype(np.float64)
            result.count[band], result.mean[band] = floats.size, floats.mean()
            # Sums of integers of 16 bits fit into int64 for up to 1e14 values, more than any archive has.
            if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
                result.total[band] = values.sum(dtype=np.int64)
                result.mean[band] = result.total[band] / floats.size
            result.deviation[band] = np.square(floats - result.mean[band]).sum()
            result.minimum[band], result.maximum[band] = floats.min(), floats.max()
        return result

    def update(self, values: Num[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"] | None = None) -> None:
        """Adds a tile's values in native units; `mask` is True where they are valid, None if all are."""
        bands = np.moveaxis(values, -3, 0)
        valid = [...] * len(bands) if mask is None else np.moveaxis(np.broadcast_to(mask, values.shape), -3, 0)
        self.merge(RunningMoments.of([band[keep].ravel() for band, keep in zip(bands, valid)]))

    def merge(self, other: "RunningMoments") -> None:
        """Adds the values of other moments, in place."""
        # Chan, Golub and LeVeque (1983): sums of squares, which cancel where the mean is large against the spread, are
        # never formed.
        count = self.count + other.count
        fraction = other.count / np.maximum(count, 1)
        shift = other.mean - self.mean
        self.deviation = self.deviation + other.deviation + np.square(shift) * self.count * fraction
        self.total = self.total + other.total
        # Integers have an exact sum; of floats, and of integers whose sum is 0, the merged mean is as good.
        self.mean = np.where(self.total != 0, self.total / np.maximum(count, 1), self.mean + shift * fraction)
        self.count = count
        self.minimum = np.fmin(self.minimum, other.minimum)
        self.maximum = np.fmax(self.maximum, other.maximum)

    @property
    def std(self) -> Float64[np.ndarray, "C"]:
        """Standard deviation; 0 for a band without values."""
        return np.sqrt(self.deviation / np.maximum(self.count, 1))


def array_to_list(array: np.ndarray) -> list[Any]:
    """Encodes an array for JSON, NaN as None (msgspec's `enc_hook`)."""
    return [None if value != value else value for value in array.tolist()]


def list_to_array(annotation: Any, values: list[Any]) -> np.ndarray:
    """Decodes an array of JSON by the dtype of its jaxtyping annotation, None as NaN (msgspec's `dec_hook`)."""
    return np.asarray(values, annotation.dtypes[0])


class SensorStatistics(msgspec.Struct, frozen=True, rename={"minimum": "min", "maximum": "max"}):
    """Statistics of one sensor's bands, in native units."""

    bands: tuple[str, ...]  # band names, in the order of the channel axis
    # mean, std: (C,) float64. A band without a valid value has mean 0 and std 1; a constant band has std 1, so that
    # nothing is divided by zero.
    mean: Float64[np.ndarray, "C"]
    std: Float64[np.ndarray, "C"]
    # minimum, maximum: (C,) float64; NaN for a band without a valid value.
    minimum: Float64[np.ndarray, "C"]
    maximum: Float64[np.ndarray, "C"]
    count: Int64[np.ndarray, "C"]  # (C,) int64, valid values
    longest_series: int = 0  # dates of the longest series over all splits; 0 for an image


@dataclasses.dataclass
class SensorCounts:
    """Counts of one sensor."""

    missing: int = 0  # tiles without it
    # pixels, invalid: values of its masks, and how many of them are False.
    pixels: int = 0
    invalid: int = 0
    # seen, cloudy: values of its cloud layers, and how many of them are at least CLOUDY percent.
    seen: int = 0
    cloudy: int = 0
    empty: int = 0  # dates that were left out, as nothing was observed
    sampled: int = 0  # valid values of which `frequent` are (value, count) of the most frequent one of each tile
    frequent: list[tuple[float, int]] = dataclasses.field(default_factory=list)

    def update(self, name: str, example: Example) -> None:
        """Adds a complete example."""
        if not example.get(f"{name}_present", True):
            self.missing += 1
            return
        if (mask := example.get(f"{name}_mask")) is not None:
            self.pixels += mask.size
            self.invalid += int(mask.size - np.count_nonzero(mask))
        if (cloud := example.get(f"{name}_cloud")) is not None:
            self.seen += cloud.size
            self.cloudy += int(np.count_nonzero(cloud >= CLOUDY))
        self.empty += int(example.get(f"{name}_empty", 0))
        values, mask = example[name], example.get(f"{name}_mask", np.True_)
        # A sample, as sorting all values of a tile would take longer than reading it.
        places = np.random.default_rng(0).integers(values.size, size=SAMPLE) if values.size > SAMPLE else slice(None)
        at = np.unravel_index(np.arange(values.size)[places], values.shape)
        found, counts = np.unique(values[at][np.broadcast_to(mask, values.shape)[at]], return_counts=True)
        self.sampled += int(counts.sum())
        if counts.size and counts.max() > FREQUENT * counts.sum():
            self.frequent.append((float(found[counts.argmax()]), int(counts.max())))


@dataclasses.dataclass
class SplitCounts:
    """Counts of the sensors and labels of a split, or of a part of one."""

    sensors: dict[str, SensorCounts]
    # For each class label, tiles ("tile") or pixels ("dense") of each class and, last, without a label.
    classes: dict[str, Int64[np.ndarray, "counts"]]
    numbers: dict[str, RunningMoments]  # for each regression label, moments of its values

    @classmethod
    def empty(cls, card: DatasetCard) -> "SplitCounts":
        """Returns the counts of no tile."""
        split = cls({name: SensorCounts() for name in card.sensors}, {}, {})
        tile, dense = ("tile", card.tile_label, card.tile_classes), ("dense", card.dense_label, card.dense_classes)
        for key, kind, names in (tile, dense):
            if kind == "regression":
                split.numbers[key] = RunningMoments.empty(1)
            elif kind != "none":
                split.classes[key] = np.zeros(len(names) + 1, np.int64)
        return split

    def update(self, example: Example) -> None:
        """Adds a complete example."""
        for name, one in self.sensors.items():
            one.update(name, example)
        for key, counts in self.classes.items():
            label, last = np.asarray(example[key]).astype(np.int64), len(counts) - 1
            if key == "tile" and label.ndim == 1:  # multi-hot
                counts += np.append(label, int(not label.any()))
            else:
                known = np.where((label >= 0) & (label < last), label, last)
                counts += np.bincount(known.ravel(), minlength=last + 1)
        for key, moments in self.numbers.items():
            values = np.asarray(example[key]).ravel()
            moments.merge(RunningMoments.of([values[np.isfinite(values)]]))


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A tile that was left out, and the reason."""

    split: str
    tile: str
    reason: str


@dataclasses.dataclass
class ShardStats:
    """Everything that is kept of the examples of a shard, or of all shards of a split, beside the records."""

    moments: dict[str, RunningMoments]  # of each sensor's valid values
    counts: SplitCounts  # of sensors and labels, for the report
    lengths: dict[str, list[int]]  # number of dates of each series of each tile; 0 where the tile lacks the sensor
    footprints: list[Footprint] = dataclasses.field(default_factory=list)  # of each tile, for leaks between splits
    examples: int = 0  # number of tiles written; `skipped` are those left out
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    record_bytes: int = 0
    file_bytes: int = 0

    @classmethod
    def empty(cls, card: DatasetCard) -> "ShardStats":
        """Returns the statistics of a shard without examples."""
        lengths: dict[str, list[int]] = {name: [] for name in card.sensors if get_sensor(name).has_dates}
        moments = {name: RunningMoments.empty(get_sensor(name).num_bands) for name in card.sensors}
        return cls(moments, SplitCounts.empty(card), lengths)

    def update(self, example: Example, record_bytes: int) -> None:
        """Adds a complete, checked example and the size of its records."""
        self.examples += 1
        self.record_bytes += record_bytes
        self.counts.update(example)
        for name, counts in self.lengths.items():
            counts.append(len(example[name]))
        for name, moments in self.moments.items():
            if example.get(f"{name}_present", True):
                moments.update(example[name], example.get(f"{name}_mask"))

    def to_json(self) -> bytes:
        """Encodes the statistics; floats keep every bit."""
        return msgspec.json.encode(self, enc_hook=array_to_list)

    @classmethod
    def from_json(cls, content: bytes) -> "ShardStats":
        """Decodes the bytes of `to_json`.

        Raises:
          ValueError: the content is something else.
        """
        return decode_json(content, cls, list_to_array)


def merge(total: Any, other: Any) -> Any:
    """Adds numbers, arrays, lists and moments of dataclasses and dicts, in place where it can; returns the total."""
    if isinstance(total, RunningMoments):
        total.merge(other)
    elif isinstance(total, dict):
        for key, one in total.items():
            total[key] = merge(one, other[key])
    elif dataclasses.is_dataclass(total):
        merge(vars(total), vars(other))
    else:
        total += other
    return total


def sensor_statistics(splits: Mapping[str, ShardStats]) -> dict[str, SensorStatistics]:
    """Returns the statistics of each sensor's values in the split "train", of the merged statistics of all splits."""
    return {
        name: SensorStatistics(
            bands=get_sensor(name).bands,
            mean=one.mean,
            std=np.where(one.std > 0, one.std, 1.0),
            minimum=one.minimum,
            maximum=one.maximum,
            count=one.count,
            longest_series=max((n for split in splits.values() for n in split.lengths.get(name, ())), default=0),
        )
        for name, one in splits[SPLIT].moments.items()
    }


def mean_and_std(statistics: Mapping[str, SensorStatistics]) -> dict[str, dict[str, list[float]]]:
    """Returns mean and standard deviation of each sensor's bands, in native units, by which inputs are standardised."""
    return {name: {"mean": one.mean.tolist(), "std": one.std.tolist()} for name, one in sorted(statistics.items())}


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
        content = decode_json(path.read_bytes(), _StatisticsFile, list_to_array)
    except FileNotFoundError:
        missing = f"dataset {card.name!r}: no {path}, so its inputs cannot be standardised; {remedy}"
        raise FileNotFoundError(missing) from None
    except ValueError as error:
        raise ValueError(f"{path} is not a statistics file ({type(error).__name__}: {error}); {remedy}") from error
    if set(content.sensors) != set(card.sensors):
        wanted = f"but dataset {card.name!r} has {sorted(card.sensors)}"
        raise ValueError(f"{path} is of sensors {sorted(content.sensors)}, {wanted}; {remedy}")
    for name, one in content.sensors.items():
        bands, arrays = get_sensor(name).bands, (one.mean, one.std, one.minimum, one.maximum, one.count)
        if one.bands != bands or any(array.shape != (len(bands),) for array in arrays):
            raise ValueError(f"{path}: sensor {name!r} has bands {one.bands}, expected {bands}; {remedy}")
        if not (np.isfinite(one.mean).all() and np.isfinite(one.std).all() and (one.std > 0).all()):
            raise ValueError(f"{path}: sensor {name!r} has means or deviations that are not positive numbers; {remedy}")
    return content.sensors
