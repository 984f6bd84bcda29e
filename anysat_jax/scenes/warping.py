"""Bands of rasters, and their values on another grid: copied where pixels coincide, else warped.

Every kind of band is warped in the same way, from the part of its raster that a target needs. What is read of a pixel
does not depend on the part by which it is read.
"""

import dataclasses
import os
import pathlib
import threading
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import rasterio.warp
from jaxtyping import Float32
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine, array_bounds
from rasterio.windows import Window

from anysat_jax.scenes.grid import SAME_METRES
from anysat_jax.scenes.projections import at, pixel_size, project_bounds, system
from data_pipelines.files import explained
from data_pipelines.rasters import open_raster

# Pixels around a source's window: as many as bilinear interpolation and the rounding of coordinates may reach.
MARGIN = 3
MOST_VALUES = 2**26  # that are read at once for warping, 256 MiB of float32
NOT_A_CLASS = -1
# rasterio hides this warning while it warps, which fails where threads warp at once. Files without a place are refused.
warnings.filterwarnings("ignore", "Dataset has no geotransform", NotGeoreferencedWarning)
AVERAGED = 2.0  # source pixels along a target's from which they are averaged, rather than interpolated


class Band(Protocol):
    """One band of one acquisition, on its own grid."""

    @property
    def name(self) -> str:
        """File and band, for messages."""

    @property
    def crs(self) -> str:
        """Coordinate system, as rasterio reads it."""

    @property
    def transform(self) -> Affine:
        """From columns and rows to coordinates, in any orientation."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def zero(self) -> float | None:
        """The value that is nothing observed where all bands of the acquisition on this grid have it; None: no such."""

    def read(self, rows: slice, columns: slice) -> np.ma.MaskedArray | Float32[np.ndarray, "h w"]:
        """Reads physical values, masked or NaN where invalid."""


@dataclasses.dataclass(frozen=True)
class RasterBand:
    """A band of a GeoTIFF or JPEG 2000 file, which is opened for each reading: it may go to other processes."""

    path: pathlib.Path | str  # a text where it is in an archive or on a server, see `open_raster`
    number: int  # in the file, from 1
    crs: str
    transform: Affine
    shape: tuple[int, int]
    nodata: float | None = None  # a stored value that is invalid, besides those that the file's masks hide
    masked: bool = True  # whether the file's nodata, mask and alpha bands count
    alpha: int | None = None  # number of a band that is 0 where invalid; GDAL takes only some types of it for a mask
    together: tuple[int, ...] = ()  # numbers of the bands to decode at once: of a file that stores dates by pixel
    # scale, offset: the value is stored * scale + offset.
    scale: float = 1.0
    offset: float = 0.0
    zero: float | None = None  # see `Band.zero`
    thermal: tuple[float, ...] = ()  # K1 and K2 of a band of radiance, by which it becomes kelvins

    @property
    def name(self) -> str:
        return f"{self.path}, band {self.number}"

    def read(self, rows: slice, columns: slice) -> Float32[np.ndarray, "h w"]:
        return _read_file([self], rows, columns)[0]


def read_grid(
    bands: Sequence[Band],
    crs: str,
    transform: Affine,
    shape: tuple[int, int],
    *,
    how: Resampling | None = None,
    mask: Band | None = None,
    clear: Sequence[int] = (),
) -> Float32[np.ndarray, "c H W"]:
    """Reads bands that share a grid onto another one; NaN where one of them is invalid.

    Values are copied where pixels coincide up to `SAME_METRES`. Otherwise they are averaged where a target's side is
    two source pixels or more, else interpolated bilinearly.

    Args:
      bands: with the same coordinate system, transform and shape.
      crs, transform, shape: the target; pixels are squares in rows from north to south, or one rectangle.
      how: in place of that, such as `Resampling.nearest` for classes.
      mask: pixels with another class than those of `clear` are invalid, before interpolation.

    Raises:
      ValueError: a file cannot be read, or its raster has no place in the coordinate system.
    """
    band = bands[0]
    if place := _coinciding(band, crs, transform):
        rows, columns = (slice(start, start + side) for start, side in zip(place, shape))
    else:
        rows, columns = _source_window(band, crs, transform, shape)
        size = len(bands) * (rows.stop - rows.start) * (columns.stop - columns.start)
        if size > MOST_VALUES and shape[0] > 1:  # of pixels that are much finer
            halves = _halves(transform, shape)
            read = [read_grid(bands, crs, *half, how=how, mask=mask, clear=clear) for half in halves]
            return np.concatenate(read, axis=1)
    inside = [slice(max(one.start, 0), min(one.stop, side)) for one, side in zip((rows, columns), band.shape)]
    out = np.full((len(bands), *shape), np.nan, np.float32)
    if any(one.start >= one.stop for one in inside):
        return out
    values = _read_valid(bands, *inside, mask, clear)
    if place:
        across = [slice(one.start - at, one.stop - at) for one, at in zip(inside, place)]
        out[:, across[0], across[1]] = values
        return out
    averaged = _pixels_along(band, crs, transform) >= AVERAGED * (1 - 1e-6)
    how = how if how is not None else (Resampling.average if averaged else Resampling.bilinear)
    _warp(values, band.crs, _part(band, *inside), out, crs, transform, how)
    return out


def _halves(transform: Affine, shape: tuple[int, int]) -> list[tuple[Affine, tuple[int, int]]]:
    """Returns transform and shape of the upper and the lower half of a target."""
    half = shape[0] // 2
    lower = _moved(transform, at(transform, 0, half))
    return [(transform, (half, shape[1])), (lower, (shape[0] - half, shape[1]))]


def _warp(
    values: Float32[np.ndarray, "c h w"],
    own: str,
    here: Affine,
    out: Float32[np.ndarray, "c H W"],
    crs: str,
    transform: Affine,
    how: Resampling,
) -> None:
    """Warps values from a system and transform into `out`, on those of the target; NaN is invalid in both."""
    # Within one system both count from a near corner: small numbers have no rounding that decides ties.
    x, y = (here.c, here.f) if system(crs) == system(own) else (0.0, 0.0)
    rasterio.warp.reproject(
        values,
        out,
        src_transform=_moved(here, (here.c - x, here.f - y)),
        dst_transform=_moved(transform, (transform.c - x, transform.f - y)),
        src_crs=system(own),
        dst_crs=system(crs),
        src_nodata=np.nan,
        dst_nodata=np.nan,
        resampling=how,
        # Otherwise coordinates are interpolated between some, and the kernel's size is taken from the windows' sizes:
        # both make a pixel depend on the window.
        tolerance=0,
        XSCALE=1,
        YSCALE=1,
    )


def _part(band: Band, rows: slice, columns: slice) -> Affine:
    """Returns the transform of a window of a band."""
    return _moved(band.transform, at(band.transform, columns.start, rows.start))


def _moved(transform: Affine, corner: tuple[float, float]) -> Affine:
    a, b, _, d, e, _ = transform[:6]
    return Affine(a, b, corner[0], d, e, corner[1])


def _read_valid(
    bands: Sequence[Band], rows: slice, columns: slice, mask: Band | None, clear: Sequence[int]
) -> Float32[np.ndarray, "c h w"]:
    """Reads a window of bands; NaN in all where one is not finite, all are nothing observed, or the mask hides."""
    values = _read(bands, rows, columns)
    invalid = ~np.isfinite(values).all(axis=0)
    zeros = [band.zero for band in bands]
    if None not in zeros:
        invalid |= (values == np.asarray(zeros, np.float32)[:, None, None]).all(axis=0)
    if mask is not None:
        place = _part(bands[0], rows, columns)
        found = read_grid([mask], bands[0].crs, place, invalid.shape, how=Resampling.nearest)[0]
        invalid |= ~np.isin(np.nan_to_num(found, nan=NOT_A_CLASS).astype(np.int64), np.asarray(clear, np.int64))
    values[:, invalid] = np.nan
    return values


def _read(bands: Sequence[Band], rows: slice, columns: slice) -> Float32[np.ndarray, "c h w"]:
    """Reads a window of each band, NaN where invalid; bands of one file at once, as it may be stored by pixel."""
    rasters = [band for band in bands if isinstance(band, RasterBand)]
    if len(rasters) == len(bands) and len({band.path for band in rasters}) == 1:
        return _read_file(rasters, rows, columns)
    read = [band.read(rows, columns) for band in bands]
    return np.stack([np.ma.filled(np.ma.asarray(one, np.float32), np.nan) for one in read])


def _read_file(bands: Sequence[RasterBand], rows: slice, columns: slice) -> Float32[np.ndarray, "c h w"]:
    first, numbers = bands[0], [band.number for band in bands]
    wanted = first.together or tuple(numbers)
    alpha = (first.alpha,) if first.alpha else ()
    stored = _stored(first.path, (*wanted, *alpha), rows, columns, keep=bool(first.together))
    own = stored.data[[wanted.index(number) for number in numbers]]
    values = own.astype(np.float32)
    for band, one, raw in zip(bands, values, own):
        if band.scale != 1 or band.offset:
            one *= np.float32(band.scale)
            one += np.float32(band.offset)
        if band.thermal:
            k1, k2 = map(np.float32, band.thermal)
            with np.errstate(divide="ignore", invalid="ignore"):  # radiance that is not above 0 is invalid
                one[:] = k2 / np.log(k1 / one + 1)
        if band.masked and stored.mask is not np.ma.nomask:
            one[stored.mask[wanted.index(band.number)]] = np.nan
        if band.nodata is not None:
            one[raw == band.nodata] = np.nan
    if alpha:
        values[:, stored.data[-1] == 0] = np.nan
    return values


# What a thread has read last of files that store bands by pixel, and of arrays: reading one date may decode all dates.
KEPT = threading.local()


def forget() -> None:
    """Frees what this thread has kept of files with several dates."""
    KEPT.__dict__.clear()


def _stored(
    path: pathlib.Path | str, numbers: Sequence[int], rows: slice, columns: slice, keep: bool
) -> np.ma.MaskedArray:
    """Reads bands as stored, with the file's mask; what is kept is given again as long as the file is the same."""
    expected, key = "a raster that is whole", None
    if keep:
        with explained(pathlib.Path(path), expected):
            state = os.stat(path)
        key = path, tuple(numbers), rows.start, rows.stop, columns.start, columns.stop, state.st_mtime_ns, state.st_size
        if getattr(KEPT, "key", None) == key:
            return KEPT.stored
        forget()
    window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    with open_raster(path, expected, whole=False) as file, explained(path, expected, rasterio.errors.RasterioError):
        stored = file.read(numbers, window=window, masked=True)
    if keep:
        KEPT.key, KEPT.stored = key, stored
    return stored


