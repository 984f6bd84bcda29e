"""Rasters read for looking at them, decimated to the pixels of a picture, and their kinds by their contents."""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import rasterio
from jaxtyping import Bool, Float, Float32, UInt8
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from anysat_jax.principal import principal_axes
from anysat_jax.report.style import coloured
from anysat_jax.scenes.encoding import Encoding
from anysat_jax.scenes.grid import SAME_METRES, Box
from anysat_jax.scenes.outputs import ENCODING_TAG, ZARR_SUFFIX
from anysat_jax.scenes.zarr_output import Store, open_store
from data_pipelines.files import explained
from data_pipelines.plots.tile import COLOURS_OF_NUMBERS

MOST_COMPONENTS = 32
SAMPLE_PIXELS = 2**14  # from which components are fitted
STRIP_BYTES = 2**26  # of an embedding in memory at once, as float32
STRETCH = (2.0, 98.0)  # percentiles at the ends of colours
PROBABILITY = "probability"  # unit of rasters with one band a class
EXPECTED = "a GeoTIFF or Zarr that anysat embed or anysat predict wrote"

Kind = Literal["picture", "embedding", "classes", "numbers"]


@dataclasses.dataclass(frozen=True)
class Frame:
    """The pixels on which rasters are looked at."""

    crs: rasterio.crs.CRS
    bounds: Box
    shape: tuple[int, int]  # rows and columns

    @property
    def transform(self) -> Affine:
        (rows, columns), box = self.shape, self.bounds
        return Affine(box.width / columns, 0, box.left, 0, -box.height / rows, box.top)

    def coarser(self, most: int) -> "Frame":
        """Returns the same place in about `most` pixels, or as it is where it has fewer."""
        rows, columns = self.shape
        step = max(1, math.ceil(math.sqrt(rows * columns / most)))
        return dataclasses.replace(self, shape=(math.ceil(rows / step), math.ceil(columns / step)))


@dataclasses.dataclass(frozen=True)
class Output:
    """An opened raster."""

    path: pathlib.Path
    kind: Kind
    frame: Frame  # its own pixels
    bands: tuple[str, ...]
    unit: str
    classes: dict[int, tuple[str, str]]  # name and colour (#rrggbb) by value
    encoding: Encoding  # of an embedding
    tags: Mapping[str, str]
    stored: Any  # rasterio's dataset, or a `Store`

    def rows(self, frame: Frame, first: int, last: int) -> np.ma.MaskedArray:
        """Reads rows of a frame, (K, rows, columns) as stored, masked where there is no data: the nearest pixels."""
        if isinstance(self.stored, Store):
            if frame.crs != self.frame.crs:
                what = f"{self.path} is in {self.frame.crs}, and the first output in {frame.crs}"
                raise ValueError(f"{what}: give the Zarr store first, or write it as GeoTIFF")
            return self.stored.nearest(frame.transform, range(first, last), frame.shape[1])
        with contextlib.ExitStack() as stack:
            raster, alpha, (rows, columns) = self.stored, False, frame.shape
            if not on_same_ground(self.frame, frame):
                # Beyond a raster without nodata there would be zeros, which are of class 0.
                alpha = raster.mask_flag_enums[0] == [MaskFlags.all_valid]
                place = dict(crs=frame.crs, transform=frame.transform, height=rows, width=columns, add_alpha=alpha)
                # Nothing is interpolated: numbers of classes and of an encoding have no mean.
                raster = stack.enter_context(WarpedVRT(raster, resampling=Resampling.nearest, **place))
            bands = list(range(1, self.stored.count + alpha + 1))
            step = raster.height / rows
            window = Window(0, first * step, raster.width, (last - first) * step)
            # GDAL reads the overview whose pixels come closest.
            stored = raster.read(bands, window=window, out_shape=(len(bands), last - first, columns), masked=True)
        # A warped raster of int8 has int16.
        stored = stored.astype(self.stored.dtypes[0], copy=False)
        if not alpha:
            return stored
        # GDAL takes the band for a mask in rasters of bytes only.
        opaque = np.broadcast_to(stored.data[-1] > 0, stored.data[:-1].shape)
        return np.ma.MaskedArray(stored.data[:-1], ~opaque)

    def read(self, frame: Frame) -> np.ma.MaskedArray:
        """Reads a frame, (K, H, W) as stored, masked where there is no data."""
        return self.rows(frame, 0, frame.shape[0])


def frame_for_all(output: Output, most: int) -> Frame:
    """Returns the pixels, about `most`, of an output on which others are looked at as well.

    Raises:
      ValueError: they are not in metres.
    """
    crs = output.frame.crs
    if not crs.is_projected or crs.linear_units_factor[1] != 1:
        what = f"{output.path} is in {crs}, whose unit is not the metre"
        raise ValueError(f"{what}: warp it to a metric system, such as UTM, or give an output in metres first")
    return output.frame.coarser(most)


