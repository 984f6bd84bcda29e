"""Statistics against numpy, and what is refused when they are read."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.statistics import (
    FILE_NAME,
    DatasetStatistics,
    RunningStatistics,
    load_statistics,
    save_statistics,
)
from tests.data_pipelines.fake_reader import CARD, make_example


def gather(num_tiles=5):
    gatherer = DatasetStatistics(CARD)
    for index in range(num_tiles):
        gatherer.update("train", make_example("train", index))
    gatherer.update("val", make_example("val", 3))
    return gatherer.result()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tiles=st.integers(1, 5), offset=st.sampled_from([0.0, -30.0, 1e6]))
def test_pooled_statistics_equal_numpy(seed, tiles, offset):
    rng = np.random.default_rng(seed)
    running = RunningStatistics(3)
    pooled = [[], [], []]
    for _ in range(tiles):
        values = offset + rng.normal(0, [[[1.0]], [[5.0]], [[0.1]]], (int(rng.integers(1, 4)), 3, 4, 5))
        mask = rng.random((len(values), 1, 4, 5)) < 0.7
        running.update(values, mask)
        for band in range(3):
            pooled[band].append(values[:, band][mask[:, 0]])
    result = running.result(("a", "b", "c"), 0)
    for band in range(3):
        valid = np.concatenate(pooled[band])
        assert result.count[band] == valid.size
        if valid.size > 1:
            expected = [valid.mean(), valid.std(), valid.min(), valid.max()]
            got = [a[band] for a in (result.mean, result.std, result.minimum, result.maximum)]
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_stable_where_sums_of_squares_cancel():
    values = 1e9 + np.random.default_rng(0).normal(size=(20, 1, 8, 8))
    running = RunningStatistics(1)
    for tile in values:
        running.update(tile)
    np.testing.assert_allclose(running.result(("a",), 0).std, values.std(), rtol=1e-6)


def test_bands_without_spread_or_without_values():
    running = RunningStatistics(2)
    running.update(np.full((2, 3, 3), 7.0), np.stack([np.ones((3, 3), bool), np.zeros((3, 3), bool)]))
    result = running.result(("a", "b"), 0)
    assert result.mean.tolist() == [7.0, 0.0] and result.std.tolist() == [1.0, 1.0]
    assert np.isnan(result.minimum[1]) and result.count.tolist() == [9, 0]


def test_invalid_values_and_other_splits_leave_no_trace():
    examples = [make_example("train", index) for index in range(5)]
    statistics = gather()
    valid = np.concatenate([e["s1-asc"][:, 1][e["s1-asc_mask"][:, 1]] for e in examples]).astype(np.float64)
    assert np.isfinite(valid).all()
    np.testing.assert_allclose(statistics["s1-asc"].mean[1], valid.mean(), rtol=1e-12)
    np.testing.assert_allclose(statistics["s1-asc"].std[1], valid.std(), rtol=1e-12)
    pixels = np.concatenate([e["spot"][0].ravel() for e in examples])
    assert (statistics["spot"].count[0], statistics["spot"].minimum[0]) == (pixels.size, pixels.min())


def test_longest_series_counts_all_splits():
    assert gather(1)["s2"].longest_series == 6  # 3 dates in the training tile, 6 in the held-out one
    assert gather()["spot"].longest_series == 0


def test_saved_statistics_read_the_same(tmp_path):
    saved = gather()
    save_statistics(tmp_path, CARD.name, saved)
    loaded = load_statistics(tmp_path, CARD)
    for name, one in saved.items():
        for field in ("mean", "std", "minimum", "maximum", "count"):
            np.testing.assert_array_equal(getattr(loaded[name], field), getattr(one, field))
        assert (loaded[name].bands, loaded[name].longest_series) == (one.bands, one.longest_series)
    assert json.loads((tmp_path / FILE_NAME).read_text())["split"] == "train"


def test_missing_statistics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fake_tiles.*statistics\.json.*prepare the dataset again"):
        load_statistics(tmp_path, CARD)


def spoil(sensors, change):
    if change == "sensor":
        sensors.pop("s2")
    if change == "bands":
        sensors["s2"]["bands"].reverse()
    if change == "length":
        sensors["s2"]["mean"].pop()
    if change == "zero":
        sensors["s2"]["std"][0] = 0.0
    if change == "field":
        del sensors["s2"]["std"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sensor", r"is of sensors .* but dataset 'fake_tiles' has"),
        ("bands", "'s2' has bands .* expected"),
        ("length", "'s2' has bands"),
        ("zero", "no positive numbers"),
        ("field", "not a statistics file"),
    ],
)
def test_statistics_of_something_else_are_refused(tmp_path, change, message):
    save_statistics(tmp_path, CARD.name, gather())
    content = json.loads((tmp_path / FILE_NAME).read_text())
    spoil(content["sensors"], change)
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_statistics(tmp_path, CARD)


@pytest.mark.parametrize("text", ["", "[]", '{"sensors": 3}', '{"sensors": {"s2": {"bands": '])
def test_damaged_statistics_are_refused(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match="not a statistics file"):
        load_statistics(tmp_path, CARD)
