"""A dataset's facts, and what its reader must give."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from anysat_jax.sensors import Sensor, get_sensor, register

TileLabel = Literal["multi_label", "class", "regression", "none"]
DenseLabel = Literal["segmentation", "change", "regression", "none"]
Example = dict[str, Any]
"""One tile in native units, bands in the order of the sensor's record.

"id": str, unique in the dataset.
`<sensor>`: (C, H, W), or (T, C, H, W) with T > 0 for a series, in the card's dtype.
`<sensor>_dates`: (T,) int32, days of the year, 1 January = 0, in time order; `<sensor>_years`: (T,) int16.
`<sensor>_mask`: bool, True where valid, (*T, C, H, W) or (*T, 1, H, W); for the card's `masks`.
`<sensor>_cloud`: (T, 1, H, W) uint8, probability of cloud or snow in percent; for the card's `clouds`.
    A sensor that the tile lacks (one of the card's `optional`) has none of these keys.
"tile": int32 () class, (K,) uint8 multi-hot, or float32 ().
"dense": (h, w), class numbers in the card's dtype, or float32 with NaN where there is no label.
"crs": str, e.g. "EPSG:25832", and "transform": (6,) float64, the affine map (a, b, c, d, e, f) from (column, row) of
    the card's `georeferenced` sensor to the coordinates; for cards that name one. A tile without has "" and NaN.
"""


@dataclasses.dataclass(frozen=True)
class DatasetCard:
    """What there is to know about a dataset before opening it.

    Attributes:
      name: the name that configs use.
      title: the name that people use.
      sensors: names of the sensors, as registered.
      own_sensors: records of those that the library does not know of itself; unpickling a card registers them, so that
        worker processes know them.
      extent: side of a tile in metres, as the batches give it.
      patch_sizes: allowed patch sizes in metres (paper: Table C).
      splits: names of the splits.
      arrays: dtype of each stored array ("s2", "dense"); where it is not named float32, and int8 for a class map.
      sides: pixels along a side of a stored array ("aerial", "dense") that reaches beyond the extent; the batches take
        its centre.
      masks: sensors with `<sensor>_mask`; "pixel" for one mask of all bands, "band" for one each.
      clouds: sensors with `<sensor>_cloud`.
      optional: sensors that some tiles lack.
      blocks: a tile is stored as so many records a side, so that a window of it can be read without the rest; 1: one.
      georeferenced: the sensor whose grid "transform" describes; "" where the archive has none.
      file_bands: names of the bands in the order of the files, for sensors whose files differ from our order.
      units: of each sensor's values, in words.
      dates: what is known of each series' dates, in words.
      date_precision: of series whose days stand for something less exact: the "month", or "none" where the archive
        tells no date at all; pictures show no more than that.
      date_origin: "yyyy-mm-dd" from which the published readers count days; "": they count from 1 January.
      tile_label: kind of the label "tile", one for each tile.
      tile_classes: its class names, in order.
      dense_label: kind of the label "dense".
      dense_classes: its class names, in order.
      dense_colours: official colour "#rrggbb" of each dense class.
      dense_metres: side of a pixel of "dense" in metres.
      ignore_label: value of a class map that stands for no label.
      label_unit: what a regression's label measures, and in which unit.
      folds: the folds that each split is made of, where the archive has folds.
      split_rule: how tiles come to their splits, in words.
      natural_colour: for each sensor that can be shown, its (red, green, blue) channel numbers.
      size: how much there is, in words.
      notes: what a user should know: traps of the archive, where we differ from the published reader.
      licence, citation, url: terms, whom to cite, where to get it.
    """

    name: str
    title: str
    sensors: tuple[str, ...]
    extent: float
    patch_sizes: tuple[int, ...]
    splits: tuple[str, ...]
    arrays: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    masks: Mapping[str, Literal["pixel", "band"]] = dataclasses.field(default_factory=dict)
    clouds: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    blocks: int = 1
    georeferenced: str = ""
    file_bands: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date_precision: Mapping[str, Literal["month", "none"]] = dataclasses.field(default_factory=dict)
    date_origin: str = ""
    tile_label: TileLabel = "none"
    tile_classes: tuple[str, ...] = ()
    dense_label: DenseLabel = "none"
    dense_classes: tuple[str, ...] = ()
    dense_colours: tuple[str, ...] = ()
    dense_metres: float = 10.0
    ignore_label: int = -1
    label_unit: str = ""
    folds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    split_rule: str = ""
    natural_colour: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    own_sensors: tuple[Sensor, ...] = ()
    size: str = ""
    notes: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    url: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for sensor in self.own_sensors:
            register(sensor)

    def dtype(self, key: str) -> np.dtype:
        """Dtype of a stored array: a sensor's, or the label "dense"."""
        default = "int8" if key == "dense" and self.dense_label != "regression" else "float32"
        return np.dtype(self.arrays.get(key, default))

    def side(self, key: str) -> int:
        """Pixels along a side of a stored array: a sensor's, or the label "dense"."""
        if key in self.sides:
            return self.sides[key]
        return round(self.extent / self.dense_metres) if key == "dense" else get_sensor(key).pixels(self.extent)


class Reader(Protocol):
    """Reads one dataset's raw files, each tile on its own.

    A reader is pickled to worker processes: it keeps paths, lists and small tables, no open file.
    It may have `summary`, a line to print when it is opened, and `fingerprint`, a text that changes with the tiles.
    """

    card: DatasetCard

    def splits(self) -> tuple[str, ...]:
        """The card's splits for which there are tiles."""

    def keys(self, split: str) -> Sequence[str]:
        """Keys of a split's tiles in a fixed order, unique over all splits."""

    def example(self, split: str, key: str) -> Example:
        """One tile.

        Raises:
          ValueError, OSError: a file is missing, unreadable or not as published; the message names it, says what was
            expected and what to do.
        """


def num_tiles(reader: Reader) -> int:
    """Tiles of all splits."""
    return sum(len(reader.keys(split)) for split in reader.splits())
