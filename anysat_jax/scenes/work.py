"""The work on one window of a scene: reading, the model on its tiles, and its parts of the result."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from anysat_jax.batch import Batch, Observation
from anysat_jax.normalise import BandStatistics
from anysat_jax.scenes.composite import Composite
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.inference import Product, Program, make_program
from anysat_jax.scenes.outputs import RasterSpec, write_part
from anysat_jax.scenes.reading import Fields, Stack, read_box
from anysat_jax.scenes.tiles import Lattice, Window, covered
from anysat_jax.sensors import get_sensor
from anysat_jax.weights.exported import Exported
from data_pipelines.prepare.storage import write_whole

# Of a stack's dates, how many a batch has room for: tiles that clouds or swaths leave few dates cost less. Each has a
# program of its own.
DATE_FRACTIONS = (0.25, 0.5, 1.0)
RESULT, INPUT = "result", "input"  # folders of the parts
EMPTY = ".empty"  # ending of the part of a window without a valid pixel


@dataclasses.dataclass(frozen=True)
class Job:
    """A request as the work on its windows needs it; it is pickled to the workers of a cluster."""

    stacks: Mapping[str, Stack]
    grid: Grid
    lattice: Lattice
    product: Product
    statistics: Mapping[str, BandStatistics | None]  # by sensor
    units: Mapping[str, str]  # of radars: those of the statistics
    dates: Mapping[str, int]  # by series: days of the whole stack
    batch: int
    folder: pathlib.Path  # of the parts

    @property
    def spatial(self) -> list[str]:
        """The sensors with a grid."""
        return [name for name in self.stacks if get_sensor(name).kind != "context"]

    def program(self, weights: Exported, devices: int = 1) -> Program:
        """Returns the compiled function of batches."""
        return make_program(weights, self.product, self.statistics, devices)


class Read(NamedTuple):
    """The rasters' values in a window."""

    window: Window
    fields: Mapping[str, Fields]  # by sensor with a grid: of the window's box
    contexts: Mapping[tuple[int, int], Mapping[str, Fields]]  # by tile and context sensor: one pixel


def read_window(job: Job, window: Window) -> Read:
    """Reads what the tiles of a window need, beyond the request's bounds, too: context is what the rasters have.

    Raises:
      ValueError: a file cannot be read.
    """

    def read(name: str, box: Box) -> Fields:
        return read_box(job.stacks[name], job.grid.crs, box, job.units.get(name, ""))

    fields = {name: read(name, window.box) for name in job.spatial}
    contexts = {}
    if len(fields) < len(job.stacks) and any(one.valid.any() for one in fields.values()):
        for tile in window.tiles:
            contexts[tile] = {name: read(name, window.tile_box(tile)) for name in job.stacks if name not in fields}
    return Read(window, fields, contexts)


def cell_fields(read: Read, name: str) -> Fields:
    """Returns a sensor's arrays on the cells of a window."""
    one, inner = read.fields[name], (..., *read.window.cell_slices(read.window.lattice.patch_pixels(name)))
    return Fields(one.values[inner], one.valid[inner], one.days)


def valid_pixels(job: Job, read: Read) -> Bool[np.ndarray, "h w"]:
    """Returns True for pixels of a window's cells that have a value in the result.

    Dense features need a valid pixel of the sensor whose sub-patches they describe, all other results one of any.
    """
    shape = read.window.cells.shape(job.product.metres)
    names = [job.product.sensor] if job.product.sensor else job.spatial
    seen = [cell_fields(read, name).valid for name in names]
    return np.logical_or.reduce([covered(one.reshape(-1, *one.shape[-2:]).any(axis=0), shape) for one in seen])


