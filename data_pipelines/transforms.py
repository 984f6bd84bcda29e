"""From a stored example to a row of a batch: dates, window, flip and rotation, standardisation, masks.

Statistics are applied here and nowhere else. All of it is numpy, and values are cast once, into the batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Num

from anysat_jax.batch import Batch, Observation
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.dates import days_since
from data_pipelines.options import Sampling
from data_pipelines.prepare.statistics import SensorStatistics
from data_pipelines.windows import Block, Window, empty_labels, pixel_metres, write_labels

Rng = np.random.Generator | None
"""A generator in training; None in evaluation, which is deterministic."""


def most_dates(count: int, sampling: Sampling, training: bool) -> int:
    """Returns the upper bound of the dates that are kept of `count`; clouded ones are not yet removed."""
    if training:
        # 100 * 0.29 is a little below 29.
        count -= int(count * sampling.temporal_dropout + 1e-9)
    return min(count, sampling.limit) if sampling.limit else count


def choose_dates(
    count: int, sampling: Sampling, rng: Rng, cloud: Float32[np.ndarray, "T"] | None = None
) -> Int[np.ndarray, "t"]:
    """Returns the positions of the dates to keep of `count`, in time order.

    Dates that are clouded too much are removed first, except for the clearest; of the rest, training samples as many as
    temporal dropout and limit leave, and evaluation takes as many as the limit allows, evenly spread. `cloud` is the
    mean cloud cover of each date over the sample, in percent.
    """
    clear = np.arange(count)
    if cloud is not None and sampling.max_cloud is not None:
        clear = np.flatnonzero(cloud <= sampling.max_cloud)
        clear = clear if len(clear) else np.asarray([cloud.argmin()])
    limit = most_dates(len(clear), sampling, rng is not None)
    if len(clear) <= limit:
        return clear
    if rng is None:
        return clear[np.round(np.linspace(0, len(clear) - 1, limit)).astype(np.int64)]
    return clear[np.sort(rng.choice(len(clear), limit, replace=False))]


def padded_lengths(
    longest: Mapping[str, int],
    sampling: Sampling,
    training: bool,
    counts: Mapping[str, Int[np.ndarray, "B"]] | None = None,
) -> dict[str, int]:
    """Returns the length of the dates axis of each series in a batch.

    With buckets, one bucket serves all sensors: the smallest that holds the longest series of the batch. For each
    series, `longest` has the dates of the dataset's longest, and `counts` those of each of the batch's tiles, of all
    processes, not needed without buckets. In training, temporal dropout shortens the series.
    """
    caps = {name: max(1, most_dates(length, sampling, training)) for name, length in longest.items()}
    if not sampling.date_buckets or counts is None:
        return caps
    need = max((most_dates(int(count.max()), sampling, training) for count in counts.values()), default=0)
    # Buckets of each sensor would multiply the shapes of a batch, and each shape is a program to compile.
    bucket = next(bucket for bucket in sampling.date_buckets if bucket >= need)
    return {name: min(cap, bucket) for name, cap in caps.items()}


@dataclasses.dataclass(frozen=True)
class TileTransform:
    """Writes tiles of one dataset into batches."""

    card: DatasetCard
    statistics: Mapping[str, SensorStatistics]
    sampling: Sampling

    @property
    def extent(self) -> float:
        """Side of a sample in metres."""
        return self.sampling.extent or self.card.extent

    def empty_batch(self, batch_size: int, lengths: Mapping[str, int], patch_size: float) -> Batch:
        """Returns a batch for `write`, without any sensor or date; `lengths` are those of the series' dates axes."""
        return Batch(
            observations={name: self._empty(name, batch_size, lengths.get(name)) for name in self.card.sensors},
            labels=empty_labels(self.card, batch_size, self.extent),
            dataset=self.card.name,
            patch_size=float(patch_size),
        )

    def _empty(self, name: str, batch_size: int, length: int | None) -> Observation:
        sensor, card = get_sensor(name), self.card
        side = 1 if sensor.kind == "context" else round(self.extent / pixel_metres(card, name))
        axes = (batch_size, length) if length is not None else (batch_size,)
        # An image that no tile lacks is overwritten as a whole: zeros would cost another pass over the memory.
        make = np.zeros if length is not None or name in card.optional else np.empty
        channels = {"pixel": 1, "band": sensor.num_bands, None: None}[card.masks.get(name)]
        return Observation(
            values=make((*axes, sensor.num_bands, side, side), np.float32),
            dates=None if length is None else np.zeros(axes, np.int32),
            date_mask=None if length is None else np.zeros(axes, np.bool_),
            pixel_mask=None if channels is None else np.zeros((*axes, channels, side, side), np.bool_),
            # A mask may leave nothing of a window.
            present=np.zeros(batch_size, np.bool_) if name in card.optional or channels else None,
        )

    def write(self, batch: Batch, row: int, blocks: Sequence[Block], window: Window, rng: Rng) -> None:
        """Writes a tile into a row of an `empty_batch`: the part, flip and rotation that `window` names.

        `blocks` are at least those of the tile that the window intersects; their arrays are not changed.
        """
        example = blocks[0].example
        for name, target in batch.observations.items():
            if example.get(f"{name}_present", True) and len(example[name]):
                self._observe(name, target, row, blocks, window, rng)
        write_labels(self.card, batch.labels, row, blocks, window)

    def _observe(
        self, name: str, target: Observation, row: int, blocks: Sequence[Block], window: Window, rng: Rng
    ) -> None:
        """Writes values and mask, of chosen dates of a series; in training with the option's noise.

        Dates and images without a valid pixel in the window are left out, as if they did not exist.
        """
        example, sampling, place, chosen, mask = blocks[0].example, self.sampling, (row,), None, None
        observed = np.ones(len(example[name]), np.bool_)
        if target.pixel_mask is not None:
            mask = window.cut(self.card, name, blocks, "_mask")
            observed = mask.any(axis=(-3, -2, -1))
        if not observed.any():
            target.values[row] = 0  # of an image they are not set yet
            return
        if target.present is not None:
            target.present[row] = True
        if get_sensor(name).has_dates:
            cloud = None
            if sampling.max_cloud is not None and name in self.card.clouds:
                cloud = window.cut(self.card, name, blocks, "_cloud").mean(axis=(1, 2, 3), dtype=np.float32)[observed]
            chosen = np.flatnonzero(observed)[choose_dates(int(observed.sum()), sampling, rng, cloud)]
            days = example[f"{name}_dates"]
            if sampling.dates == "published":
                days = days_since(self.card.date_origin, days, example[f"{name}_years"])
            elif sampling.dates == "none":
                days = np.zeros_like(days)
            place = (row, slice(len(chosen)))
            target.dates[place], target.date_mask[place] = days[chosen], True
        values = window.dihedral.copied(window.cut(self.card, name, blocks, dates=chosen))
        out = target.values[place]
        standardise(values, self.statistics[name], out)
        # Masked values are set to 0 afterwards: noise must not show where nothing was observed.
        if rng is not None and sampling.noise:
            out += np.float32(sampling.noise) * rng.standard_normal(out.shape, dtype=np.float32)
        if target.pixel_mask is not None:
            mask = window.dihedral(mask if chosen is None else mask[chosen])
            target.pixel_mask[place] = hide_invalid(values, mask, out)


def standardise(
    values: Num[np.ndarray, "*T C H W"], statistics: SensorStatistics, out: Float32[np.ndarray, "*T C H W"]
) -> None:
    """Writes values with zero mean and unit standard deviation for each band into `out`."""
    # dtype keeps int32 and float64 arrays from being computed in float64; `out` saves a temporary of the tile's size.
    mean, std = (one.astype(np.float32)[:, None, None] for one in (statistics.mean, statistics.std))
    np.subtract(values, mean, out=out, dtype=np.float32, casting="same_kind")
    np.divide(out, std, out=out)


def hide_invalid(
    values: Num[np.ndarray, "*T C H W"], mask: Bool[np.ndarray, "*T c H W"], standard: Float32[np.ndarray, "*T C H W"]
) -> Bool[np.ndarray, "*T c H W"]:
    """Sets masked and non-finite values of `standard` to 0, in place; returns the mask of the others (True: valid)."""
    if values.dtype.kind == "f":
        finite = np.isfinite(standard)
        mask = mask & (finite if mask.shape == finite.shape else finite.all(axis=-3, keepdims=True))
    if not mask.all():
        np.copyto(standard, 0.0, where=~mask)
    return mask
