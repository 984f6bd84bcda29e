"""From a stored example to the arrays of a batch: dates, crop, turns, standardisation, masks.

This is the one place where statistics are applied. All of it is numpy, and of one example all arrays get the same turn.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Num

from anysat_jax.batch import Batch, Observation
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.statistics import SensorStatistics

IGNORE = -1  # in a batch's dense labels, whatever stands for no label on disk


@dataclasses.dataclass(frozen=True)
class Sample:
    """One tile on its way into a batch: observations and labels without the leading axis."""

    observations: dict[str, Observation]
    labels: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Turn:
    """A symmetry of the square: perhaps mirrored left to right, then turned by quarters."""

    mirrored: bool = False
    quarters: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator, *, square: bool) -> "Turn":
        """One of the eight symmetries of a square tile, or of the four that keep a rectangle's shape."""
        quarters = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
        return cls(bool(rng.integers(2)), quarters)

    def __call__(self, array: Num[np.ndarray, "*axes H W"]) -> Num[np.ndarray, "*axes h w"]:
        """A view of the array, turned in its last two axes."""
        if self.mirrored:
            array = array[..., ::-1]
        return np.rot90(array, self.quarters, axes=(-2, -1)) if self.quarters else array


@dataclasses.dataclass(frozen=True)
class ExampleTransform:
    """Makes samples of one dataset, all of the same static shapes.

    With a random generator it is training's augmentation: dates, crop and turn are drawn. Without, it is evaluation:
    dates evenly spread, the centre of the tile, no turn.

    Attributes:
      card: the dataset's facts.
      statistics: of its bands.
      max_dates: upper bound of the dates of a series; None: as many as its longest series has.
    """

    card: DatasetCard
    statistics: dict[str, SensorStatistics]
    max_dates: int | None = None

    def num_dates(self, sensor: str) -> int:
        """Length of the padded dates axis of a sensor."""
        longest = self.statistics[sensor].longest_series
        return min(longest, self.max_dates) if self.max_dates else longest

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Sample:
        """Args:
        example: as stored; its arrays are not changed.
        rng: draws the augmentation; None for evaluation.
        """
        turn = Turn() if rng is None else Turn.draw(rng, square=self._is_square(example))
        observations = {name: self._observe(name, example, turn, rng) for name in self.card.sensors}
        return Sample(observations, self._labels(example, turn))

    def _is_square(self, example: Example) -> bool:
        shapes = [example[name].shape for name in self.card.sensors]
        return all(shape[-1] == shape[-2] for shape in shapes)

    def _observe(self, name: str, example: Example, turn: Turn, rng: np.random.Generator | None) -> Observation:
        sensor, values, mask = get_sensor(name), example[name], example.get(f"{name}_mask")
        dates = None
        if sensor.has_dates:
            chosen = choose_dates(len(values), self.num_dates(name), rng)
            values, dates = values[chosen], example[f"{name}_dates"][chosen]
            mask = None if mask is None else mask[chosen]
        window = crop_window(values.shape[-2:], sensor.pixels(self.card.extent), rng)
        values = turn(values[window])
        mask = None if mask is None else turn(mask[window])
        return self._finish(name, values, mask, dates)

    def _finish(self, name: str, values: np.ndarray, mask: np.ndarray | None, dates: np.ndarray | None) -> Observation:
        standard = standardise(values, self.statistics[name])
        if mask is not None:
            standard, mask = hide_invalid(standard, mask)
        if dates is None:
            return Observation(standard, pixel_mask=mask)
        length = self.num_dates(name)
        return Observation(
            values=pad_dates(standard, length),
            dates=pad_dates(dates.astype(np.int32), length),
            date_mask=np.arange(length) < len(dates),
            pixel_mask=None if mask is None else pad_dates(mask, length),
        )

    def _labels(self, example: Example, turn: Turn) -> dict[str, Any]:
        labels: dict[str, Any] = {}
        if self.card.tile_label != "none":
            dtype = np.int32 if self.card.tile_label == "class" else np.float32
            labels["tile"] = np.asarray(example["tile"], dtype)
        if self.card.dense_label == "regression":
            labels["dense"] = np.ascontiguousarray(turn(example["dense"]), np.float32)
        elif self.card.dense_label != "none":
            dense = turn(example["dense"]).astype(np.int32)
            labels["dense"] = np.where(dense == self.card.ignore_label, np.int32(IGNORE), dense)
        return labels


def choose_dates(count: int, limit: int, rng: np.random.Generator | None) -> Int[np.ndarray, "t"]:
    """Which of `count` dates to keep, in order: all that fit, else `limit` at random or (no `rng`) evenly spread."""
    if count <= limit:
        return np.arange(count)
    if rng is None:
        return np.round(np.linspace(0, count - 1, limit)).astype(np.int64)
    return np.sort(rng.choice(count, limit, replace=False))


def crop_window(shape: tuple[int, ...], pixels: int, rng: np.random.Generator | None) -> tuple[Any, ...]:
    """The index of a window of `pixels` x `pixels`: at random or, without `rng`, in the centre."""
    margins = [side - pixels for side in shape]
    starts = [margin // 2 if rng is None else int(rng.integers(margin + 1)) for margin in margins]
    return (..., *(slice(start, start + pixels) for start in starts))


def standardise(values: Num[np.ndarray, "*T C H W"], statistics: SensorStatistics) -> Float32[np.ndarray, "*T C H W"]:
    """Native units to zero mean and unit deviation for each band, as a new float32 array."""
    standard = values.astype(np.float32, order="C")
    standard -= statistics.mean.astype(np.float32)[:, None, None]
    standard /= statistics.std.astype(np.float32)[:, None, None]
    return standard


def hide_invalid(
    values: Float32[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"]
) -> tuple[np.ndarray, np.ndarray]:
    """Zeroes what is masked or not finite, in place, and gives the mask of what is left (True: valid)."""
    finite = np.isfinite(values)
    mask = mask & (finite if mask.shape == values.shape else finite.all(axis=-3, keepdims=True))
    np.copyto(values, 0.0, where=~mask)
    return values, mask


def pad_dates(array: Num[np.ndarray, "t *rest"], length: int) -> Num[np.ndarray, "T *rest"]:
    """Adds zeros at the end of the dates axis."""
    if len(array) == length:
        return np.ascontiguousarray(array)
    padded = np.zeros((length, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def collate(samples: Sequence[Sample], *, dataset: str, patch_size: float) -> Batch:
    """Stacks samples of one dataset into a batch."""
    observations = {
        name: Observation(**{field: _stack(samples, name, field) for field in _FIELDS})
        for name in samples[0].observations
    }
    labels = {key: np.stack([sample.labels[key] for sample in samples]) for key in samples[0].labels}
    return Batch(observations=observations, labels=labels, dataset=dataset, patch_size=float(patch_size))


_FIELDS = ("values", "dates", "date_mask", "pixel_mask")


def _stack(samples: Sequence[Sample], sensor: str, field: str) -> np.ndarray | None:
    arrays = [getattr(sample.observations[sensor], field) for sample in samples]
    return None if arrays[0] is None else np.stack(arrays)
