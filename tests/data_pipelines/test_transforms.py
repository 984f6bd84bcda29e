"""From examples to rows of batches: dates, windows, standardisation, masks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.options import Sampling
from data_pipelines.prepare.statistics import ShardStats, sensor_statistics
from data_pipelines.transforms import TileTransform, choose_dates, hide_invalid, most_dates, padded_lengths, standardise
from data_pipelines.windows import IGNORE, Block, Window, sample_window
from tests.data_pipelines import fake_reader
from tests.data_pipelines.check_batch import check_batch
from tests.data_pipelines.coordinate_tiles import CARD, EXTENT, class_at, is_valid, make_tile, neutral_statistics

LENGTHS = {"s2": 5, "alos": 4, "modis": 3}
WHOLE = Window(EXTENT)


def transform_of(**sampling):
    return TileTransform(CARD, neutral_statistics(), Sampling(**sampling))


def written(example, transform=None, window=WHOLE, rng=None, lengths=LENGTHS):
    """The batch of one tile."""
    transform = transform or transform_of()
    batch = transform.empty_batch(1, lengths, 30)
    transform.write(batch, 0, [Block(example, CARD.extent)], window, rng)
    batch.labels["index"] = np.zeros(1, np.int32)
    if window.extent < EXTENT:
        batch.labels["window"] = np.zeros((1, 2), np.float32)
    check_batch(CARD, batch, window.extent)
    return batch


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), extent=st.sampled_from([60.0, 120.0]))
def test_values_masks_and_labels_stay_on_the_same_ground(seed, extent):
    rng = np.random.default_rng(seed)
    window = sample_window(CARD, extent, True, rng)
    batch = written(make_tile(), transform_of(max_dates=2, extent=extent), window, rng)
    spot, s2 = batch.observations["spot"], batch.observations["s2"]
    side = s2.values.shape[-1]
    ground = spot.values[0, :2].reshape(2, side, 10, side, 10).mean(axis=(2, 4))
    valid = np.broadcast_to(is_valid(ground), (2, 1, side, side))
    np.testing.assert_array_equal(s2.pixel_mask[0, :2], valid)
    np.testing.assert_array_equal(s2.values[0, :2, :2], np.where(valid, ground, 0))
    classes = class_at(ground)
    np.testing.assert_array_equal(batch.labels["dense"][0], np.where(classes == CARD.ignore_label, IGNORE, classes))


@settings(max_examples=20, deadline=None)
@given(seed=st.none() | st.integers(0, 2**32 - 1))
def test_values_dates_and_mask_are_of_the_same_dates(seed):
    rng = None if seed is None else np.random.default_rng(seed)
    lengths = {"s2": 5, "alos": 4, "modis": 4}
    s2 = written(make_tile(num_dates=9), transform_of(max_dates=4), rng=rng, lengths=lengths).observations["s2"]
    assert s2.date_mask[0].tolist() == [True] * 4 + [False]
    assert (np.diff(s2.dates[0, :4]) > 0).all() and s2.dates[0, 4] == 0
    number = s2.values[0, :4, 2].max(axis=(1, 2))  # the third band holds the date's number, which is its day
    np.testing.assert_array_equal(number, s2.dates[0, :4])
    assert not s2.values[0, 4].any() and not s2.pixel_mask[0, 4].any()


def test_a_missing_sensor_is_zero_and_not_present():
    alos = written(make_tile(alos_dates=0)).observations["alos"]
    assert not alos.present[0] and not alos.values.any() and not alos.date_mask.any() and not alos.pixel_mask.any()
    assert written(make_tile()).observations["alos"].present[0]
    assert written(make_tile()).observations["spot"].present is None  # never missing


def test_a_missing_image_is_zero_where_it_is_not_stored_as_zero():
    card = dataclasses.replace(CARD, optional=("spot",))
    statistics = neutral_statistics()
    statistics["spot"].mean += 100
    transform = TileTransform(card, statistics, Sampling())
    batch = transform.empty_batch(2, LENGTHS, 30)
    for row, present in enumerate((True, False)):
        example = make_tile() | {"spot_present": np.asarray(present)}
        transform.write(batch, row, [Block(example, card.extent)], WHOLE, None)
    assert batch.observations["spot"].present.tolist() == [True, False]
    assert not batch.observations["spot"].values[1].any() and batch.observations["spot"].values[0].min() < -99


@settings(max_examples=20, deadline=None)
@given(seed=st.none() | st.integers(0, 2**32 - 1))
def test_dates_without_a_valid_pixel_in_the_window_are_as_if_they_did_not_exist(seed):
    rng = None if seed is None else np.random.default_rng(seed)
    example = make_tile(num_dates=6)
    example["s2_mask"] = example["s2_mask"].copy()
    example["s2_mask"][[1, 4]] = False
    example["s2_mask"][3, :, :6] = False  # the upper half
    example["s2_cloud"] = np.asarray([0, 0, 0, 0, 0, 99], np.uint8)[:, None, None, None] + np.zeros_like(
        example["s2_mask"], np.uint8
    )
    transform = transform_of(max_cloud=50.0, max_dates=3, extent=60.0)
    upper, lower = (
        written(example, transform, Window(60.0, (top, 0.0)), rng).observations["s2"] for top in (0.0, 60.0)
    )
    assert upper.dates[0, :2].tolist() == [0, 2] and upper.date_mask.sum() == 2
    assert lower.dates[0, :3].tolist() == [0, 2, 3] and lower.date_mask.sum() == 3
    assert upper.present.all() and lower.present.all()


def test_sensors_without_a_valid_pixel_in_the_window_are_absent():
    card = dataclasses.replace(CARD, masks={"s2": "pixel", "spot": "pixel"})
    transform = TileTransform(card, neutral_statistics(), Sampling(extent=60.0))
    example = make_tile() | {"spot_mask": np.ones((1, 120, 120), bool)}
    example["spot_mask"][:, :60] = False
    example["s2_mask"] = example["s2_mask"] & (np.arange(12) < 6)[:, None]
    batch = transform.empty_batch(2, LENGTHS, 30)
    for row, top in enumerate((0.0, 60.0)):
        batch.observations["spot"].values[row] = np.nan  # as memory that was not set
        transform.write(batch, row, [Block(example, card.extent)], Window(60.0, (top, 0.0)), None)
    spot, s2 = batch.observations["spot"], batch.observations["s2"]
    assert spot.present.tolist() == [False, True] and s2.present.tolist() == [True, False]
    assert not spot.values[0].any() and spot.values[1].any() and not s2.date_mask[1].any() and not s2.dates[1].any()


def test_a_series_without_dates_is_zero():
    example = make_tile(num_dates=3)
    example |= {key: value[:0] for key, value in example.items() if key.startswith("modis")}
    transform = transform_of()
    batch = transform.empty_batch(1, LENGTHS, 30)
    transform.write(batch, 0, [Block(example, CARD.extent)], WHOLE, None)
    assert not batch.observations["modis"].date_mask.any() and not batch.observations["modis"].values.any()


def test_clouded_dates_are_left_out_by_what_the_window_shows():
    example = make_tile(num_dates=3)
    example["s2_cloud"] = np.zeros((3, 1, 12, 12), np.uint8)
    example["s2_cloud"][1, :, :6] = 100  # the upper half of the second date
    transform = transform_of(max_cloud=30.0, extent=60.0)
    upper, lower = (
        written(example, transform, Window(60.0, (top, 0.0))).observations["s2"].date_mask.sum() for top in (0.0, 60.0)
    )
    assert (upper, lower) == (2, 3)


def test_published_dates_count_from_the_cards_origin():
    example = make_tile()
    example["s2_dates"] = np.asarray([243, 364, 0], np.int32)  # 1 September, 31 December, 1 January
    example["s2_years"] = np.asarray([2019, 2019, 2020], np.int16)
    assert written(example).observations["s2"].dates[0, :3].tolist() == [243, 364, 0]
    published = written(example, transform_of(dates="published")).observations["s2"].dates
    assert published[0].tolist() == [0, 121, 122, 0, 0]
    hidden = written(example, transform_of(dates="none")).observations["s2"]
    assert hidden.dates[0].tolist() == [0] * 5 and hidden.date_mask[0].tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float32, np.float64])
def test_standardise_is_float32_whatever_is_stored(dtype):
    statistics = type("One", (), dict(mean=np.array([2.0]), std=np.array([4.0])))
    standard = np.empty((1, 2, 2), np.float32)
    standardise(np.full((1, 2, 2), 10, dtype), statistics, standard)
    assert (standard == 2.0).all()


def test_standardised_once_with_the_pooled_statistics():
    card = fake_reader.CARD
    stats = ShardStats.empty(card)
    examples = [fake_reader.make_example("train", index) for index in range(6)]
    for example in examples:
        stats.update(example, 0)
    transform = TileTransform(card, sensor_statistics({"train": stats}), Sampling())
    batch = transform.empty_batch(6, {"s2": 6, "s1-asc": 4, "modis": 5}, 10)
    for row, example in enumerate(examples):
        transform.write(batch, row, [Block(example, card.extent)], Window(card.extent), None)
    s2 = batch.observations["s2"]
    values = np.moveaxis(s2.values, 2, -1)[s2.pixel_mask[:, :, 0]]
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("bands", [1, 3])
def test_invalid_and_non_finite_values_are_hidden(bands):
    values = np.ones((2, 3, 2, 2), np.float32)
    values[0, 1, 0, 0], values[1, 2, 1, 1] = np.nan, np.inf
    mask = np.ones((2, bands, 2, 2), bool)
    mask[0, 0, 0, 1] = False
    standard, before = values.copy(), mask.copy()
    valid = hide_invalid(values, mask, standard)
    np.testing.assert_array_equal(mask, before)
    assert np.isfinite(standard).all()
    band = 0 if bands == 1 else 1
    assert not valid[0, band, 0, 0] and not valid[0, 0, 0, 1] and valid[1, 0, 0, 0]
    assert valid.sum() == mask.size - 3
    assert not standard[~np.broadcast_to(valid, standard.shape)].any()


def test_stored_arrays_stay_as_they_are():
    example = make_tile()
    before = {key: np.array(value) for key, value in example.items()}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        written(example, transform_of(max_dates=2), sample_window(CARD, EXTENT, True, rng), rng)
    for key, value in before.items():
        np.testing.assert_array_equal(value, example[key])


def test_noise_is_of_training_alone_and_spares_what_is_masked():
    plain = written(make_tile()).observations["s2"]
    evaluated = written(make_tile(), transform_of(noise=0.5)).observations["s2"]
    np.testing.assert_array_equal(evaluated.values, plain.values)
    noisy = [
        written(make_tile(), transform_of(noise=0.5), rng=np.random.default_rng(seed)).observations["s2"].values
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])
    added = noisy[0] - plain.values
    shown = np.broadcast_to(plain.pixel_mask, added.shape)
    assert not added[~shown].any()
    np.testing.assert_allclose([added[shown].mean(), added[shown].std()], [0, 0.5], atol=0.05)


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