def on_same_ground(one: Frame, other: Frame) -> bool:
    """Returns whether two frames differ in the size of their pixels only."""
    sides = zip(dataclasses.astuple(one.bounds), dataclasses.astuple(other.bounds))
    return one.crs == other.crs and all(abs(a - b) <= SAME_METRES for a, b in sides)


def overlap(one: Frame, other: Frame) -> bool:
    """Returns whether two frames have a common area."""
    box = one.bounds
    if one.crs != other.crs:
        box = Box(*transform_bounds(one.crs, other.crs, *dataclasses.astuple(box)))
    return box.intersection(other.bounds) is not None


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str]) -> Iterator[Output]:
    """Opens a raster to look at; errors of reading it name the file.

    Raises:
      FileNotFoundError, ValueError: it is missing, not a raster, damaged, or without a place, north up.
    """
    path = pathlib.Path(path)
    with explained(path, EXPECTED, RasterioError), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if not path.exists():
            raise FileNotFoundError(path)
        if path.suffix == ZARR_SUFFIX:
            yield describe(path, open_store(path))
            return
        # Other drivers would read further files and addresses that a file names.
        with rasterio.open(path, driver="GTiff") as stored:
            yield describe(path, stored)


def describe(path: pathlib.Path, stored: Any) -> Output:
    """Returns an opened raster with what it holds, by its tags or, where it has none, by its bands."""
    frame = own_frame(path, stored)
    classes = read_classes(stored)
    tags = stored.tags()
    dtype, count, tag, kind = stored.dtypes[0], stored.count, tags.get(ENCODING_TAG), "numbers"
    if tag or dtype == "int8":
        kind = "embedding"
    elif classes and count == 1:
        kind = "classes"
    elif dtype == "uint8" and count in (3, 4):
        kind = "picture"
    elif count > 1 and stored.units[0] != PROBABILITY:
        kind = "embedding"
    if dtype == "int8" and not tag:
        raise ValueError(f"{path} holds int8 without the tag {ENCODING_TAG}: its scale is unknown; write it again")
    try:
        encoding = Encoding.from_json(tag) if tag else Encoding()
    except ValueError as error:
        raise ValueError(f"{path}: its tag {ENCODING_TAG} is {error}") from error
    bands = tuple(name or f"band {number}" for number, name in enumerate(stored.descriptions, 1))
    return Output(path, kind, frame, bands, stored.units[0] or "", classes, encoding, tags, stored)


def own_frame(path: pathlib.Path, stored: Any) -> Frame:
    """Returns the pixels of a raster.

    Raises:
      ValueError: it has no coordinate system, or is not north up.
    """
    crs, place = stored.crs, stored.transform
    if crs is None:
        raise ValueError(
            f"{path} has no coordinate system: give an output of anysat embed or predict as it was written"
        )
    if place.b or place.d or place.a <= 0 or place.e >= 0:
        raise ValueError(f"{path} is not north up (transform {tuple(place)[:6]}): warp it with gdalwarp")
    right, bottom = place.c + stored.width * place.a, place.f + stored.height * place.e
    return Frame(crs, Box(place.c, bottom, right, place.f), (stored.height, stored.width))


def read_classes(stored: Any) -> dict[int, tuple[str, str]]:
    """Returns name and colour of each class of a map; empty for other rasters."""
    try:
        table = stored.colormap(1)
    except ValueError:
        table = {}
    names = {int(key[6:]): name for key, name in stored.tags().items() if re.fullmatch(r"CLASS_\d{1,3}", key)}
    # A table has 256 entries, whatever the number of classes: those that were not given are black or transparent.
    values = sorted(names) if names else [value for value, (*rgb, alpha) in table.items() if alpha and any(rgb)]
    found = {}
    for spare, value in coloured(values):
        colour = "#{:02x}{:02x}{:02x}".format(*table[value]) if value in table else spare
        found[value] = (names.get(value, f"class {value}"), colour)
    return found


