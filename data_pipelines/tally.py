"""What is counted of the examples of a shard for the report of a preparation, in parts that can be merged."""

import dataclasses
from typing import Any, Self

import numpy as np
from jaxtyping import Int64

from data_pipelines.card import DatasetCard, Example
from data_pipelines.running import Moments

CLOUDY = 50  # percent; from there on a pixel counts as cloudy
NO_LABEL = "(no label)"


@dataclasses.dataclass
class SensorTally:
    """Counts of one sensor.

    Attributes:
      missing: tiles that lack it.
      pixels, invalid: values of its masks, and how many of them are False.
      seen, cloudy: values of its cloud layers, and how many of them are CLOUDY percent or more.
    """

    missing: int = 0
    pixels: int = 0
    invalid: int = 0
    seen: int = 0
    cloudy: int = 0

    def update(self, name: str, example: Example) -> None:
        if not example.get(f"{name}_present", True):
            self.missing += 1
            return
        if (mask := example.get(f"{name}_mask")) is not None:
            self.pixels += mask.size
            self.invalid += int(mask.size - np.count_nonzero(mask))
        if (cloud := example.get(f"{name}_cloud")) is not None:
            self.seen += cloud.size
            self.cloudy += int(np.count_nonzero(cloud >= CLOUDY))

    def merge(self, other: Self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Tally:
    """Counts of sensors and labels, of one shard or of a whole split.

    Attributes:
      sensors: counts of each sensor.
      classes: for each class label, tiles ("tile") or pixels ("dense") of each class, and last those without a label.
      numbers: for each regression label, moments of its values.
    """

    def __init__(self, card: DatasetCard) -> None:
        self.sensors = {name: SensorTally() for name in card.sensors}
        self.classes: dict[str, Int64[np.ndarray, "K+1"]] = {}
        self.numbers: dict[str, Moments] = {}
        for key, kind, names in _labels(card):
            if kind == "regression":
                self.numbers[key] = Moments.empty(1)
            elif kind != "none":
                self.classes[key] = np.zeros(len(names) + 1, np.int64)

    def update(self, example: Example) -> None:
        """Counts a complete example."""
        for name, one in self.sensors.items():
            one.update(name, example)
        for key, counts in self.classes.items():
            counts += _class_counts(np.asarray(example[key]), len(counts) - 1, multi_hot=key == "tile")
        for key, moments in self.numbers.items():
            values = np.asarray(example[key]).ravel()
            moments.merge(Moments.of([values[np.isfinite(values)]]))

    def merge(self, other: Self) -> None:
        """Adds another part's counts."""
        for name, one in self.sensors.items():
            one.merge(other.sensors[name])
        for key, counts in self.classes.items():
            counts += other.classes[key]
        for key, moments in self.numbers.items():
            moments.merge(other.numbers[key])

    def to_json(self) -> dict[str, Any]:
        """Plain numbers that `from_json` takes; floats keep every bit."""
        numbers = {k: {f: a.tolist() for f, a in dataclasses.asdict(m).items()} for k, m in self.numbers.items()}
        return {
            "sensors": {name: dataclasses.asdict(one) for name, one in self.sensors.items()},
            "classes": {key: counts.tolist() for key, counts in self.classes.items()},
            "numbers": numbers,
        }

    @classmethod
    def from_json(cls, card: DatasetCard, content: dict[str, Any]) -> "Tally":
        """The tally of `to_json`."""
        tally = cls(card)
        tally.sensors = {name: SensorTally(**content["sensors"][name]) for name in tally.sensors}
        tally.classes = {key: np.asarray(content["classes"][key], np.int64) for key in tally.classes}
        for key in tally.numbers:
            fields = content["numbers"][key]
            tally.numbers[key] = Moments(
                **{f: np.asarray(v, np.int64 if f == "count" else np.float64) for f, v in fields.items()}
            )
        return tally


def _labels(card: DatasetCard) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    return ("tile", card.tile_label, card.tile_classes), ("dense", card.dense_label, card.dense_classes)


def _class_counts(label: np.ndarray, num_classes: int, *, multi_hot: bool) -> Int64[np.ndarray, "K+1"]:
    """Counts of classes and, last, of what is none: pixels without a label, or a tile without any class."""
    if multi_hot and label.ndim == 1:
        return np.append(label.astype(np.int64), int(not label.any()))
    numbers = label.astype(np.int64).ravel()
    known = np.where((numbers >= 0) & (numbers < num_classes), numbers, num_classes)
    return np.bincount(known, minlength=num_classes + 1)
