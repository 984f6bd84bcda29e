"""Geometry, dates, masks and standardisation of single examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.sensors import get_sensor
from data_pipelines.statistics import DatasetStatistics, SensorStatistics
from data_pipelines.transforms import (
    ExampleTransform,
    Turn,
    choose_dates,
    collate,
    crop_window,
    hide_invalid,
    pad_dates,
    standardise,
)
from tests.data_pipelines.fake_reader import CARD, CELLS, MARGIN, make_example

SEEDS = st.integers(0, 2**32 - 1)


def neutral_statistics(longest=6):
    """Means 0 and deviations 1, so that values come out as they went in."""
    zeros = {s: np.zeros(get_sensor(s).num_bands) for s in CARD.sensors}
    return {
        s: SensorStatistics(get_sensor(s).bands, z, z + 1, z, z, z.astype(np.int64), longest if s != "spot" else 0)
        for s, z in zeros.items()
    }


def ground_example(ground):
    """Every sensor shows the same map of cells; the mask shows where it is even."""
    image = np.pad(np.kron(ground, np.ones((10, 10))), MARGIN, mode="edge")
    series = np.broadcast_to(ground, (3, 10, CELLS, CELLS))
    dates = np.arange(3, dtype=np.int32)
    return make_example("train", 0) | {
        "spot": np.broadcast_to(image, (3, *image.shape)).astype(np.uint8),
        "s2": series.astype(np.uint16),
        "s2_dates": dates,
        "s2_mask": series[:, :1] % 2 == 0,
        "s1-asc": series[:, :2].astype(np.float32),
        "s1-asc_dates": dates,
        "s1-asc_mask": np.ones((3, 2, CELLS, CELLS), np.bool_),
        "dense": ground.astype(np.int8),
    }


GROUND = np.arange(1, CELLS * CELLS + 1).reshape(CELLS, CELLS)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_all_arrays_of_a_tile_get_the_same_turn(seed):
    sample = ExampleTransform(CARD, neutral_statistics(), 4)(ground_example(GROUND), np.random.default_rng(seed))
    dense = sample.labels["dense"]
    assert sorted(dense.ravel()) == sorted(GROUND.ravel())
    spot, s2, s1 = (sample.observations[name] for name in ("spot", "s2", "s1-asc"))
    np.testing.assert_array_equal(spot.values[0, 5::10, 5::10], dense)
    np.testing.assert_array_equal(s1.values[:3], np.broadcast_to(dense, (3, 2, CELLS, CELLS)))
    np.testing.assert_array_equal(s2.pixel_mask[:3, 0], np.broadcast_to(dense % 2 == 0, (3, CELLS, CELLS)))
    np.testing.assert_array_equal(s2.values[:3, 0], np.where(s2.pixel_mask[:3, 0], dense, 0))


def test_training_draws_all_eight_turns_and_evaluation_none():
    transform = ExampleTransform(CARD, neutral_statistics(), 4)
    drawn = {transform(ground_example(GROUND), np.random.default_rng(s)).labels["dense"].tobytes() for s in range(80)}
    assert len(drawn) == 8
    np.testing.assert_array_equal(transform(ground_example(GROUND)).labels["dense"], GROUND)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_turns_of_a_rectangle_keep_its_shape(seed):
    turn = Turn.draw(np.random.default_rng(seed), square=False)
    array = np.arange(6).reshape(2, 3)
    assert turn(array).shape == (2, 3) and sorted(turn(array).ravel()) == list(range(6))


def test_aerial_margin_is_cropped_in_the_centre_for_evaluation_and_anywhere_for_training():
    assert crop_window((304, 304), 300, None) == (..., slice(2, 302), slice(2, 302))
    starts = {crop_window((304, 304), 300, np.random.default_rng(s))[1].start for s in range(60)}
    assert starts == {0, 1, 2, 3, 4}


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), limit=st.integers(1, 40), seed=st.none() | SEEDS)
def test_chosen_dates_are_in_order_and_without_repetition(count, limit, seed):
    chosen = choose_dates(count, limit, None if seed is None else np.random.default_rng(seed))
    assert len(chosen) == min(count, limit)
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < count


def test_evaluation_keeps_first_and_last_date():
    assert choose_dates(10, 4, None).tolist() == [0, 3, 6, 9]


def test_series_are_padded_with_a_date_mask():
    transform = ExampleTransform(CARD, neutral_statistics(longest=6), 4)
    sample = transform(make_example("train", 0))  # 3 dates of s2, 2 of s1-asc
    s2, s1 = sample.observations["s2"], sample.observations["s1-asc"]
    assert s2.values.shape == (4, 10, CELLS, CELLS) and s2.date_mask.tolist() == [True, True, True, False]
    assert s1.date_mask.tolist() == [True, True, False, False]
    assert not s2.values[3].any() and not s2.pixel_mask[3].any() and s2.dates.dtype == np.int32
    assert sample.observations["spot"].dates is None and sample.observations["spot"].pixel_mask is None


def test_no_longer_than_the_longest_series():
    assert ExampleTransform(CARD, neutral_statistics(longest=6), 100).num_dates("s2") == 6
    assert ExampleTransform(CARD, neutral_statistics(longest=6), None).num_dates("s2") == 6
    assert ExampleTransform(CARD, neutral_statistics(longest=6), 4).num_dates("s2") == 4


def test_standardised_once_with_the_pooled_statistics():
    gatherer = DatasetStatistics(CARD)
    examples = [make_example("train", index) for index in range(6)]
    for example in examples:
        gatherer.update("train", example)
    statistics = gatherer.result()
    transform = ExampleTransform(CARD, statistics)
    values = np.concatenate(
        [
            np.moveaxis(o.values[o.date_mask], 1, -1)[np.moveaxis(o.pixel_mask[o.date_mask], 1, -1)[..., 0]]
            for o in (transform(example).observations["s2"] for example in examples)
        ]
    )
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-5)
    assert values.dtype == np.float32


@pytest.mark.parametrize("bands", [1, 3])
def test_invalid_and_non_finite_values_are_hidden(bands):
    values = np.ones((2, 3, 2, 2), np.float32)
    values[0, 1, 0, 0], values[1, 2, 1, 1] = np.nan, np.inf
    mask = np.ones((2, bands, 2, 2), bool)
    mask[0, 0, 0, 1] = False
    hidden, valid = hide_invalid(values, mask)
    assert np.isfinite(hidden).all() and valid.shape == mask.shape
    band = 0 if bands == 1 else 1
    assert not valid[0, band, 0, 0] and not valid[0, 0, 0, 1] and valid[1, 0, 0, 0]
    assert valid.sum() == mask.size - 3
    assert not hidden[~np.broadcast_to(valid, hidden.shape)].any()


def test_stored_arrays_stay_as_they_are():
    example = make_example("train", 1)
    before = {key: np.array(value) for key, value in example.items()}
    ExampleTransform(CARD, neutral_statistics(), 4)(example, np.random.default_rng(0))
    for key, value in before.items():
        np.testing.assert_array_equal(value, example[key])


def test_standardise_is_float32_whatever_is_stored():
    one = SensorStatistics(("a",), np.array([2.0]), np.array([4.0]), *(np.zeros(1),) * 3)
    for dtype in (np.uint8, np.int16, np.uint16, np.float32):
        result = standardise(np.full((1, 2, 2), 10, dtype), one)
        assert result.dtype == np.float32 and (result == 2.0).all()


def test_padding_keeps_what_fits():
    array = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(pad_dates(array, 3), array)
    np.testing.assert_array_equal(pad_dates(array, 5), np.concatenate([array, np.zeros((2, 2), int)]))


def test_batches_of_a_dataset_all_have_the_same_structure():
    import jax

    transform = ExampleTransform(CARD, neutral_statistics(), 4)
    batches = []
    for indices in ((0, 1), (2, 3)):
        samples = [transform(make_example("train", i), np.random.default_rng(i)) for i in indices]
        batches.append(collate(samples, dataset=CARD.name, patch_size=10))
    first, second = ([(np.shape(x), x.dtype) for x in jax.tree.leaves(batch)] for batch in batches)
    assert first == second and jax.tree.structure(batches[0]) == jax.tree.structure(batches[1])
    assert batches[0].labels["tile"].dtype == np.int32 and batches[0].labels["dense"].dtype == np.int32
    assert batches[0].observations["modis"].values.shape == (2, 4, 7, 1, 1) and batches[0].grid == (4, 4)


def test_multi_labels_become_float32_and_unlabelled_pixels_minus_one():
    import dataclasses

    card = dataclasses.replace(CARD, tile_label="multi_label", ignore_label=7)
    example = make_example("train", 0) | {"tile": np.array([1, 0, 1], np.uint8), "dense": np.full((4, 4), 7, np.int8)}
    labels = ExampleTransform(card, neutral_statistics())(example).labels
    assert labels["tile"].dtype == np.float32 and labels["tile"].tolist() == [1, 0, 1]
    assert (labels["dense"] == -1).all()
