"""Random scenes in random windows: with a model that copies its input, each pixel keeps its value and its place.

The model is a function of arrays here. All around it is as always: grid, tiles, windows, batches of dates, blending,
the cut to the bounds, nodata, and what is stored.
"""

import pathlib
import tempfile

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anysat_jax.scenes import run
from anysat_jax.scenes.composite import Composite
from anysat_jax.scenes.encoding import Encoding
from anysat_jax.scenes.inference import Product
from anysat_jax.scenes.outputs import RasterSpec
from anysat_jax.scenes.work import Rasters, compute_window, make_part, read_window
from tests.scenes.fake_scenes import LEFT, TOP, model, write_stack

WEIGHTS = model("s2")
BANDS = 10


def copy_input(batch):
    """The mean over the valid dates of each band, for each pixel of a batch's tiles."""
    one = batch.observations["s2"]
    valid = one.pixel_mask & one.date_mask[:, :, None, None, None]
    mean = (one.values * valid).sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
    return np.moveaxis(mean, 1, -1).astype(np.float32)


CASES = st.fixed_dictionaries(
    dict(
        shape=st.tuples(st.integers(1, 4), st.integers(4, 60), st.integers(4, 60)),  # dates, rows, columns
        seed=st.integers(0, 2**32 - 1),  # of values and clouds
        patch=st.sampled_from((10, 20, 30)),
        tile=st.sampled_from((2, 3, 5, 8)),  # patches
        batch=st.integers(1, 5),
        side=st.integers(1, 4),  # of a window
        corner=st.tuples(st.integers(0, 40), st.integers(0, 40)),  # of the raster, against that of a tile
        part=st.none() | st.tuples(*[st.floats(0, 1)] * 4),  # of the scene that is asked for
    )
)


def cloudy(dates, height, width, seed):
    """Values without any order, and 0 in a rectangle of each date."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 5000, (dates, BANDS, height, width))
    for date in values:
        row, column, rows, columns = (int(rng.integers(0, 2 * side)) for side in (height, width) * 2)
        date[:, max(0, row - rows) : row, max(0, column - columns) : column] = 0
    return values


def cut_out(part, height, width):
    """The first and last row and column, at least three apart, of a part of a scene."""
    ends = []
    for first, length, side in ((part[0], part[1], height), (part[2], part[3], width)):
        start = int(first * (side - 3))
        ends += [start, start + 3 + int(length * (side - start - 3))]
    return ends


@given(CASES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_pixel_keeps_its_value_and_its_place(case):
    dates, height, width = case["shape"]
    values = cloudy(dates, height, width, case["seed"])
    top, bottom, left, right = cut_out(case["part"], height, width) if case["part"] else (0, height, 0, width)
    x, y = LEFT + 10 * case["corner"][0], TOP - 10 * case["corner"][1]
    bounds = (x + 10 * left, y - 10 * bottom, x + 10 * right, y - 10 * top)
    patch = case["patch"]
    with tempfile.TemporaryDirectory() as folder:
        stack = write_stack(pathlib.Path(folder), "s2", height, width, dates=dates, left=x, top=y, values=values)
        given = run.Options(patch_size=patch, tile=patch * case["tile"], bounds=bounds, batch=case["batch"])
        product = Product("dense", 10.0, BANDS, BANDS, "s2")
        job, _ = run._plan(run._open({"s2": stack}, WEIGHTS, given), product, pathlib.Path(folder) / "x.tif")
        spec = RasterSpec(job.grid, 10.0, ("",) * BANDS, "float32", np.nan, Encoding())
        rasters = Rasters(spec, spec, Composite("s2", (0,), False, (0.0,), (5000.0,)))
        found = np.full((BANDS, bottom - top, right - left), -1, np.float32)
        for window in job.lattice.windows(job.grid.bounds, case["side"]):
            read = read_window(job, window)
            part = make_part(job, rasters, read, compute_window(job, copy_input, read))
            row, column = round((bounds[3] - part.box.top) / 10), round((part.box.left - bounds[0]) / 10)
            inner = (slice(None), slice(row, row + part.image.shape[1]), slice(column, column + part.image.shape[2]))
            assert (found[inner] == -1).all()  # no pixel is written twice
            found[inner] = np.nan if part.result is None else part.result
    seen = (values != 0).any(axis=1, keepdims=True)
    count = seen.sum(axis=0)
    expected = np.where(count > 0, (values * seen).sum(axis=0) / np.maximum(count, 1), np.nan)
    np.testing.assert_allclose(found, expected[:, top:bottom, left:right], rtol=1e-5)
