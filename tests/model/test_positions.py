"""Positions: the formulas written out once more, number by number."""

import math

import numpy as np
import pytest

from anysat_jax.model import positions


@pytest.mark.parametrize(("place", "channel"), [((0, 0), 0), ((3, 5), 7), ((2, 9), 40), ((7, 1), 63)])
def test_paper_positions_follow_equation_a(place: tuple[int, int], channel: int) -> None:
    dim, patch = 64, 20.0
    code = positions.sinusoids(np.array([place]), dim, patch, "paper")[0]
    axis = place[1] if channel < dim // 2 else place[0]
    i = channel % (dim // 2)
    assert code[channel] == pytest.approx(math.sin(patch * axis / 10000 ** (i / dim) + math.pi / 2 * (i % 2)), abs=1e-6)


def test_released_positions_are_sines_then_cosines_of_each_axis() -> None:
    code = positions.patch_positions((4, 4), 30.0, 32, "released")[4 * 2 + 3]  # row 2, column 3, units of 3 cells
    frequency = 10000.0 ** (-np.arange(8) / 8)
    column, row = 9 * frequency, 6 * frequency
    expected = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)])
    np.testing.assert_allclose(code, expected, atol=1e-6)


def test_buckets_of_distances() -> None:
    buckets = positions.patch_buckets((1, 8))
    np.testing.assert_array_equal(buckets[0], [3, 4, 5, 5, 6, 6, 6, 6])
    assert positions.patch_buckets((4, 4))[0, 5] == 4  # a diagonal step rounds to 1
    np.testing.assert_array_equal(buckets, buckets.T)


def test_class_token_has_a_bucket_of_its_own() -> None:
    buckets = positions.subpatch_buckets(3, 10.0, "paper")
    assert buckets.shape == (10, 10)
    assert (buckets[0] == positions.CLASS_BUCKET).all() and (buckets[:, 0] == positions.CLASS_BUCKET).all()


def test_released_coordinates_run_cell_by_cell_for_fine_sensors() -> None:
    released = positions.subpatch_coordinates(10, 2.0, "released")
    true = positions.subpatch_coordinates(10, 2.0, "paper")
    # The sub-patch at row 0, column 5 is the first of the second cell: the release gave it raster place 25.
    np.testing.assert_array_equal(released[5], [2, 5])
    np.testing.assert_array_equal(true[5], [0, 5])
    assert sorted(map(tuple, released)) == sorted(map(tuple, true))


@pytest.mark.parametrize(("side", "metres"), [(5, 2.0), (4, 10.0), (1, 30.0)])
def test_released_coordinates_are_true_elsewhere(side: int, metres: float) -> None:
    np.testing.assert_array_equal(
        positions.subpatch_coordinates(side, metres, "released"), positions.grid_coordinates(side, side)
    )


def test_date_code_repeats_sines_and_cosines() -> None:
    code = np.asarray(positions.date_code(np.array([[100.0, 0.0]], np.float32), 64, 367.0))
    expected = [math.sin(100), math.cos(100), math.sin(100 / 367**0.5), math.cos(100 / 367**0.5)]
    np.testing.assert_allclose(code[0, 0], np.tile(expected, 16), atol=1e-4)
    np.testing.assert_allclose(code[0, 1], np.tile([0, 1, 0, 1], 16), atol=1e-6)
