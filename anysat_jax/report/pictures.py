"""Held-out tiles as pictures: natural colour, dense features, land cover as told by the probes and as labelled."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from anysat_jax.adapt.features import FrozenFeatures
from anysat_jax.batch import Batch, Observation, tile_extent
from anysat_jax.report.plan import Plan
from anysat_jax.report.samples import valid_tiles
from anysat_jax.sensors import get_sensor

STRETCH = (2.0, 98.0)  # percentiles that become black and white


@dataclasses.dataclass
class Picture:
    """One tile, ready to be drawn.

    Attributes:
      extent: height and width of the tile in metres.
      natural: red, green and blue of the sensor in `natural_sensor`, not stretched yet.
      natural_sensor: that sensor's name.
      features: dense features by network.
      land_cover: class maps by what they are: a network's name (the probe's answer) or "label".
    """

    extent: tuple[float, float]
    natural: Float[np.ndarray, "H W 3"]
    natural_sensor: str
    features: dict[str, Float[np.ndarray, "h w F"]]
    land_cover: dict[str, Int[np.ndarray, "h w"]]


class Album:
    """Keeps the tiles with the most varied labels of all that it is shown."""

    def __init__(self, plan: Plan, size: int) -> None:
        self._plan = plan
        self._size = size
        self._sensor = natural_sensor(plan)
        self._best: list[tuple[float, Picture]] = []

    @property
    def pictures(self) -> list[Picture]:
        """The kept tiles, the most varied first."""
        return [picture for _, picture in self._best]

    def add(
        self,
        batch: Batch,
        features: Mapping[str, FrozenFeatures],
        predicted: Mapping[str, Int[np.ndarray, "B h w"]],
    ) -> None:
        """Shows a batch; tiles that are padding are passed over."""
        if not self._size or self._sensor is None or "dense" not in batch.labels:
            return
        for index in np.flatnonzero(valid_tiles(batch)):
            score = variety(np.asarray(batch.labels["dense"][index]), self._plan.card.ignore_label)
            if len(self._best) < self._size or score > self._best[-1][0]:
                self._best.append((score, self._picture(batch, features, predicted, index)))
                self._best = sorted(self._best, key=lambda entry: -entry[0])[: self._size]

    def _picture(
        self,
        batch: Batch,
        features: Mapping[str, FrozenFeatures],
        predicted: Mapping[str, Int[np.ndarray, "B h w"]],
        index: int,
    ) -> Picture:
        channels = self._plan.card.natural_colour[self._sensor]
        maps = {name: np.array(values[index]) for name, values in predicted.items()}
        return Picture(
            extent=tile_extent(batch.observations),
            natural=natural_colour(batch.observations[self._sensor], index, channels),
            natural_sensor=self._sensor,
            features={name: np.array(f.dense[self._plan.picture_sensor][index]) for name, f in features.items()},
            land_cover={**maps, "label": np.array(batch.labels["dense"][index])},
        )


def natural_sensor(plan: Plan) -> str | None:
    """The sensor with the smallest pixels among those that can be shown in natural colour."""
    shown = [name for name in plan.card.natural_colour if get_sensor(name).kind != "context"]
    return min(shown, key=lambda name: get_sensor(name).metres_per_pixel, default=None)


def natural_colour(observation: Observation, index: int, channels: tuple[int, int, int]) -> Float[np.ndarray, "H W 3"]:
    """One tile's red, green and blue; of a series the median over its real dates, which leaves most clouds out."""
    values = np.asarray(observation.values[index], np.float32)[..., list(channels), :, :]
    if values.ndim == 4:
        dates = slice(None) if observation.date_mask is None else np.asarray(observation.date_mask[index])
        values = np.median(values[dates], axis=0)
    return np.moveaxis(values, 0, -1)


def variety(labels: Int[np.ndarray, "h w"], ignore: int) -> float:
    """Entropy of the label's classes in nats: 0 where one class is everywhere."""
    _, counts = np.unique(labels[labels != ignore], return_counts=True)
    shares = counts / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def stretch(images: list[Float[np.ndarray, "H W 3"]]) -> list[Float[np.ndarray, "H W 3"]]:
    """Each channel from percentiles over all images to [0, 1], so that colours compare between the images."""
    values = np.concatenate([image.reshape(-1, 3) for image in images])
    low, high = np.percentile(values, STRETCH, axis=0)
    scale = np.maximum(high - low, 1e-6)
    return [np.clip((image - low) / scale, 0, 1) for image in images]


def principal_colours(maps: list[Float[np.ndarray, "h w F"]]) -> list[Float[np.ndarray, "h w 3"]]:
    """The three main directions in which features vary inside the tiles, as red, green and blue in [0, 1].

    Features are LayerNormed, as the probes read them, and taken relative to their tile's mean: whole tiles differ more
    than their parts, and would be one colour each. Directions point to where their largest weight is positive, so that
    colours do not depend on the eigensolver.
    """
    flat = np.concatenate([_about_mean(one) for one in maps])
    flat /= flat.std(axis=0) + 1e-3  # a feature that hardly varies stays small
    _, axes = np.linalg.eigh(flat.T @ flat)
    axes = axes[:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(3)])
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in maps])[:-1]
    colours = [part.reshape(*one.shape[:2], 3) for part, one in zip(np.split(flat @ axes, ends), maps, strict=True)]
    return stretch(colours)


def _about_mean(features: Float[np.ndarray, "h w F"]) -> Float[np.ndarray, "h*w F"]:
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= flat.std(axis=1, keepdims=True) + 1e-6
    return flat - flat.mean(axis=0)
