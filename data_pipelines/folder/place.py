"""Whether the files of a tile lie on the same ground, by what the GeoTIFFs among them say."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from data_pipelines.folder.arrays import Read

_IDENTITY = (1, 0, 0, 0, 1, 0)  # of a raster with a coordinate system and without a place in it


def check_places(reads: Sequence[Read]) -> None:
    """Refuses rasters that are upside down, or of another place than the first of the same coordinate system.

    Files without a place are taken on trust; so are those of another coordinate system.

    Raises:
      ValueError: the message names the file.
    """
    placed = [read for read in reads if read.place["crs"] and tuple(read.place["transform"]) != _IDENTITY]
    for read in placed:
        _check_upright(read)
    firsts: dict[str, Read] = {}
    for read in placed:
        _check_same_ground(read, firsts.setdefault(read.place["crs"], read))


def _check_upright(read: Read) -> None:
    a, _, _, _, e, _ = read.place["transform"]
    if a < 0 or e > 0:
        raise ValueError(
            f"{read.path} has its first row in the {'south' if e > 0 else 'north'} and its first column in the "
            f"{'east' if a < 0 else 'west'}; expected north and west, as in the other files: gdalwarp writes it so"
        )


def _check_same_ground(read: Read, first: Read) -> None:
    """Centres may differ by a pixel, the coarser of both, as grids of different sensors do."""
    away = np.hypot(*(_centre(read) - _centre(first)))
    pixels = float(away / max(_pixel(read), _pixel(first)))
    if pixels > 1 + 1e-6:
        raise ValueError(
            f"{read.path} is centred {pixels:.3g} pixels away from {first.path}; expected the files of a tile to cover "
            "the same ground: cut them to the same bounds"
        )


def _centre(read: Read) -> Float64[np.ndarray, "2"]:
    a, b, c, d, e, f = read.place["transform"]
    height, width = read.values.shape[-2:]
    return np.asarray([a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f])


def _pixel(read: Read) -> float:
    a, b, _, d, e, _ = read.place["transform"]
    return max(float(np.hypot(a, d)), float(np.hypot(b, e)))
