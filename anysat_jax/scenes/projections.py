"""Coordinate systems of rasters: bounds and pixel sizes of one in another, and which is in metres."""

import functools
import math

import numpy as np
import rasterio.warp
from jaxtyping import Float64
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


def label(crs: str) -> str:
    """Returns what a coordinate system is called in messages: its code, or the name that its WKT begins with."""
    return crs if len(crs) < 40 or '"' not in crs else crs.split('"')[1]


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
        raise ValueError(
            f"bounds {bounds} in {label(own)} have no place in {label(crs)} ({error}); cut the raster"
        ) from error
    if not np.isfinite(found).all():
        raise ValueError(f"bounds {bounds} in {label(own)} have no place in {label(crs)}; cut the raster to the scene")
    return found


@functools.lru_cache(maxsize=4096)
def footprint(own: str, transform: Affine, shape: tuple[int, int], crs: str) -> Box:
    """Returns the bounds of a raster in another coordinate system.

    Raises:
      ValueError: it has no place there.
    """
    # Rasters may be turned or upside down.
    x, y = zip(*(at(transform, column, row) for column in (0, shape[1]) for row in (0, shape[0])), strict=True)
    # Rasters of the world may end a little beyond 180 degrees; scenes there would lose the other half.
    if system(own).is_geographic and max(-min(x), max(x)) > 180 + abs(transform.a):
        span = f"from {min(x):g} to {max(x):g} degrees"
        raise ValueError(
            f"it reaches {span}, beyond 180; correct it, or warp it to a UTM zone: gdalwarp -t_srs EPSG:32660"
        )
    return Box(*project_bounds(own, crs, min(x), min(y), max(x), max(y)))


def at(transform: Affine, column: float, row: float) -> tuple[float, float]:
    """Returns the coordinates of a place in a raster, which is counted from its first corner."""
    return (
        transform.a * column + transform.b * row + transform.c,
        transform.d * column + transform.e * row + transform.f,
    )


def pixel_sides(own: str, transform: Affine, column: float, row: float, crs: str) -> Float64[np.ndarray, "2 2"]:
    """Returns the sides of a raster's pixel, along columns and along rows, as vectors in another coordinate system.

    Raises:
      ValueError: the pixel has no place in the system.
    """
    corners = [at(transform, *one) for one in ((column, row), (column + 1, row), (column, row + 1))]
    if system(own) != system(crs):
        corners = [project(own, crs, *corner) for corner in corners]
    if not np.isfinite(corners).all():
        x, y = at(transform, column, row)
        raise ValueError(
            f"{x:g}, {y:g} in {label(own)} has no place in {label(crs)}; correct the coordinates, or cut the raster"
        )
    return np.subtract(corners[1:], corners[0])


@functools.lru_cache(maxsize=4096)
def pixel_size(own: str, transform: Affine, shape: tuple[int, int], crs: str) -> float:
    """Returns the side of a square like a raster's pixel in units of another system, by the pixel at its centre.

    Raises:
      ValueError: the centre has no place in the system.
    """
    if system(own) == system(crs):
        return math.sqrt(abs(transform.determinant))
    return math.sqrt(abs(np.linalg.det(pixel_sides(own, transform, shape[1] / 2, shape[0] / 2, crs))))


def utm_zone(crs: str, x: float, y: float) -> str:
    """Returns the UTM zone of a point, as "EPSG:32632".

    Raises:
      ValueError: the point is not on the Earth.
    """
    east, north = project(crs, "EPSG:4326", x, y)
    if not (abs(east) <= 360 and abs(north) <= 90):
        raise ValueError(
            f"{x:g}, {y:g} in {label(crs)} is not on the Earth; correct the raster's coordinates or their system"
        )
    zone = int((east + 180) // 6) % 60 + 1
    return f"EPSG:{32600 + zone if north >= 0 else 32700 + zone}"


def why_not_metric(crs: str, x: float, y: float) -> str:
    """Returns why coordinates near a point are not metres on the ground; "" if they are."""
    own = system(crs)
    if own.is_geographic:
        return "is in degrees"
    if not own.is_projected or abs(own.units_factor[1] - 1) > 1e-9:
        return f"is not in metres ({own.units_factor[0]})"
    sides = pixel_sides(crs, Affine(1, 0, x, 0, -1, y), 0, 0, utm_zone(crs, x, y))
    ground = np.hypot(*sides.T)
    if abs(ground - 1).max() > MOST_STRETCH:
        return f"has metres of {ground[0]:.3g} x {ground[1]:.3g} m on the ground there"
    return "has axes that are not perpendicular there" if abs(sides[0] @ sides[1]) > MOST_STRETCH else ""