# ---------------------------------------------------------------- batches


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile of a window, with views of its pixels."""

    place: tuple[int, int]  # row and column within the window
    fields: Mapping[str, Fields]  # by sensor
    fraction: float  # the least of DATE_FRACTIONS that has room for its dates


def room(fraction: float, dates: int) -> int:
    """Returns the number of dates of a batch, of those of a whole stack."""
    return max(1, math.ceil(fraction * dates))


def cut(job: Job, read: Read) -> list[Tile]:
    """Returns the tiles of a window with a valid pixel of a sensor with a grid, those with most dates first.

    Dates of a tile without a valid pixel are left out.
    """
    tiles = []
    for place in read.window.tiles:
        parts = dict(read.contexts.get(place, {}))
        for name, one in read.fields.items():
            rows, columns = read.window.tile_slices(place, job.lattice.patch_pixels(name))
            parts[name] = Fields(one.values[..., rows, columns], one.valid[..., rows, columns], one.days)
        # Of the whole tile: whether it counts may not depend on the window.
        if not any(parts[name].valid.any() for name in read.fields):
            continue
        counts = {}
        for name in job.dates:
            one = parts[name]
            (seen,) = np.nonzero(one.valid.any(axis=(1, 2, 3)))
            counts[name] = len(seen)
            if len(seen) < len(one.days):
                parts[name] = Fields(one.values[seen], one.valid[seen], [one.days[index] for index in seen])
        fits = (f for f in DATE_FRACTIONS if all(count <= room(f, job.dates[name]) for name, count in counts.items()))
        tiles.append(Tile(place, parts, next(fits)))
    return sorted(tiles, key=lambda tile: -tile.fraction)  # stable: the same batches each time


def to_batch(job: Job, tiles: Sequence[Tile]) -> Batch:
    """Returns a batch of tiles in native units; what is missing is padding that has no part in the others.

    Without tiles it has room for all dates.
    """
    fraction = max((tile.fraction for tile in tiles), default=1.0)
    observations = {}
    for name in job.stacks:
        sensor, side = get_sensor(name), get_sensor(name).pixels(job.lattice.tile)
        lead = (job.batch, room(fraction, job.dates[name])) if name in job.dates else (job.batch,)
        values = np.zeros((*lead, sensor.num_bands, side, side), np.float32)
        valid = np.zeros((*lead, 1, side, side), np.bool_)
        days, real = np.zeros(lead, np.int32), np.zeros(lead, np.bool_)
        for number, tile in enumerate(tiles):
            one = tile.fields[name]
            at = (number, slice(len(one.days))) if name in job.dates else number
            values[at], valid[at] = one.values, one.valid
            if name in job.dates:
                days[at] = [day.timetuple().tm_yday - 1 for day in one.days]
                real[at] = True
        present = valid.reshape(job.batch, -1).any(axis=1)
        series = (days, real) if name in job.dates else (None, None)
        observations[name] = Observation(values, *series, valid, present)
    return Batch(observations, patch_size=float(job.lattice.patch_size))


def compute_tiles(
    job: Job, program: Program, tiles: Sequence[Tile]
) -> Iterator[tuple[Tile, Float32[np.ndarray, "h w K"]]]:
    """Yields tiles with their results."""
    running: list[tuple[Sequence[Tile], jax.Array]] = []
    for start in range(0, len(tiles), job.batch):
        some = tiles[start : start + job.batch]
        running.append((some, program(to_batch(job, some))))
        if len(running) > 1:  # while the device computes, the host copies the batch before
            done, values = running.pop(0)
            yield from zip(done, np.asarray(values))
    for done, values in running:
        yield from zip(done, np.asarray(values))


def compute_window(
    job: Job, program: Program, read: Read, on_tile: Callable[[float], None] = lambda fraction: None
) -> Float32[np.ndarray, "h w K"] | None:
    """Returns the result on a window's cells, NaN where nothing is valid; None where that is everywhere.

    Where tiles overlap, it is their mean by `Lattice.weights`; classes are the most probable ones by mean probability.
    Calls `on_tile` with the fraction of the window that is a tile; what it raises ends the work.
    """
    valid = valid_pixels(job, read)
    tiles = cut(job, read) if valid.any() else []
    if not tiles:
        on_tile(1.0)
        return None
    stride = round(job.lattice.stride / job.product.metres)
    ramp = job.lattice.weights(job.product.metres)
    out = np.zeros((*valid.shape, job.product.channels), np.float32)
    total = np.zeros((*valid.shape, 1), np.float32)
    for tile, values in compute_tiles(job, program, tiles):
        # The first tiles of a window begin before its cells.
        starts = [(index - job.lattice.before) * stride for index in tile.place]
        inner = tuple(slice(max(start, 0), start + len(ramp)) for start in starts)
        rows, columns = (ramp[max(-start, 0) :][: n - max(start, 0)] for start, n in zip(starts, valid.shape))
        weights = (rows[:, None] * columns)[..., None]
        top, left = (max(-start, 0) for start in starts)
        out[inner] += weights * values[top : top + len(rows), left : left + len(columns)]
        total[inner] += weights
        on_tile(1 / len(tiles))
    np.divide(out, total, out=out, where=valid[..., None])
    out = out.argmax(axis=-1, keepdims=True).astype(np.float32) if job.product.classes else out
    out[~valid] = np.nan
    return out


# ---------------------------------------------------------------- parts of the result


@dataclasses.dataclass(frozen=True)
class Rasters:
    """The two rasters of a request: the result, and its input as an image."""

    result: RasterSpec
    input: RasterSpec
    composite: Composite


class Part(NamedTuple):
    """A window's pixels of the two rasters, cut to the request's bounds."""

    name: str
    box: Box
    result: Num[np.ndarray, "K h w"] | None  # as it is stored; None where nothing is valid
    image: UInt8[np.ndarray, "3 h w"]


def make_part(job: Job, rasters: Rasters, read: Read, result: Float32[np.ndarray, "h w K"] | None) -> Part:
    """Returns the part of a window, of the result on its cells."""
    cells, metres = read.window.cells, job.product.metres
    box = cells.intersection(job.grid.bounds)
    top, left = round((cells.top - box.top) / metres), round((box.left - cells.left) / metres)
    height, width = box.shape(metres)
    inner = (slice(top, top + height), slice(left, left + width))
    image = rasters.composite.image(cell_fields(read, rasters.composite.sensor), cells.shape(metres))[:, *inner]
    if result is not None:
        # A row at a time: the features of a window are large, and their encoding has steps in between.
        numbers = np.empty((len(rasters.result.bands), height, width), rasters.result.dtype)
        for row, values in enumerate(result[inner]):
            numbers[:, row] = stored(rasters.result, values).T
        result = None if np.isnan(result[inner][..., 0]).all() else numbers
    return Part(read.window.name, box, result, image)


def stored(spec: RasterSpec, values: Float32[np.ndarray, "n K"]) -> Num[np.ndarray, "n k"]:
    """Returns results as the numbers of a raster; nodata where they are NaN."""
    if spec.encoding:
        return spec.encoding.encode(values)
    return np.where(np.isnan(values), spec.nodata, values).astype(spec.dtype)


def write_window(job: Job, rasters: Rasters, part: Part) -> None:
    """Writes the files of a window; the result's is the last one, by which the window is known to be done.

    Raises:
      OSError: a file cannot be written.
    """
    if part.image.any():
        write_part(job.folder / INPUT, part.name, rasters.input, part.box, part.image)
    if part.result is None:
        write_whole(job.folder / RESULT / f"{part.name}{EMPTY}", b"")
    else:
        write_part(job.folder / RESULT, part.name, rasters.result, part.box, part.result)
