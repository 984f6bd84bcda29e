"""Rasters of archives and scenes, which are opened here alone."""

import contextlib
import functools
import io
import os
import pathlib
import re
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int8

from data_pipelines.files import REMEDY, TooLargeError, check_array, check_size, explained, import_package, inside

MOST_BANDS = 4096  # of a raster, as GDAL takes minutes to describe 60,000; no archive has a thousandth of these
# By suffix: rasterio's driver, as GDAL would take any format, also those that name further files and addresses to
# read (VRT), and how such files begin.
_TIFF = ("GTiff", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
DRIVERS = {".tif": _TIFF, ".tiff": _TIFF, ".jp2": ("JP2OpenJPEG", (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"))}
# Servers that are busy are asked again, for about 15 s; one that is silent for a minute is given up.
SERVERS = {"GDAL_HTTP_MAX_RETRY": "5", "GDAL_HTTP_RETRY_DELAY": "0.5", "GDAL_HTTP_CONNECTTIMEOUT": "30"}
SERVERS |= {"GDAL_HTTP_LOW_SPEED_TIME": "60", "GDAL_HTTP_LOW_SPEED_LIMIT": "1"}


@contextlib.contextmanager
def open_raster(
    path: pathlib.Path | str, expected: str, content: bytes | None = None, *, whole: bool = True
) -> Iterator[Any]:
    """Opens a TIFF (or JPEG 2000) file with rasterio, and no file or address that it might lead to.

    `path` is a text where it is no file but GDAL's name of one: in an archive (/vsizip/...), or on a server
    (https://...). `content` are the file's bytes if they come from an archive, where `path` only names them. `whole` is
    False where only windows are read, of a file of any size.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, of another format, or larger than `MOST_BYTES`.
      ImportError: rasterio is not installed.
    """
    rasterio = import_package("rasterio", path)
    suffix = pathlib.PurePath(urllib.parse.urlsplit(path).path if isinstance(path, str) else path).suffix
    driver, starts = DRIVERS.get(suffix.lower(), _TIFF)
    with contextlib.ExitStack() as stack:
        # What the caller raises on a file that can be read stays as it is.
        stack.enter_context(explained(path, expected, rasterio.errors.RasterioError))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with explained(path, expected, rasterio.errors.RasterioError, ValueError):
            if not isinstance(path, str):
                _check_start(path, driver, starts, content)
                # Masks and overviews beside the file, which GDAL opens on its own, with any driver.
                for name in (f"{path.name}.msk", f"{path.name}.ovr") if content is None else ():
                    if os.path.lexists(path.parent / name):
                        _check_start(inside(path.parent, name), *_TIFF)
                if content is None and os.path.lexists(f"{path}.MSK"):
                    raise ValueError(f"{path.name}.MSK is a mask that is not looked for: rename it to .msk")
            # Only a file of that name may be read over the network; a listing of the folder would lead to other masks.
            allowed = f"/vsicurl/{path}" if isinstance(path, str) else "none"
            options = {"CPL_VSIL_CURL_ALLOWED_FILENAME": allowed, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", **SERVERS}
            source = path if content is None else io.BytesIO(content)
            stack.enter_context(rasterio.Env(**options))
            file = stack.enter_context(rasterio.open(source, driver=driver))
            if file.count > MOST_BANDS:
                raise TooLargeError(f"{path} has {file.count:,} bands; expected at most {MOST_BANDS:,}: cut it")
            size = sum(int(re.sub(r"\D", "", dtype)) // 8 for dtype in file.dtypes)  # bytes of one in all bands
            if whole:
                check_size(path, size * file.height * file.width)
        yield file


def _check_start(path: pathlib.Path, driver: str, starts: Sequence[bytes], content: bytes | None = None) -> None:
    if content is None:
        with path.open("rb") as file:
            content = file.read(12)
    if not content.startswith(tuple(starts)):
        raise ValueError(f"{path.name} begins with {content[:12]!r}, not like a file of the format {driver}")


def read_raster(
    path: pathlib.Path, shape: Sequence[int | None], dtype: Any, expected: str, content: bytes | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads a raster (C, H, W) and its "crs" and "transform"; arguments and errors of `open_raster`, `check_array`."""
    return read_raster_and_nodata(path, shape, dtype, expected, content)[:2]


def read_raster_and_nodata(
    path: pathlib.Path, shape: Sequence[int | None], dtype: Any, expected: str, content: bytes | None = None
) -> tuple[np.ndarray, dict[str, Any], float | None]:
    """Reads as `read_raster`, and the file's value of pixels without data (None: it has none)."""
    with open_raster(path, expected, content) as file:
        values, place, nodata = file.read(), georeference(file.crs, file.transform), file.nodata
        # Other masks are those of nodata and alpha bands, which are among the values.
        masks = [{"all_valid", "nodata", "alpha"}.isdisjoint(flag.name for flag in f) for f in file.mask_flag_enums]
        declared = {
            f"scales {file.scales}": any(scale != 1 for scale in file.scales),
            f"offsets {file.offsets}": any(file.offsets),
            "pixels that a mask hides": any(masks) and not file.read_masks().all(),
        }
    if found := " and ".join(what for what, is_there in declared.items() if is_there):
        raise ValueError(f"{path} declares {found}; expected {expected}, whose values count as stored: {REMEDY}")
    return check_array(path, values, shape, dtype, expected), place, nodata


def read_class_map(path: pathlib.Path, side: int, classes: Sequence[int], expected: str) -> Int8[np.ndarray, "H W"]:
    """Reads a raster of one band whose pixels are class numbers; `classes` lists all, also the one for no label.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, not `side` pixels wide and high, or holds others.
      ImportError: rasterio is not installed.
    """
    (numbers,), _ = read_raster(path, (1, side, side), ("int8", "uint8", "int16"), expected)
    wrong = sorted(set(np.unique(numbers).tolist()) - set(classes))
    if wrong:
        raise ValueError(f"{path} holds {wrong}; expected {expected}")
    return numbers.astype(np.int8)


def georeference(crs: Any, transform: Any) -> dict[str, Any]:
    """Returns the "crs" and "transform" of an example; "" and NaN without a coordinate system."""
    if crs is None:
        return {"crs": "", "transform": np.full(6, np.nan)}
    return {"crs": _crs_name(crs), "transform": np.asarray(tuple(transform)[:6], np.float64)}


# GDAL takes 30 ms to find the code of a system that a file only describes, more than all the rest.
_crs_name = functools.lru_cache(maxsize=256)(lambda crs: str(crs.to_string()))
