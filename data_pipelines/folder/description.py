"""What the description of a folder of tiles says; `parse.py` reads it from a TOML file."""

import dataclasses
import pathlib

from anysat_jax.sensors import Sensor
from data_pipelines.folder.pattern import FilePattern

DECIBELS, LINEAR = "dB", "linear power"


@dataclasses.dataclass(frozen=True)
class SensorFiles:
    """Where a sensor's files are and what stands in them.

    Attributes:
      record: the sensor.
      files: their pattern.
      bands: names in the order of the files.
      dates: a CSV file with the dates of stacked files, or the name of an array of an npz file; "" for dates in names.
      array: name of the array in npz files; "" for the only one.
      nodata: value that stands for nothing observed, besides NaN and what a GeoTIFF declares.
      dtype: of the stored array.
      pixels: along a side, where the files reach beyond the extent.
      optional: whether tiles may lack it.
      units: of the values.
      natural_colour: bands to show as red, green and blue.
      own: whether the description makes the sensor known.
    """

    record: Sensor
    files: FilePattern
    bands: tuple[str, ...]
    dates: str = ""
    array: str = ""
    nodata: float | None = None
    dtype: str = "float32"
    pixels: int | None = None
    optional: bool = False
    units: str = ""
    natural_colour: tuple[str, ...] = ()
    own: bool = False

    @property
    def computes_ratio(self) -> bool:
        """Whether the sensor's third band, a ratio of the others, is not in the files."""
        bands = self.record.bands
        return len(bands) == 3 and bands[2] == f"{bands[0]}/{bands[1]}" and bands[2] not in self.bands


@dataclasses.dataclass(frozen=True)
class TileLabels:
    """A label for each tile: a column of the table."""

    column: str
    kind: str
    classes: tuple[str, ...] = ()
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class MaskFiles:
    """A label for each pixel: files of class numbers, or of numbers to be predicted.

    Attributes:
      values: what stands for each class in the files.
      ignore: what stands for no label in the files; None: nothing but NaN and what a GeoTIFF declares.
    """

    files: FilePattern
    array: str = ""
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: float | None = None
    metres_per_pixel: float = 10.0
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """Which tiles are held out: a column of the table, or shares drawn by the tiles' names."""

    column: str = ""
    val: float = 0.2
    test: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """A folder of tiles, as its TOML file describes it."""

    path: pathlib.Path
    text: str
    name: str
    title: str
    extent: float
    patch_sizes: tuple[int, ...]
    sensors: tuple[SensorFiles, ...]
    table: str = ""
    labels: TileLabels | None = None
    mask: MaskFiles | None = None
    splits: SplitRule = SplitRule()
    version: str = "1.0.0"
    licence: str = ""
    citation: str = ""
    url: str = ""
