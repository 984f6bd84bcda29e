"""Which dates are kept, and how long the padded series are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.options import Sampling
from data_pipelines.transforms import choose_dates, most_dates, padded_lengths

SEEDS = st.none() | st.integers(0, 2**32 - 1)
SAMPLINGS = st.builds(
    Sampling,
    max_dates=st.none() | st.integers(1, 30),
    temporal_dropout=st.floats(0, 0.99),
    max_cloud=st.none() | st.floats(0, 100),
    date_buckets=st.sampled_from([(), (4,), (3, 8, 20)]),
)


def draws(seed):
    return None if seed is None else np.random.default_rng(seed)


def clouds(count, seed):
    return np.random.default_rng(seed).integers(0, 101, count).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 40), sampling=SAMPLINGS, seed=SEEDS, cloud_seed=st.integers(0, 100))
def test_kept_dates_are_a_sorted_part_that_fits(count, sampling, seed, cloud_seed):
    percent = clouds(count, cloud_seed)
    chosen = choose_dates(count, sampling, draws(seed), percent)
    assert 1 <= len(chosen) <= most_dates(count, sampling, seed is not None)
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < count
    if sampling.max_cloud is not None and percent.min() <= sampling.max_cloud:
        assert (percent[chosen] <= sampling.max_cloud + 1e-4).all()
    elif sampling.max_cloud is not None:
        assert percent[chosen].tolist() == [percent.min()]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), limit=st.integers(2, 60))
def test_evaluation_spreads_the_dates_evenly_from_first_to_last(count, limit):
    chosen = choose_dates(count, Sampling(max_dates=limit, temporal_dropout=0.5), None)
    assert len(chosen) == min(count, limit) and chosen[0] == 0 and chosen[-1] == count - 1
    steps = np.diff(chosen)
    assert not len(steps) or steps.max() - steps.min() <= 1
    assert choose_dates(10, Sampling(max_dates=4), None).tolist() == [0, 3, 6, 9]


def test_training_draws_every_date():
    sampling = Sampling(max_dates=3)
    seen = {tuple(choose_dates(5, sampling, np.random.default_rng(seed))) for seed in range(200)}
    assert len(seen) == 10  # all threes of five


def test_temporal_dropout_leaves_out_a_share():
    rng = np.random.default_rng(0)
    assert [len(choose_dates(n, Sampling(temporal_dropout=0.3), rng)) for n in (1, 3, 10, 43)] == [1, 3, 7, 31]
    assert len(choose_dates(10, Sampling(temporal_dropout=0.3), None)) == 10
    assert len(choose_dates(50, Sampling(temporal_dropout=0.99), rng)) == 1


def test_cloud_filter_keeps_the_clearest_date_at_least():
    cloud = np.asarray([80, 20, 90, 20], np.float32)
    assert choose_dates(4, Sampling(max_cloud=50), None, cloud).tolist() == [1, 3]
    assert choose_dates(4, Sampling(max_cloud=5), None, cloud).tolist() == [1]
    assert choose_dates(4, Sampling(max_cloud=80), None, cloud).tolist() == [0, 1, 3]
    assert choose_dates(4, Sampling(), None, cloud).tolist() == [0, 1, 2, 3]


LONGEST = {"s2": 43, "s1": 70}


def test_without_buckets_all_batches_are_as_long_as_the_longest_series():
    assert padded_lengths(LONGEST, Sampling(), True) == LONGEST
    assert padded_lengths(LONGEST, Sampling(max_dates=50), True) == {"s2": 43, "s1": 50}
    assert padded_lengths(LONGEST, Sampling(temporal_dropout=0.5), True) == {"s2": 22, "s1": 35}
    assert padded_lengths(LONGEST, Sampling(temporal_dropout=0.5), False) == LONGEST
    assert padded_lengths({"s2": 0}, Sampling(), True) == {"s2": 1}  # no tile has any


def test_one_bucket_serves_all_sensors_and_is_no_longer_than_needed():
    sampling = Sampling(date_buckets=(8, 16, 64))

    def lengths(s2, s1):
        return padded_lengths(LONGEST, sampling, False, {"s2": np.asarray(s2), "s1": np.asarray(s1)})

    assert lengths([3, 8], [2, 0]) == {"s2": 8, "s1": 8}
    assert lengths([3, 9], [2, 0]) == {"s2": 16, "s1": 16}
    assert lengths([3, 9], [2, 70]) == {"s2": 43, "s1": 64}  # the last bucket is a bound, the longest series another
    assert padded_lengths(LONGEST, sampling, False) == {"s2": 43, "s1": 64}  # when nobody counted


@settings(max_examples=60, deadline=None)
@given(sampling=SAMPLINGS, counts=st.lists(st.integers(0, 43), min_size=1, max_size=6), seed=SEEDS)
def test_what_is_kept_fits_the_padded_length_of_its_batch(sampling, counts, seed):
    lengths = padded_lengths({"s2": 43}, sampling, seed is not None, {"s2": np.asarray(counts)})
    for count in counts:
        if count:
            assert len(choose_dates(count, sampling, draws(seed), clouds(count, 0))) <= lengths["s2"] <= 43
    if sampling.date_buckets:
        assert lengths["s2"] in (*sampling.date_buckets, most_dates(43, sampling, seed is not None))
