"""From a stored example to a row of a batch: masks, dates, standardisation, missing sensors."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.options import Sampling
from data_pipelines.prepare.statistics import DatasetStats, ShardStats
from data_pipelines.transforms import TileTransform, hide_invalid, standardise
from data_pipelines.windows import IGNORE, Window, sample_window, whole_tile
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
    transform.write(batch, 0, [whole_tile(CARD, example)], window, rng)
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
    assert written(make_tile()).observations["s2"].present is None  # never missing


def test_a_missing_image_is_zero_where_it_is_not_stored_as_zero():
    card = dataclasses.replace(CARD, optional=("spot",))
    statistics = neutral_statistics()
    statistics["spot"].mean += 100
    transform = TileTransform(card, statistics, Sampling())
    batch = transform.empty_batch(2, LENGTHS, 30)
    for row, present in enumerate((True, False)):
        example = make_tile() | {"spot_present": np.asarray(present)}
        transform.write(batch, row, [whole_tile(card, example)], WHOLE, None)
    assert batch.observations["spot"].present.tolist() == [True, False]
    assert not batch.observations["spot"].values[1].any() and batch.observations["spot"].values[0].min() < -99


def test_a_series_without_dates_is_zero():
    example = make_tile(num_dates=3)
    example |= {key: value[:0] for key, value in example.items() if key.startswith("modis")}
    transform = transform_of()
    batch = transform.empty_batch(1, LENGTHS, 30)
    transform.write(batch, 0, [whole_tile(CARD, example)], WHOLE, None)
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


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float32, np.float64])
def test_standardise_is_float32_whatever_is_stored(dtype):
    statistics = type("One", (), dict(mean=np.array([2.0]), std=np.array([4.0])))
    standard = np.empty((1, 2, 2), np.float32)
    standardise(np.full((1, 2, 2), 10, dtype), statistics, standard)
    assert (standard == 2.0).all()


def test_standardised_once_with_the_pooled_statistics():
    card = fake_reader.CARD
    stats = ShardStats.empty(card, "train")
    examples = [fake_reader.make_example("train", index) for index in range(6)]
    for example in examples:
        stats.update(example, 0)
    transform = TileTransform(card, DatasetStats.merged(card, [stats]).sensor_statistics(), Sampling())
    batch = transform.empty_batch(6, {"s2": 6, "s1-asc": 4, "modis": 5}, 10)
    for row, example in enumerate(examples):
        transform.write(batch, row, [whole_tile(card, example)], Window(card.extent), None)
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
