"""Order-preserving bins, and percentiles from their counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.prepare.statistics import RELATIVE_ERROR, add_counts, bin_values, bins_of, num_bins, percentile


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_each_small_integer_has_its_own_bin(dtype):
    info = np.iinfo(dtype)
    values = np.arange(info.min, info.max + 1).astype(dtype)
    assert bins_of(values).tolist() == list(range(num_bins(np.dtype(dtype))))
    np.testing.assert_array_equal(bin_values(np.dtype(dtype)), values)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False), min_size=2, max_size=20))
def test_bins_of_floats_keep_the_order_and_come_close(values):
    floats = np.sort(np.asarray(values, np.float32))
    bins = bins_of(floats)
    assert (np.diff(bins) >= 0).all() and bins.min() >= 0 and bins.max() < 65536
    np.testing.assert_allclose(bin_values(np.dtype("float32"))[bins], floats, rtol=RELATIVE_ERROR, atol=1e-37)


def test_bins_of_infinities_stand_for_no_number():
    assert np.isnan(bin_values(np.dtype("float32"))[bins_of(np.array([np.inf, -np.inf], np.float32))]).all()


def test_few_and_many_values_are_counted_alike():
    bins = np.random.default_rng(0).integers(0, 256, 5000)
    many, few = np.zeros((2, 256), np.int64), np.zeros((2, 256), np.int64)
    add_counts(many, 1, bins)
    for at in range(0, 5000, 10):
        add_counts(few, 1, bins[at : at + 10])
    np.testing.assert_array_equal(many, few)
    assert many[0].sum() == 0 and many[1].sum() == 5000


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=50), percent=st.sampled_from([0, 1, 37.5, 50, 99, 100])
)
def test_percentiles_equal_numpy(values, percent):
    counts = np.bincount(values, minlength=256)
    assert percentile(counts, np.arange(256.0), percent) == pytest.approx(np.percentile(values, percent))


def test_there_is_no_percentile_of_nothing():
    assert np.isnan(percentile(np.zeros(256, np.int64), np.arange(256.0), 50))