def _coinciding(band: Band, crs: str, target: Affine) -> tuple[int, int] | None:
    """Returns row and column of the band at which the target begins; None where pixels do not coincide."""
    if system(band.crs) != system(crs):
        return None
    own = band.transform
    steps = np.subtract((own.a, own.b, own.d, own.e), (target.a, target.b, target.d, target.e))
    # Pixels of a slightly other size coincide if they still do at the raster's far side.
    if abs(steps).max() * max(band.shape) > SAME_METRES:
        return None
    column, row = (target.c - own.c) / own.a, (target.f - own.f) / own.e
    if max(abs(row - round(row)), abs(column - round(column))) * abs(own.a) > SAME_METRES:
        return None
    return round(row), round(column)


def _source_window(band: Band, crs: str, transform: Affine, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the rows and columns of a band that a target needs, with a margin; they may lie outside of the band."""
    left, bottom, right, top = array_bounds(*shape, transform)
    if system(crs) != system(band.crs):
        left, bottom, right, top = project_bounds(crs, band.crs, left, bottom, right, top)
    corners = [at(~band.transform, x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = zip(*corners, strict=True)
    margin = MARGIN + int(_pixels_along(band, crs, transform))
    return tuple(
        slice(int(np.floor(min(places))) - margin, int(np.ceil(max(places))) + margin) for places in (rows, columns)
    )


def _pixels_along(band: Band, crs: str, transform: Affine) -> float:
    """Returns how many pixels of a band lie along a side of a target's pixel."""
    try:
        return float(np.sqrt(abs(transform.a * transform.e))) / pixel_size(band.crs, band.transform, band.shape, crs)
    except ValueError as error:
        raise ValueError(f"{band.name}: {error}") from error
