"""Coordinate systems of rasters: bounds and pixel sizes of one in another, and which is in metres."""

import functools
import math

import numpy as np
import rasterio.warp
from rasterio._err import CPLE_BaseError  # what transformations raise; it has no public name
from rasterio.crs import CRS
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box

MOST_STRETCH = 0.02  # of a metre of the coordinates against one on the ground; UTM's are within 0.1 %, in its zone


@functools.lru_cache(maxsize=256)
def system(crs: str) -> CRS:
    """Returns the coordinate system of a text, such as "EPSG:32632", or WKT.

    Raises:
      ValueError: there is no such system.
    """
    try:
        return CRS.from_user_input(crs)
    except rasterio.errors.CRSError as error:
        raise ValueError(f"{crs!r} is not a coordinate system ({error}); expected one such as 'EPSG:32632'") from error


def project(own: str, crs: str, x: float, y: float) -> tuple[float, float]:
    """Returns a point in another coordinate system; infinite where it has no place there."""
    try:
        (x,), (y,) = rasterio.warp.transform(system(own), system(crs), [x], [y])
    except CPLE_BaseError:
        return math.inf, math.inf
    return x, y


def project_bounds(own: str, crs: str, *bounds: float) -> tuple[float, float, float, float]:
    """Returns left, bottom, right and top of a rectangle in another coordinate system.

    Raises:
      ValueError: it has no place there.
    """
    if system(own) == system(crs):
        return bounds
    try:
        found = rasterio.warp.transform_bounds(system(own), system(crs), *bounds, densify_pts=21)
    except (CPLE_BaseError, rasterio.errors.RasterioError) as error:
        raise ValueError(f"bounds {bounds} in {own} have no place in {crs} ({error}); cut the raster") from error
    if not np.isfinite(found).all():
        raise ValueError(f"bounds {bounds} in {own} have no place in {crs}; cut the raster to the scene")
    return found


@functools.lru_cache(maxsize=4096)
def footprint(own: str, transform: Affine, shape: tuple[int, int], crs: str) -> Box:
    """Returns the bounds of a raster in another coordinate system.

    Raises:
      ValueError: it has no place there.
    """
    # Rasters may be turned or upside down.
    x, y = zip(*(at(transform, column, row) for column in (0, shape[1]) for row in (0, shape[0])), strict=True)
    return Box(*project_bounds(own, crs, min(x), min(y), max(x), max(y)))


def at(transform: Affine, column: float, row: float) -> tuple[float, float]:
    """Returns the coordinates of a place in a raster, which is counted from its first corner."""
    return (
        transform.a * column + transform.b * row + transform.c,
        transform.d * column + transform.e * row + transform.f,
    )


@functools.lru_cache(maxsize=4096)
def pixel_size(own: str, transform: Affine, shape: tuple[int, int], crs: str) -> float:
    """Returns the side of a raster's pixel in units of another coordinate system, by the pixel at its centre.

    Raises:
      ValueError: the centre has no place in the system.
    """
    area = abs(transform.determinant)
    if system(own) != system(crs):
        row, column = shape[0] / 2, shape[1] / 2
        corners = [
            project(own, crs, *at(transform, *one)) for one in ((column, row), (column + 1, row), (column, row + 1))
        ]
        centre, right, below = np.asarray(corners)
        area = abs(np.linalg.det(np.stack([right - centre, below - centre])))
    if not (np.isfinite(area) and area > 0):
        raise ValueError(f"a raster in {own} has its centre at no place of {crs}; cut it to the scene")
    return math.sqrt(area)


def utm_zone(crs: str, x: float, y: float) -> str:
    """Returns the UTM zone of a point, as "EPSG:32632"."""
    east, north = project(crs, "EPSG:4326", x, y)
    zone = int((east + 180) // 6) % 60 + 1
    return f"EPSG:{32600 + zone if north >= 0 else 32700 + zone}"


def why_not_metric(crs: str, x: float, y: float) -> str:
    """Returns why coordinates near a point are not metres on the ground; "" if they are."""
    own = system(crs)
    if own.is_geographic:
        return "is in degrees"
    if not own.is_projected or abs(own.units_factor[1] - 1) > 1e-9:
        return f"is not in metres ({own.units_factor[0]})"
    ground = pixel_size(crs, Affine(1, 0, x, 0, -1, y), (1, 1), utm_zone(crs, x, y))
    if abs(ground - 1) > MOST_STRETCH:
        return f"has metres of {ground:.3g} m on the ground there"
    return ""
