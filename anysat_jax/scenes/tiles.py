"""Tiles of a scene: a lattice on which they lie, the windows in which they are read, and pixels of other sizes.

A tile gives only its core to the result; the margin around it is context. Cores touch and do not overlap, and they lie
on the grid's origin: the result depends neither on windows nor on the bounds of a request.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Shaped

from anysat_jax.scenes.grid import SAME_METRES, Box
from anysat_jax.sensors import get_sensor, whole_number
from anysat_jax.validate import check_patch_size

PATCHES = 16  # along a side of a tile, unless the user gives its size
MOST_SUBPATCHES = 2**15  # of a tile, beyond which it has fewer patches
MARGIN_FRACTION = 8  # a margin is the eighth part of a tile's side
# Of a window: values of all sensors and the result. Two windows are read ahead, and one is computed.
WINDOW_BYTES = 64 * 2**20
MOST_TILES = 8  # along a side of a window: what a killed run does again


def subpatches(side: float, sensors: Sequence[str]) -> int:
    """Returns the number of sub-patches of a tile of `side` metres, of all sensors."""
    return sum(round(side / get_sensor(name).subpatch_metres) ** 2 for name in sensors)


def tile_side(patch_size: float, sensors: Sequence[str], tile: float | None = None) -> float:
    """Returns the side of a tile in metres: the given one, or 16 patches, or 8 or 4 where these have many sub-patches.

    Raises:
      ValueError: the patch size does not divide the tile, or does not hold whole sub-patches of a sensor.
    """
    patches = PATCHES
    while patches > 4 and tile is None and subpatches(patches * patch_size, sensors) > MOST_SUBPATCHES:
        patches //= 2
    side = patches * patch_size if tile is None else tile
    check_patch_size(patch_size, (side, side), tuple(sensors))
    return side


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Square tiles of one size on a plane. Tile (row, column) has its core (row, column) cores from the origin.

    Rows count southwards, columns eastwards, and both may be negative.
    """

    origin: tuple[float, float]  # x, y
    patch_size: float  # metres
    patches: int  # along a side of a tile
    margin: int  # patches on each side of a tile that are context alone

    @classmethod
    def of(
        cls,
        origin: tuple[float, float],
        patch_size: float,
        sensors: Sequence[str],
        tile: float | None = None,
        overlap: bool = True,
    ) -> Self:
        """Returns the lattice of tiles of `tile` metres; None: see `tile_side`.

        Args:
          sensors: whose sub-patches a patch must hold whole.
          overlap: whether tiles have a margin.

        Raises:
          ValueError: the patch size does not fit the sensors, or the tile is not a whole number of patches, at least 3
            with a margin.
        """
        side = tile_side(patch_size, sensors, tile)
        patches = whole_number(side / patch_size) or 0
        margin = max(1, patches // MARGIN_FRACTION) if overlap else 0
        if patches <= 2 * margin:
            raise ValueError(
                f"a tile of {side:g} m has {patches} patches of {patch_size:g} m on a side; expected at least 3, as "
                f"the outer ones are context: give a tile of {3 * patch_size:g} m or more, or a smaller patch size"
            )
        return cls(origin, patch_size, patches, margin)

    @property
    def tile(self) -> float:
        """Side of a tile in metres."""
        return self.patches * self.patch_size

    @property
    def core_patches(self) -> int:
        """Patches along a side of a core."""
        return self.patches - 2 * self.margin

    @property
    def core(self) -> float:
        """Side of a core in metres: the distance of neighbouring tiles."""
        return self.core_patches * self.patch_size

    def patch_pixels(self, sensor: str) -> int:
        """Returns the pixels of a sensor along a side of a patch."""
        return whole_number(self.patch_size / get_sensor(sensor).metres_per_pixel) or 0

    def box(self, rows: range, columns: range, margin: bool) -> Box:
        """Returns the box of a block of cores, with or without the margin of its tiles."""
        (x, y), more = self.origin, self.margin if margin else 0

        def metres(count: int) -> float:
            return count * self.patch_size  # one product: sums of decimal metres would drift

        return Box(
            x + metres(columns.start * self.core_patches - more),
            y - metres(rows.stop * self.core_patches + more),
            x + metres(columns.stop * self.core_patches + more),
            y - metres(rows.start * self.core_patches - more),
        )

    def windows(self, bounds: Box, side: int) -> list["Window"]:
        """Returns windows of at most `side` x `side` cores that cover the bounds, from north to south."""
        x, y = self.origin

        def indices(first: float, last: float) -> range:
            start = math.floor((first + SAME_METRES) / self.core)
            return range(start, math.ceil((last - SAME_METRES) / self.core))

        rows, columns = indices(y - bounds.top, y - bounds.bottom), indices(bounds.left - x, bounds.right - x)
        blocks = [
            (rows[i : i + side], columns[j : j + side])
            for i in range(0, len(rows), side)
            for j in range(0, len(columns), side)
        ]
        return [Window(number, self, *block) for number, block in enumerate(blocks)]


@dataclasses.dataclass(frozen=True)
class Window:
    """A block of tiles: what is read, computed and written at once."""

    number: int  # in the order of the request's windows
    lattice: Lattice
    rows: range
    columns: range

    @property
    def name(self) -> str:
        """Of its part of the result."""
        return f"{self.number:07d}"

    @property
    def box(self) -> Box:
        """The ground that is read: all tiles."""
        return self.lattice.box(self.rows, self.columns, margin=True)

    @property
    def cores(self) -> Box:
        """The ground that is written, before it is cut to the request's bounds."""
        return self.lattice.box(self.rows, self.columns, margin=False)

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Tiles by their place (row, column) within the window."""
        return [(row, column) for row in range(len(self.rows)) for column in range(len(self.columns))]

    def single(self, row: int, column: int) -> "Window":
        """Returns the window of one tile of the lattice."""
        return dataclasses.replace(self, rows=range(row, row + 1), columns=range(column, column + 1))

    def tile_box(self, tile: tuple[int, int]) -> Box:
        """Returns the ground of a tile, with its margin."""
        rows, columns = (range(one.start + i, one.start + i + 1) for one, i in zip((self.rows, self.columns), tile))
        return self.lattice.box(rows, columns, margin=True)

    def tile_slices(self, tile: tuple[int, int], patch_pixels: int) -> tuple[slice, slice]:
        """Returns rows and columns of a tile in a raster of `box`, with so many pixels along a side of a patch."""
        starts = [index * self.lattice.core_patches * patch_pixels for index in tile]
        return tuple(slice(start, start + self.lattice.patches * patch_pixels) for start in starts)


def window_side(lattice: Lattice, densities: Mapping[float, float]) -> int:
    """Returns the tiles along a side of a window so that its arrays fit into memory, at least one.

    Args:
      densities: bytes of a pixel of all bands and dates, by the pixel's side in metres.
    """
    margins = 2 * lattice.margin * lattice.patch_size

    def size(side: int) -> float:
        return sum(((side * lattice.core + margins) / metres) ** 2 * each for metres, each in densities.items())

    return max([side for side in range(1, MOST_TILES + 1) if size(side) <= WINDOW_BYTES], default=1)


def cell_sums(values: Shaped[np.ndarray, "*n H W"], shape: tuple[int, int]) -> Float[np.ndarray, "*n h w"]:
    """Returns sums over the pixels that touch each of h x w cells of equal size on the same ground.

    A cell may be larger or smaller than a pixel, or no whole number of them.
    """
    for axis, count in zip((-2, -1), shape, strict=True):
        length, cells = values.shape[axis], np.arange(count)
        # In whole numbers, so that no edge is moved by rounding.
        first, last = cells * length // count, -(-(cells + 1) * length // count)
        sums = np.cumsum(values, axis=axis, dtype=np.float64)
        sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis=axis)
        values = np.take(sums, last, axis) - np.take(sums, first, axis)
    return values


def covered(valid: Bool[np.ndarray, "H W"], shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns True for each of h x w cells on the same ground that a valid pixel touches."""
    return cell_sums(valid, shape) > 0
