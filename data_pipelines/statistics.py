"""Band statistics of a dataset: gathered while it is prepared, kept beside it, applied in `transforms` only.

They are pooled: one mean and one standard deviation a band over every valid pixel of every date of every tile of the
split "train", so that held-out tiles leave no trace in the inputs.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Num

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example

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
    """

    bands: tuple[str, ...]
    mean: Float64[np.ndarray, "C"]
    std: Float64[np.ndarray, "C"]
    minimum: Float64[np.ndarray, "C"]
    maximum: Float64[np.ndarray, "C"]
    count: np.ndarray
    longest_series: int = 0


class RunningStatistics:
    """Mean, variance and range of a sensor's bands in one pass, stable in float64.

    Each tile's own mean and sum of squared deviations are merged into the total (Chan, Golub and LeVeque, 1983): sums
    of squares, which cancel where the mean is large against the spread, are never taken.
    """

    def __init__(self, num_bands: int) -> None:
        self.count = np.zeros(num_bands, np.int64)
        self.mean = np.zeros(num_bands, np.float64)
        self.deviation = np.zeros(num_bands, np.float64)
        self.minimum = np.full(num_bands, np.inf)
        self.maximum = np.full(num_bands, -np.inf)

    def update(self, values: Num[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"] | None = None) -> None:
        """Adds a tile: its values in native units, and which are valid (True; None: all)."""
        bands = np.moveaxis(values, -3, 0).reshape(self.count.size, -1).astype(np.float64)
        valid = np.ones(bands.shape, np.bool_)
        if mask is not None:
            valid = np.moveaxis(np.broadcast_to(mask, values.shape), -3, 0).reshape(bands.shape)
        self.minimum = np.minimum(self.minimum, bands.min(axis=1, initial=np.inf, where=valid))
        self.maximum = np.maximum(self.maximum, bands.max(axis=1, initial=-np.inf, where=valid))
        count = valid.sum(axis=1)
        mean = bands.sum(axis=1, where=valid) / np.maximum(count, 1)
        deviation = np.square(bands - mean[:, None]).sum(axis=1, where=valid)
        self._merge(count, mean, deviation)

    def _merge(self, count: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> None:
        total = self.count + count
        share = count / np.maximum(total, 1)
        shift = mean - self.mean
        self.deviation += deviation + np.square(shift) * self.count * share
        self.mean += shift * share
        self.count = total

    def result(self, bands: tuple[str, ...], longest_series: int) -> SensorStatistics:
        std = np.sqrt(self.deviation / np.maximum(self.count, 1))
        seen = self.count > 0
        return SensorStatistics(
            bands=bands,
            mean=self.mean.copy(),
            std=np.where(std > 0, std, 1.0),
            minimum=np.where(seen, self.minimum, np.nan),
            maximum=np.where(seen, self.maximum, np.nan),
            count=self.count.copy(),
            longest_series=longest_series,
        )


class DatasetStatistics:
    """Gathers the statistics of every sensor of a dataset while its examples pass by."""

    def __init__(self, card: DatasetCard) -> None:
        self._running = {name: RunningStatistics(get_sensor(name).num_bands) for name in card.sensors}
        self._longest = dict.fromkeys(card.sensors, 0)

    def update(self, split: str, example: Example) -> None:
        """Counts an example's dates and, in the split "train", its values."""
        for name, running in self._running.items():
            values = example[name]
            if values.ndim == 4:
                self._longest[name] = max(self._longest[name], len(values))
            if split == SPLIT and example.get(f"{name}_present", True):
                running.update(values, example.get(f"{name}_mask"))

    def result(self) -> dict[str, SensorStatistics]:
        return {name: r.result(get_sensor(name).bands, self._longest[name]) for name, r in self._running.items()}


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
        if one.bands != bands or any(len(a) != len(bands) for a in (one.mean, one.std, one.count)):
            raise ValueError(f"{path}: sensor {name!r} has bands {one.bands}, expected {bands}; {remedy}")
        if not (np.isfinite(one.mean).all() and np.isfinite(one.std).all() and (one.std > 0).all()):
            raise ValueError(f"{path}: sensor {name!r} has means or deviations that are no positive numbers; {remedy}")


def _to_json(one: SensorStatistics) -> dict[str, Any]:
    fields = {"bands": list(one.bands), "mean": one.mean.tolist(), "std": one.std.tolist()}
    fields["min"] = [None if np.isnan(v) else v for v in one.minimum.tolist()]
    fields["max"] = [None if np.isnan(v) else v for v in one.maximum.tolist()]
    return fields | {"count": one.count.tolist(), "longest_series": one.longest_series}


def _from_json(fields: dict[str, Any]) -> SensorStatistics:
    return SensorStatistics(
        bands=tuple(fields["bands"]),
        mean=np.asarray(fields["mean"], np.float64),
        std=np.asarray(fields["std"], np.float64),
        minimum=np.asarray(fields["min"], np.float64),
        maximum=np.asarray(fields["max"], np.float64),
        count=np.asarray(fields["count"], np.int64),
        longest_series=int(fields["longest_series"]),
    )
