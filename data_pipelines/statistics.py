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
from jaxtyping import Float64, Int64, Shaped

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.running import RunningStatistics

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
