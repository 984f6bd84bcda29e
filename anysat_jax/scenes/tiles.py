"""Tiles of a scene: a lattice on which they lie, the windows in which they are read, and pixels of other sizes.

Every vector of a tile depends on the whole tile, so that tiles side by side would show as squares. Neighbours overlap,
and there the result passes from one to the other. Tiles lie on the grid's origin: the result depends neither on windows
nor on the bounds of a request.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from anysat_jax.scenes.grid import SAME_METRES, Box
from anysat_jax.sensors import get_sensor, whole_number
from anysat_jax.validate import check_patch_size

PATCHES = 16  # along a side of a tile, unless the user gives its size
MOST_SUBPATCHES = 2**15  # of a tile, beyond which it has fewer patches
OVERLAP_FRACTION = 4  # neighbours have the fourth part of a tile's side in common
# Of a window. Two windows are read ahead while one is computed; tiles across a window's edge are computed again in the
# next one, so that small windows cost time.
INPUT_BYTES, RESULT_BYTES = 96 * 2**20, 384 * 2**20
MOST_CELLS = 8  # along a side of a window: what a killed run does again


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
    """Square tiles of one size on a plane. Tile (row, column) begins (row, column) strides from the origin.

    Rows count southwards, columns eastwards, and both may be negative. A cell is a square of a stride: the part of a
    tile where only those before it overlap.
    """

    origin: tuple[float, float]  # x, y
    patch_size: float  # metres
    patches: int  # along a side of a tile
    overlap: int  # patches that neighbours have in common, at most half of a tile's

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
          overlap: whether tiles overlap.

        Raises:
          ValueError: the patch size does not fit the sensors or the tile.
        """
        side = tile_side(patch_size, sensors, tile)
        patches = whole_number(side / patch_size) or 0
        common = min(max(1, patches // OVERLAP_FRACTION), patches // 2)
        return cls(origin, patch_size, patches, common if overlap else 0)

    @property
    def tile(self) -> float:
        """Side of a tile in metres."""
        return self.patches * self.patch_size

    @property
    def stride_patches(self) -> int:
        """Patches from a tile to the next one, and along a side of a cell."""
        return self.patches - self.overlap

    @property
    def stride(self) -> float:
        """The same in metres."""
        return self.stride_patches * self.patch_size

    @property
    def before(self) -> int:
        """Number of tiles that reach into a cell from before it, along an axis."""
        return 1 if self.overlap else 0

    def patch_pixels(self, sensor: str) -> int:
        """Returns the pixels of a sensor along a side of a patch."""
        return whole_number(self.patch_size / get_sensor(sensor).metres_per_pixel) or 0

    def weights(self, metres: float) -> Float32[np.ndarray, "n"]:
        """Returns the weights of a tile's pixels of `metres` along an axis: ramps where tiles overlap, 1 between them.

        Those of overlapping tiles add up to 1.
        """
        places = (np.arange(round(self.tile / metres)) + 0.5) * metres
        ramp = self.overlap * self.patch_size
        ends = np.minimum(places, self.tile - places) / ramp if ramp else np.ones_like(places)
        return np.minimum(ends, 1).astype(np.float32)

    def box(self, rows: range, columns: range, patches: int) -> Box:
        """Returns the box of squares of so many patches that begin where some tiles do."""
        x, y = self.origin

        def metres(count: int) -> float:
            return count * self.patch_size  # one product: sums of decimal metres would drift

        def last(some: range) -> int:
            return (some.stop - 1) * self.stride_patches + patches

        return Box(
            x + metres(columns.start * self.stride_patches),
            y - metres(last(rows)),
            x + metres(last(columns)),
            y - metres(rows.start * self.stride_patches),
        )

    def cells(self, bounds: Box) -> tuple[range, range]:
        """Returns the rows and columns of the cells that cover the bounds."""
        x, y = self.origin

        def indices(first: float, last: float) -> range:
            start = math.floor((first + SAME_METRES) / self.stride)
            return range(start, math.ceil((last - SAME_METRES) / self.stride))

        return indices(y - bounds.top, y - bounds.bottom), indices(bounds.left - x, bounds.right - x)

    def windows(self, bounds: Box, side: int) -> list["Window"]:
        """Returns windows of at most `side` x `side` cells that cover the bounds, from north to south."""
        rows, columns = self.cells(bounds)
        blocks = [
            (rows[i : i + side], columns[j : j + side])
            for i in range(0, len(rows), side)
            for j in range(0, len(columns), side)
        ]
        return [Window(number, self, *block) for number, block in enumerate(blocks)]


@dataclasses.dataclass(frozen=True)
class Window:
    """A block of cells: what is read, computed and written at once."""

    number: int  # in the order of the request's windows
    lattice: Lattice
    rows: range  # of its cells
    columns: range

    @property
    def name(self) -> str:
        """Of its part of the result."""
        return f"{self.number:07d}"

    @property
    def _tile_rows(self) -> range:
        return range(self.rows.start - self.lattice.before, self.rows.stop)

    @property
    def _tile_columns(self) -> range:
        return range(self.columns.start - self.lattice.before, self.columns.stop)

    @property
    def box(self) -> Box:
        """The ground that is read: all tiles that reach into its cells."""
        return self.lattice.box(self._tile_rows, self._tile_columns, self.lattice.patches)

    @property
    def cells(self) -> Box:
        """The ground that is written, before it is cut to the request's bounds."""
        return self.lattice.box(self.rows, self.columns, self.lattice.stride_patches)

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Tiles by their place (row, column) within the window."""
        return list(itertools.product(range(len(self._tile_rows)), range(len(self._tile_columns))))

    def tile_box(self, place: tuple[int, int]) -> Box:
        """Returns the ground of a tile."""
        rows, columns = (
            range(one.start + i, one.start + i + 1) for one, i in zip((self._tile_rows, self._tile_columns), place)
        )
        return self.lattice.box(rows, columns, self.lattice.patches)

    def tile_slices(self, place: tuple[int, int], patch_pixels: int) -> tuple[slice, slice]:
        """Returns rows and columns of a tile in a raster of `box`, with so many pixels along a side of a patch."""
        starts = [index * self.lattice.stride_patches * patch_pixels for index in place]
        return tuple(slice(start, start + self.lattice.patches * patch_pixels) for start in starts)

    def cell_slices(self, patch_pixels: int) -> tuple[slice, slice]:
        """Returns rows and columns of the cells in such a raster."""
        side = self.lattice.stride_patches * patch_pixels
        start = self.lattice.before * side
        return tuple(slice(start, start + len(some) * side) for some in (self.rows, self.columns))

    def single(self, place: tuple[int, int]) -> "Window":
        """Returns the window of one of its cells, of tiles that do not overlap."""
        rows, columns = (range(one.start + i, one.start + i + 1) for one, i in zip((self.rows, self.columns), place))
        return dataclasses.replace(self, rows=rows, columns=columns)


def window_side(lattice: Lattice, inputs: Mapping[float, float], metres: float, result: float, batch: int = 1) -> int:
    """Returns the cells along a side of a window so that its arrays fit into memory, and a batch into the window.

    Args:
      inputs: bytes of a pixel of all bands and dates, by the pixel's side in metres.
      metres: side of a pixel of the result.
      result: its bytes.
      batch: tiles computed at once.
    """

    def fits(side: int) -> bool:
        ground = (side + lattice.before - 1) * lattice.stride + lattice.tile
        size = sum((ground / pixel) ** 2 * each for pixel, each in inputs.items())
        return size <= INPUT_BYTES and (side * lattice.stride / metres) ** 2 * result <= RESULT_BYTES

    fitting = [side for side in range(1, MOST_CELLS + 1) if fits(side)]
    return max([1, *fitting, math.ceil(math.sqrt(batch)) - lattice.before])


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
