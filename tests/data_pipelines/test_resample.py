"""Bilinear interpolation to pixels of half the side."""

import numpy as np
import pytest

from data_pipelines.bands import doubled


def test_a_row():
    values = np.array([[0, 4, 8]], np.uint16)
    np.testing.assert_allclose(doubled(values), [[0, 1, 3, 5, 7, 8]] * 2)


def test_planes_stay_planes_and_leading_axes_are_kept():
    row, column = np.mgrid[0:8, 0:6]
    fine = doubled(np.stack([3 * row + column, -row])[None])
    assert fine.shape == (1, 2, 16, 12) and fine.dtype == np.float32
    row, column = np.mgrid[0:16, 0:12] / 2 - 0.25
    np.testing.assert_allclose(fine[0, 0, 1:-1, 1:-1], (3 * row + column)[1:-1, 1:-1])


def test_as_torch_does():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values), scale_factor=2, mode="bilinear")
    np.testing.assert_allclose(doubled(values), expected.numpy(), atol=1e-6)
