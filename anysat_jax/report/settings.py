"""The `evaluate` section of a config, as the report reads it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


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