def input_beside(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the picture of the input that a run wrote beside its output; None if there is none."""
    beside = path.with_name(f"{path.stem}_input.tif")
    return beside if beside.is_file() else None


# ---------------------------------------------------------------- an embedding


@dataclasses.dataclass(frozen=True)
class Components:
    """Directions of the features of each pixel, in their principal components.

    A feature's direction is `centre + components @ axes.T`, so that its scalar product with another's is that of
    their components after adding `lean` to one's, plus `base`.
    """

    values: Float32[np.ndarray, "H W k"]  # 0 where not valid
    valid: Bool[np.ndarray, "H W"]
    lean: Float[np.ndarray, "k"]  # centre @ axes
    base: float  # centre @ centre


def read_components(output: Output, frame: Frame) -> Components:
    """Reads an embedding in strips and reduces it to at most MOST_COMPONENTS principal components."""
    count = output.stored.count
    sample = frame.coarser(SAMPLE_PIXELS)
    units, valid = directions(output, sample, 0, sample.shape[0])
    units = units[valid].astype(np.float64)
    centre = units.mean(axis=0) if len(units) else np.zeros(count)
    axes = principal_axes(units - centre)[:MOST_COMPONENTS].T
    (rows, columns), valid = frame.shape, np.zeros(frame.shape, np.bool_)
    values = np.zeros((rows, columns, axes.shape[1]), np.float32)
    strip = max(1, STRIP_BYTES // (4 * count * columns))
    for first in range(0, rows, strip):
        last = min(first + strip, rows)
        units, valid[first:last] = directions(output, frame, first, last)
        values[first:last] = (units - centre.astype(np.float32)) @ axes.astype(np.float32)
    values[~valid] = 0
    return Components(values, valid, centre @ axes, float(centre @ centre))


def directions(
    output: Output, frame: Frame, first: int, last: int
) -> tuple[Float32[np.ndarray, "h w K"], Bool[np.ndarray, "h w"]]:
    """Reads the features of rows of a frame, divided by their lengths, and where they are valid.

    A feature of zeros has no direction, and counts as not valid.
    """
    stored = output.rows(frame, first, last)
    features = np.moveaxis(output.encoding.decode(stored.filled(0)), 0, -1)
    valid = ~np.ma.getmaskarray(stored).any(axis=0) & np.isfinite(features).all(axis=-1)
    features[~valid] = 0
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny), valid & (lengths[..., 0] > 0)


# ---------------------------------------------------------------- pictures


@dataclasses.dataclass(frozen=True)
class Layer:
    """A picture of an output: of all its bands, or of one."""

    name: str  # of the band; "" for a picture of all
    image: UInt8[np.ndarray, "H W 4"]  # transparent where not valid
    values: Float32[np.ndarray, "H W"] | None = None  # NaN where not valid; None for colours that mean no number
    legend: tuple[tuple[int, str, str], ...] = ()  # value, name and colour (#rrggbb) of the classes on the map
    ends: tuple[float, float] = (0.0, 1.0)  # numbers of the first and last colour of a map of numbers


def read_layers(output: Output, frame: Frame) -> list[Layer]:
    """Returns the picture of an output, or one for each band of a map of numbers."""
    if output.kind == "embedding":
        return [component_layer(read_components(output, frame))]
    stored = output.read(frame)
    valid = ~np.ma.getmaskarray(stored)
    if output.kind == "picture":
        image = np.zeros((*frame.shape, 4), np.uint8)
        image[..., :3] = np.moveaxis(stored.data[:3], 0, -1)
        return [Layer("", with_alpha(image, valid[:3].all(axis=0)))]
    values = np.where(valid, stored.data, np.nan).astype(np.float32)
    if output.kind == "classes":
        return [class_layer(values[0], output.classes)]
    names = output.bands if len(values) > 1 else ("",)
    return [number_layer(name, band, output.unit) for name, band in zip(names, values, strict=True)]


def component_layer(components: Components) -> Layer:
    """Returns the first three components as red, green and blue."""
    image = np.full((*components.valid.shape, 4), 128, np.uint8)
    for channel in range(min(3, components.values.shape[-1])):
        values = components.values[..., channel]
        low, high = spread(values[components.valid])
        image[..., channel] = np.clip(255 * (values - low) / (high - low), 0, 255)
    return Layer("", with_alpha(image, components.valid))


def class_layer(values: Float32[np.ndarray, "H W"], classes: Mapping[int, tuple[str, str]]) -> Layer:
    """Returns a class map in its palette; a value that is not a class is black."""
    valid = np.isfinite(values)
    legend, image = [], np.zeros((*values.shape, 4), np.uint8)
    for value in map(int, np.unique(values[valid])):
        name, colour = classes.get(value, (f"class {value}", "#000000"))
        image[values == value, :3] = list(bytes.fromhex(colour[1:]))
        legend.append((value, name, colour))
    return Layer("", with_alpha(image, valid), values, tuple(legend))


def number_layer(name: str, values: Float32[np.ndarray, "H W"], unit: str) -> Layer:
    """Returns a map of numbers in colours from its low to its high ones; of probabilities, from 0 to 1."""
    import matplotlib

    values = np.where(np.isfinite(values), values, np.nan)
    valid = np.isfinite(values)
    low, high = (0.0, 1.0) if unit == PROBABILITY else spread(values[valid])
    scaled = (np.where(valid, values, low) - low) / (high - low)
    image = matplotlib.colormaps[COLOURS_OF_NUMBERS](scaled, bytes=True)
    return Layer(name, with_alpha(image, valid), values, ends=(low, high))


def spread(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Returns the numbers between which colours are stretched, of which the second is larger."""
    low, high = np.percentile(values, STRETCH) if len(values) else (0.0, 1.0)
    # A map of a single value has no range to stretch.
    return float(low), float(high if high > low else low + 1)


def with_alpha(image: UInt8[np.ndarray, "H W 4"], valid: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 4"]:
    """Makes an image opaque where valid, and transparent black elsewhere, which compresses best."""
    image[..., 3] = 255
    image[~valid] = 0
    return image
