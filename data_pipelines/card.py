"""A dataset's facts, and what its reader must give."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np

LabelKind = Literal["multi_label", "class", "none"]
Example = dict[str, Any]
"""One tile in native units: "id" str; for each sensor its array, (C, H, W) or (T, C, H, W), and `<sensor>_dates`
(T,) int32, days of the year from 0; optionally `<sensor>_mask` bool, True where valid, (T, C|1, H, W) or (C|1, H,
W); "tile": int32 class or multi-hot (K,) uint8; "dense": (h, w) int8 class map."""


@dataclasses.dataclass(frozen=True)
class DatasetCard:
    """What there is to know about a dataset before opening it.

    Attributes:
      name: the name that configs use.
      title: the name that people use.
      sensors: names of the sensors, as registered.
      extent: side of a tile in metres, as the batches give it.
      patch_sizes: allowed patch sizes in metres (paper: Table C).
      splits: names of the splits.
      tile_label: kind of the label "tile", one for each tile.
      tile_classes: its class names, in order.
      dense_classes: class names of the label "dense", in order; empty where there is none.
      dense_colours: a colour "#rrggbb" for each dense class.
      dense_metres: side of a pixel of "dense" in metres.
      ignore_label: value of "dense" that stands for no label.
      natural_colour: for each sensor that can be shown, its (red, green, blue) channel numbers.
      arrays: dtype of each sensor's array as the reader gives it.
      licence, citation, url: where it comes from and under which terms.
    """

    name: str
    title: str
    sensors: tuple[str, ...]
    extent: float
    patch_sizes: tuple[int, ...]
    splits: tuple[str, ...]
    tile_label: LabelKind = "none"
    tile_classes: tuple[str, ...] = ()
    dense_classes: tuple[str, ...] = ()
    dense_colours: tuple[str, ...] = ()
    dense_metres: float = 10.0
    ignore_label: int = -1
    natural_colour: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    arrays: dict[str, str] = dataclasses.field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    url: str = ""

    def dtype(self, sensor: str) -> np.dtype:
        """Dtype of a sensor's stored array; float32 unless the card says otherwise."""
        return np.dtype(self.arrays.get(sensor, "float32"))


class Reader(Protocol):
    """Reads one dataset's raw files."""

    card: DatasetCard

    def __len__(self) -> int:
        """Number of tiles over all splits, for the progress bar."""

    def splits(self) -> tuple[str, ...]:
        """The card's splits for which there are tiles."""

    def examples(self, split: str) -> Iterator[tuple[str, Example]]:
        """Key and example of each tile of a split, in a fixed order."""
