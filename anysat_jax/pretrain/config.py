"""."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from ml_collections import ConfigDict

from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.contrastive import NEGATIVES
from anysat_jax.train.config import (
    COUNT,
    OPTIONAL_POSITIVE,
    POSITIVE,
    SHARE,
    SHARED_RULES,
    SIZES,
    Rule,
    check_values,
    flatten,
    model_of,
)


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What the report probes and shows.

    Attributes:
      probe: whether to probe at all; without, the report has the training curves alone.
      datasets: names of the datasets; None means every dataset of the run.
      patch_size: side of a patch in metres; None means each dataset's smallest.
      batch_size: tiles in a forward pass.
      max_tiles: at most so many tiles of each split.
      pixels_per_tile: at most so many labelled pixels of each training tile fit the dense probe.
      pictures: tiles of each dataset that the picture shows; 0 for no pictures.
    """

    probe: bool = True
    datasets: tuple[str, ...] | None = None
    patch_size: float | None = None
    batch_size: int = 16
    max_tiles: int = 256
    pixels_per_tile: int = 48
    pictures: int = 4

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_tiles", "pixels_per_tile"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name} = {getattr(self, name)} must be at least 1")
        if self.patch_size is not None and self.patch_size <= 0:
            raise ValueError(f"evaluate.patch_size = {self.patch_size} must be None or above 0, in metres")
        if self.pictures < 0:
            raise ValueError(f"evaluate.pictures = {self.pictures} must be 0 or more")

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> Self:
        """Settings from the `evaluate` section; fields that it lacks keep their defaults.

        Raises:
          ValueError: a value is out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)} & set(section)
        values = {name: section[name] for name in names}
        if values.get("datasets") is not None:
            values["datasets"] = tuple(values["datasets"])
        return cls(**values)


_RANGE = Rule(lambda value: len(value) == 2 and 0 < value[0] <= value[1], "two numbers above 0, the smaller first")


_SHARE_RANGE = Rule(lambda value: _RANGE.holds(value) and value[1] <= 1, "two shares from 0 to 1, the smaller first")


_BUCKETS = Rule(
    lambda value: len(value) == 2 and min(value) > 0 and math.prod(value) <= 4,
    "two numbers above 0 with a product of at most 4: each pair is one more compiled program",
)


RULES: dict[str, Rule] = {
    **SHARED_RULES,
    "total_steps": POSITIVE,
    "accumulate": POSITIVE,
    "health.min_rank_share": SHARE,
    "health.max_cosine": SHARE,
    "health.min_variance": SHARE,
    "pretrain.ema_start": SHARE,
    "pretrain.temperature": POSITIVE,
    "pretrain.predictive_weight": COUNT,
    "pretrain.contrastive_weight": COUNT,
    "pretrain.num_target_blocks": POSITIVE,
    "pretrain.target_scale": _SHARE_RANGE,
    "pretrain.target_aspect": _RANGE,
    "pretrain.context_scale": _SHARE_RANGE,
    "pretrain.mask_buckets": _BUCKETS,
    "pretrain.contrastive_block": POSITIVE,
    "pretrain.negatives": Rule(lambda value: value in NEGATIVES, f"one of {', '.join(map(repr, NEGATIVES))}"),
    "optimizer.warmup_steps": COUNT,
    "optimizer.plateau.window": POSITIVE,
}


DATASET_RULES: dict[str, Rule] = {
    "batch_size": POSITIVE,
    "weight": POSITIVE,
    "patch_sizes": SIZES,
    "max_dates": OPTIONAL_POSITIVE,
}


def check(config: ConfigDict) -> ModelConfig:
    """Refuses values that cannot work, before anything is loaded or compiled.

    Returns:
      The model that the config describes.

    Raises:
      ConfigError: a value is missing or out of range, or the model's fields do not fit together.
    """
    flat = flatten(config)
    check_values(flat, RULES)
    datasets = config.data.get("datasets") or {}
    if not datasets:
        raise ConfigError("data.datasets is empty; name at least one dataset")
    for dataset in datasets:
        check_values(flat, DATASET_RULES, f"data.datasets.{dataset}.")
    try:
        EvaluateSettings.from_section(config.evaluate)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return model_of(config)
