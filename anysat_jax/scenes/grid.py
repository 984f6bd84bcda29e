"""The grid of a scene: one metric coordinate system, north up, on which sensors are read and results written."""

import dataclasses
import math

from rasterio.transform import Affine

from anysat_jax.sensors import whole_number

# Of a metre, up to which coordinates count as equal: far below a pixel, far above the rounding of UTM coordinates.
SAME_METRES = 1e-3


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in metres of the grid's coordinate system."""

    left: float
    bottom: float
    right: float
    top: float

    def __str__(self) -> str:  # as --bounds has it
        return ",".join(f"{round(side, 2):.12g}" for side in dataclasses.astuple(self))

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.top - self.bottom

    def intersection(self, other: "Box") -> "Box | None":
        """Returns what two boxes have in common; None where that has no area."""
        both = Box(
            max(self.left, other.left),
            max(self.bottom, other.bottom),
            min(self.right, other.right),
            min(self.top, other.top),
        )
        return both if both.width > SAME_METRES and both.height > SAME_METRES else None

    def transform(self, metres: float) -> Affine:
        """Returns the affine transform of a raster of the box in pixels of `metres`."""
        return Affine(metres, 0.0, self.left, 0.0, -metres, self.top)

    def shape(self, metres: float) -> tuple[int, int]:
        """Returns rows and columns of a raster of the box in pixels of `metres`.

        Raises:
          ValueError: the box is not a whole number of pixels.
        """
        rows, columns = (whole_number(side / metres) for side in (self.height, self.width))
        if not rows or not columns:
            raise ValueError(
                f"a box of {self.width:g} x {self.height:g} m is not a whole number of pixels of {metres:g} m"
            )
        return rows, columns


@dataclasses.dataclass(frozen=True)
class Grid:
    """A coordinate system in metres, the scene's bounds in it, and the corner from which pixels and tiles count."""

    crs: str  # as rasterio reads it: "EPSG:32632", or WKT
    bounds: Box  # whole pixels of the output
    # Corners of pixels and tiles lie a whole number of them from here, wherever the bounds are: two requests on the
    # same rasters have the same pixels and the same tiles.
    origin: tuple[float, float] = (0.0, 0.0)  # x, y

    def snapped(self, box: Box, step: float) -> Box:
        """Returns the smallest box around `box` whose sides lie a whole number of `step` metres from the origin."""
        x, y = self.origin

        def below(value: float, start: float) -> float:
            return start + math.floor((value - start) / step + SAME_METRES / step) * step

        def above(value: float, start: float) -> float:
            return start + math.ceil((value - start) / step - SAME_METRES / step) * step

        return Box(below(box.left, x), below(box.bottom, y), above(box.right, x), above(box.top, y))
