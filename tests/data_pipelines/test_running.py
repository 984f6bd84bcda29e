"""Statistics of bands in one pass against numpy, whatever the dtype."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.prepare.statistics import Moments, RunningStatistics

DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")


def draw(rng, dtype, offset):
    """A tile of three bands of different spread."""
    values = offset + rng.normal(0, [[[1.0]], [[30.0]], [[0.1]]], (int(rng.integers(1, 4)), 3, 4, 5))
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = np.rint(values).clip(info.min, info.max)
    return values.astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tiles=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, -30.0, 1e4]),
    masked=st.booleans(),
)
def test_pooled_statistics_equal_numpy(seed, tiles, dtype, offset, masked):
    rng = np.random.default_rng(seed)
    running, pooled = RunningStatistics(3, dtype), [[], [], []]
    for _ in range(tiles):
        values = draw(rng, dtype, offset)
        mask = rng.random((len(values), 1, 4, 5)) < 0.7 if masked else np.ones((len(values), 1, 4, 5), np.bool_)
        running.update(values, mask if masked else None)
        for band in range(3):
            pooled[band].append(values[:, band][mask[:, 0]])
    moments, (low, high) = running.moments(), running.percentiles()
    error = 1e-9 if np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize < 4 else 1 / 256
    for band in range(3):
        valid = np.concatenate(pooled[band]).astype(np.float64)
        assert moments.count[band] == valid.size
        if valid.size:
            expected = [valid.mean(), valid.std(), valid.min(), valid.max()]
            got = [a[band] for a in (moments.mean, moments.std, moments.minimum, moments.maximum)]
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
            neighbours = np.percentile(valid, [1, 99], method="lower"), np.percentile(valid, [1, 99], method="higher")
            exact = np.percentile(valid, [1, 99])
            bound = error * np.maximum(*np.abs(neighbours)) + 1e-9
            assert (np.abs([low[band], high[band]] - exact) <= bound).all()


def test_stable_where_sums_of_squares_cancel():
    values = 1e9 + np.random.default_rng(0).normal(size=(20, 1, 8, 8))
    running = RunningStatistics(1, "float64")
    for tile in values:
        running.update(tile)
    np.testing.assert_allclose(running.moments().std, values.std(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_bands_without_spread_or_without_values(dtype):
    running = RunningStatistics(2, dtype)
    values = np.full((2, 3, 3), 7, dtype)
    values[1] = 9
    running.update(values, np.stack([np.ones((3, 3), bool), np.zeros((3, 3), bool)]))
    moments, percentiles = running.moments(), running.percentiles()
    assert moments.mean.tolist() == [7.0, 0.0] and moments.std.tolist() == [0.0, 0.0]
    assert moments.count.tolist() == [9, 0] and np.isinf(moments.minimum[1])
    assert percentiles[:, 0].tolist() == [7.0, 7.0] and np.isnan(percentiles[:, 1]).all()


def test_invalid_values_do_not_count_even_if_they_are_no_numbers():
    running = RunningStatistics(1, "float32")
    running.update(np.array([[[1.0, np.nan, np.inf]]], np.float32), np.array([[[True, False, False]]]))
    assert running.moments().mean.tolist() == [1.0] and running.counts.sum() == 1


def test_merging_with_nothing_changes_no_bit():
    some = Moments.of([np.array([0.1, 0.2, 0.7])])
    merged = Moments.empty(1)
    for part in (Moments.empty(1), some, Moments.empty(1)):
        merged.merge(part)
    for field in ("count", "mean", "deviation", "minimum", "maximum"):
        assert getattr(merged, field) == getattr(some, field)


def test_moments_of_integers_are_exact_for_any_order():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 65536, (50, 1, 8, 8), dtype=np.uint16)
    forth, back = RunningStatistics(1, "uint16"), RunningStatistics(1, "uint16")
    for tile, other in zip(tiles, tiles[::-1]):
        forth.update(tile)
        back.update(other)
    assert forth.moments().mean == back.moments().mean == tiles.astype(np.int64).sum() / tiles.size
    assert forth.moments().deviation == back.moments().deviation
