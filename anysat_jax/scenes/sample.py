"""A sample of a scene's tiles: units are checked on it, colours of its image stretched, and encodings fitted."""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from anysat_jax.errors import ConfigError
from anysat_jax.normalise import clean
from anysat_jax.scenes.composite import Composite, fit_composite
from anysat_jax.scenes.encoding import Encoding
from anysat_jax.scenes.inference import Program
from anysat_jax.scenes.reading import Fields
from anysat_jax.scenes.tiles import Window
from anysat_jax.scenes.work import Job, Read, compute_tiles, cut, read_window, valid_pixels
from anysat_jax.sensors import get_sensor

TILES, FITTING_TILES = 16, 64  # to be sampled, without and with an encoding to fit
TRIES = 4  # tiles read for each of these, where many are without a valid pixel
PIXELS = 256  # of a tile, whose features are sampled
SIDE = 64  # pixels along a side of a tile, to which it is thinned to check units and stretch colours


class Sample(NamedTuple):
    """Findings on a sample."""

    composite: Composite  # of the input
    encoding: Encoding | None  # fitted to the features; None if it needs no sample
    warnings: tuple[str, ...]  # of values that look strange

    def to_json(self) -> bytes:
        """Returns the sample as JSON."""
        encoding = self.encoding and self.encoding.to_json()
        content = {"composite": dataclasses.asdict(self.composite), "encoding": encoding, "warnings": self.warnings}
        return json.dumps(content).encode()


def load_sample(path: pathlib.Path) -> Sample | None:
    """Returns what a run found before it was interrupted; None if it had not come so far."""
    if not path.exists():
        return None
    content = json.loads(path.read_bytes())
    encoding = content["encoding"] and Encoding.from_json(content["encoding"])
    return Sample(Composite.from_json(content["composite"]), encoding, tuple(content["warnings"]))


def take_sample(
    job: Job,
    program: Program,
    side: int,
    seed: int,
    fit: Callable[[Float32[np.ndarray, "N D"]], Encoding] | None,
) -> Sample:
    """Samples tiles of a scene; the same request has the same sample.

    Args:
      job, program: of the request.
      side: most tiles along a side of what is read at once.
      seed: of the random choice of tiles and pixels.
      fit: returns the encoding for sampled features; None: nothing is fitted.

    Raises:
      ConfigError: no tile has a valid pixel.
      ValueError: values are in another unit than the statistics, or too few for the encoding.
    """
    # Of tiles that do not overlap: each is computed alone.
    job = dataclasses.replace(job, lattice=dataclasses.replace(job.lattice, overlap=0))
    rng = np.random.default_rng(seed)
    features, thinned, waiting = [], [], []
    for read in _valid_tiles(job, side, rng, FITTING_TILES if fit else TILES):
        thinned.append({name: _thin(one) for name, one in read.fields.items()})
        if fit:
            waiting.append(read)
        if len(waiting) == job.batch:  # a batch at a time: a tile of a fine sensor takes much memory
            features += _features(job, program, waiting, rng)
            waiting = []
    if waiting:
        features += _features(job, program, waiting, rng)
    if not thinned:
        raise ConfigError(
            f"no pixel of {', '.join(job.spatial)} is valid within the bounds {job.grid.bounds} in {job.grid.crs}: "
            "check the bounds, and the nodata values and masks of the rasters"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in job.spatial:
            _check_values(job, name, [one[name] for one in thinned])
    found = tuple(str(one.message) for one in caught)
    return Sample(fit_composite(job.spatial, thinned), fit(np.concatenate(features)) if fit else None, found)


def _features(
    job: Job, program: Program, reads: Sequence[Read], rng: np.random.Generator
) -> list[Float32[np.ndarray, "n D"]]:
    """Returns features of some valid pixels of single tiles."""
    tiles = [cut(job, read)[0] for read in reads]
    found = []
    for read, (_, values) in zip(reads, compute_tiles(job, program, tiles)):
        valid = values[valid_pixels(job, read)]
        found.append(valid[rng.permutation(len(valid))[:PIXELS]])
    return found


def _valid_tiles(job: Job, side: int, rng: np.random.Generator, count: int) -> Iterator[Read]:
    """Yields at most `count` tiles with a valid pixel, chosen at random; at least one if there is one."""
    rows, columns = job.lattice.cells(job.grid.bounds)
    found = 0
    for place in rng.permutation(len(rows) * len(columns))[: TRIES * count]:
        row, column = divmod(int(place), len(columns))
        read = read_window(job, Window(0, job.lattice, rows[row : row + 1], columns[column : column + 1]))
        if cut(job, read):
            yield read
            found += 1
            if found == count:
                return
    # Of a scene with few valid pixels, the first window that has any.
    for window in job.lattice.windows(job.grid.bounds, side) if not found else ():
        tiles = cut(job, read_window(job, window))
        for tile in tiles[:count]:
            yield read_window(job, window.single(tile.place))
        if tiles:
            return


def _thin(one: Fields) -> Fields:
    """Returns every n-th pixel, so that a tile of a fine sensor does not take much memory."""
    step = max(1, one.valid.shape[-1] // SIDE)
    thin = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    return Fields(one.values[thin].copy(), one.valid[thin].copy(), one.days)


def _check_values(job: Job, name: str, tiles: Sequence[Fields]) -> None:
    """Refuses values in another unit than the statistics."""
    axis = 0 if get_sensor(name).has_dates else -1
    values, valid = (np.concatenate([one[part] for one in tiles], axis=axis) for part in (0, 1))
    if valid.any():
        clean(get_sensor(name), values[None], valid[None], job.statistics[name])
