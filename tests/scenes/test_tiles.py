"""The lattice of tiles, windows, and pixels of other sizes."""

import numpy as np
import pytest

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.tiles import (
    INPUT_BYTES,
    MOST_SUBPATCHES,
    RESULT_BYTES,
    Lattice,
    cell_sums,
    covered,
    subpatches,
    tile_side,
    window_side,
)

ORIGIN = (3.4, 7.2)


def lattice(**changes):
    return Lattice(**{"origin": ORIGIN, "patch_size": 20.0, "patches": 8, "overlap": 2} | changes)


@pytest.mark.parametrize("side", [1, 2, 5])
@pytest.mark.parametrize("overlap", [0, 2, 4])
def test_cells_cover_the_bounds_once_and_weights_add_up_to_one(side, overlap):
    x, y = ORIGIN
    bounds = Box(x - 370, y - 250, x + 110, y + 130)
    counts, weights = np.zeros((2, 300, 300))  # pixels of 10 m, the origin in the middle
    for window in lattice(overlap=overlap).windows(bounds, side):
        counts[pixels(window.cells)] += 1
        own = np.zeros((300, 300))
        for place in window.tiles:
            ramp = window.lattice.weights(10)
            own[pixels(window.tile_box(place))] += ramp[:, None] * ramp
        np.testing.assert_allclose(own[pixels(window.cells)], 1, rtol=1e-6)
        weights[pixels(window.box)] += 1
    assert set(np.unique(counts)) == {0, 1} and (counts[pixels(bounds)] == 1).all()
    assert (weights[counts > 0] > 0).all()


def pixels(box):
    x, y = ORIGIN
    return tuple(
        slice(round(150 + a / 10), round(150 + b / 10))
        for a, b in ((y - box.top, y - box.bottom), (box.left - x, box.right - x))
    )


def test_the_same_tiles_whatever_bounds_and_windows():
    x, y = ORIGIN
    one = lattice().windows(Box(x - 370, y - 250, x + 110, y + 130), 2)
    other = lattice().windows(Box(x - 130, y - 490, x + 500, y + 10), 3)

    def boxes(windows):
        return {window.tile_box(place) for window in windows for place in window.tiles}

    # Bounds have 2 x 3 cells of 120 m in common, at least.
    assert len(boxes(one) & boxes(other)) >= 6


def test_bounds_on_the_edge_of_a_cell_do_not_take_the_next_one():
    x, y = ORIGIN
    (window,) = lattice().windows(Box(x, y - 240.0000001, x + 120.0000001, y), 9)
    assert (window.rows, window.columns) == (range(2), range(1))
    assert window.cells == Box(x, y - 240, x + 120, y)
    assert window.box == Box(x - 120, y - 280, x + 160, y + 120)


def test_slices_of_tiles_are_their_boxes():
    (window,) = lattice().windows(Box(ORIGIN[0], ORIGIN[1] - 360, ORIGIN[0] + 360, ORIGIN[1]), 3)
    for tile in window.tiles:
        rows, columns = window.tile_slices(tile, 2)  # pixels of 10 m
        box = window.tile_box(tile)
        assert window.box.top - 10 * rows.start == pytest.approx(box.top)
        assert window.box.top - 10 * rows.stop == pytest.approx(box.bottom)
        assert window.box.left + 10 * columns.start == pytest.approx(box.left)
        assert window.box.left + 10 * columns.stop == pytest.approx(box.right)


def test_decimal_pixels_do_not_drift():
    """A patch of 0.6 m, 100 km from the origin."""
    far = lattice(origin=(0.0, 0.0), patch_size=0.6, patches=10)
    (window,) = far.windows(Box(100_000.2, 5_000_000.2, 100_002.0, 5_000_001.8), 8)
    assert window.box.shape(0.2) == (
        10 * 3 + 8 * 3 * len(window.rows),
        10 * 3 + 8 * 3 * len(window.columns),
    )
    np.testing.assert_allclose(window.cells.left / 4.8, round(window.cells.left / 4.8), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(patch_size=15), "a patch of 15 m is not a whole number of 's2' pixels of 10 m"),
        (dict(patch_size=20, tile=170), r"a patch of 20 m does not divide the tile \(170 x 170 m"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lattice.of((0, 0), sensors=("s2",), **options)


def test_default_tiles():
    assert Lattice.of((0, 0), 40, ("s2", "s1")) == Lattice((0, 0), 40, 16, 4)
    assert Lattice.of((0, 0), 40, ("s2",), tile=120) == Lattice((0, 0), 40, 3, 1)
    assert Lattice.of((0, 0), 40, ("s2",), tile=640, overlap=False).overlap == 0
    side = tile_side(40, ("aerial",))
    assert side == 320 and subpatches(side, ("aerial",)) == 160**2 <= MOST_SUBPATCHES < 320**2


def test_windows_fit_into_memory():
    assert window_side(lattice(), {10.0: 1.0}, 10, 1) == 8
    assert window_side(lattice(), {10.0: 1e6}, 10, 1) == window_side(lattice(), {10.0: 1.0}, 10, 1e7) == 1  # at least
    assert window_side(lattice(), {10.0: 1e6}, 10, 1, batch=5) == 2  # of 3 x 3 tiles
    wide = lattice(patches=40, overlap=8)
    side = window_side(wide, {10.0: 1e3}, 20, 1)
    pixels = side * 64 + 80
    assert 1 < side < 8 and pixels**2 * 1e3 <= INPUT_BYTES < (pixels + 64) ** 2 * 1e3
    side = window_side(wide, {10.0: 1.0}, 20, 2e4)
    assert 1 < side < 8 and (side * 32) ** 2 * 2e4 <= RESULT_BYTES < (side * 32 + 32) ** 2 * 2e4


@pytest.mark.parametrize("shape", [(4, 6), (8, 12), (24, 36), (5, 7), (1, 1), (11, 3)])
def test_cell_sums_are_over_the_pixels_that_touch_a_cell(shape):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (2, 8, 12))
    expected = np.zeros((2, *shape))
    for row, column in np.ndindex(shape):
        for i, j in np.ndindex(8, 12):
            # Of a pixel and a cell, in units of 1 / (8 * rows) and 1 / (12 * columns).
            apart = i * shape[0] >= (row + 1) * 8 or (i + 1) * shape[0] <= row * 8
            apart |= j * shape[1] >= (column + 1) * 12 or (j + 1) * shape[1] <= column * 12
            expected[:, row, column] += 0 if apart else values[:, i, j]
    np.testing.assert_array_equal(cell_sums(values, shape), expected)
    np.testing.assert_array_equal(covered(values[0] > 7, shape), cell_sums(values[0] > 7, shape) > 0)
