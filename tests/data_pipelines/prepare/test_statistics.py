"""Moments of bands in one pass against numpy, and statistics files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.prepare.statistics import (
    STATISTICS_FILE,
    RunningMoments,
    ShardStats,
    load_statistics,
    merge,
    save_statistics,
    sensor_statistics,
)
from tests.data_pipelines.fake_reader import CARD, make_example

DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
FIELDS = ("mean", "std", "minimum", "maximum", "count")


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
def test_pooled_moments_equal_numpy(seed, tiles, dtype, offset, masked):
    rng = np.random.default_rng(seed)
    moments, pooled = RunningMoments.empty(3), [[], [], []]
    for _ in range(tiles):
        values = draw(rng, dtype, offset)
        mask = rng.random((len(values), 1, 4, 5)) < 0.7 if masked else np.ones((len(values), 1, 4, 5), np.bool_)
        moments.update(values, mask if masked else None)
        for band in range(3):
            pooled[band].append(values[:, band][mask[:, 0]])
    for band in range(3):
        valid = np.concatenate(pooled[band]).astype(np.float64)
        assert moments.count[band] == valid.size
        if valid.size:
            expected = [valid.mean(), valid.std(), valid.min(), valid.max()]
            got = [a[band] for a in (moments.mean, moments.std, moments.minimum, moments.maximum)]
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_stable_where_sums_of_squares_cancel():
    values = 1e9 + np.random.default_rng(0).normal(size=(20, 1, 8, 8))
    moments = RunningMoments.empty(1)
    for tile in values:
        moments.update(tile)
    np.testing.assert_allclose(moments.std, values.std(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_bands_without_spread_or_without_values(dtype):
    moments = RunningMoments.empty(2)
    values = np.full((2, 3, 3), 7, dtype)
    values[1] = 9
    moments.update(values, np.stack([np.ones((3, 3), bool), np.zeros((3, 3), bool)]))
    assert moments.mean.tolist() == [7.0, 0.0] and moments.std.tolist() == [0.0, 0.0]
    assert moments.count.tolist() == [9, 0] and np.isnan(moments.minimum[1])


def test_invalid_values_do_not_count_even_if_they_are_not_numbers():
    moments = RunningMoments.empty(1)
    moments.update(np.array([[[1.0, np.nan, np.inf]]], np.float32), np.array([[[True, False, False]]]))
    assert moments.mean.tolist() == [1.0] and moments.count.tolist() == [1]


def test_merging_with_nothing_changes_no_bit():
    some = RunningMoments.of([np.array([0.1, 0.2, 0.7])])
    merged = RunningMoments.empty(1)
    for part in (RunningMoments.empty(1), some, RunningMoments.empty(1)):
        merged.merge(part)
    for field in ("count", "mean", "deviation", "minimum", "maximum"):
        assert getattr(merged, field) == getattr(some, field)


def test_means_of_integers_are_exact_for_any_order():
    tiles = np.random.default_rng(0).integers(0, 65536, (50, 1, 8, 8), dtype=np.uint16)
    forth, back = RunningMoments.empty(1), RunningMoments.empty(1)
    for tile, other in zip(tiles, tiles[::-1]):
        forth.update(tile)
        back.update(other)
    assert forth.mean == back.mean == tiles.astype(np.int64).sum() / tiles.size
    np.testing.assert_allclose(forth.deviation, back.deviation, rtol=1e-12)


def gather(train, val=()):
    """Statistics of shards of training tiles, each given by its tiles' indices, and of held-out tiles."""
    splits = {}
    for split, indices in [*(("train", one) for one in train), ("val", val)]:
        shard = ShardStats.empty(CARD)
        for index in indices:
            shard.update(make_example(split, index), 0)
        splits[split] = merge(splits[split], shard) if split in splits else shard
    return sensor_statistics(splits)


def test_merged_shards_equal_one_pass():
    whole, merged = gather([range(5)], [3]), gather([(0, 1), (2, 3), (4,)], [3])
    for name, one in merged.items():
        for field in FIELDS:
            np.testing.assert_allclose(getattr(one, field), getattr(whole[name], field), rtol=1e-12)
        assert one.longest_series == whole[name].longest_series


def test_json_keeps_every_bit():
    shard = ShardStats.empty(CARD)
    shard.update(make_example("train", 0), 0)
    restored = ShardStats.from_json(shard.to_json())
    for one in (shard, restored):
        one.update(make_example("train", 1), 0)
    for name, moments in restored.moments.items():
        for field in ("count", "total", "mean", "deviation", "minimum", "maximum"):
            np.testing.assert_array_equal(getattr(moments, field), getattr(shard.moments[name], field))


def test_invalid_values_and_other_splits_leave_no_trace():
    examples = [make_example("train", index) for index in range(5)]
    statistics = gather([range(5)], [3])
    valid = np.concatenate([e["s1-asc"][:, 1][e["s1-asc_mask"][:, 1]] for e in examples]).astype(np.float64)
    assert np.isfinite(valid).all()
    np.testing.assert_allclose(statistics["s1-asc"].mean[1], valid.mean(), rtol=1e-12)
    np.testing.assert_allclose(statistics["s1-asc"].std[1], valid.std(), rtol=1e-12)
    pixels = np.concatenate([e["spot"][0].ravel() for e in examples])
    assert (statistics["spot"].count[0], statistics["spot"].minimum[0]) == (pixels.size, pixels.min())


def test_longest_series_counts_all_splits():
    statistics = gather([[0]], [3])
    assert statistics["s2"].longest_series == 6  # 3 dates in the training tile, 6 in the held-out one
    assert statistics["spot"].longest_series == 0


def test_saved_statistics_read_the_same(tmp_path):
    saved = gather([range(2)])
    save_statistics(tmp_path, CARD.name, saved)
    loaded = load_statistics(tmp_path, CARD)
    for name, one in saved.items():
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(loaded[name], field), getattr(one, field))
        assert (loaded[name].bands, loaded[name].longest_series) == (one.bands, one.longest_series)
    assert json.loads((tmp_path / STATISTICS_FILE).read_text())["split"] == "train"


def test_statistics_of_earlier_releases_with_percentiles_are_read(tmp_path):
    save_statistics(tmp_path, CARD.name, gather([range(2)]))
    content = json.loads((tmp_path / STATISTICS_FILE).read_text())
    for one in content["sensors"].values():
        one["percentile_1"] = one["percentile_99"] = [None] * len(one["mean"])
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(content))
    assert load_statistics(tmp_path, CARD)["s2"].mean.tolist() == gather([range(2)])["s2"].mean.tolist()


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
        del sensors["s2"]["max"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sensor", r"is of sensors .* but dataset 'fake_tiles' has"),
        ("bands", "'s2' has bands .* expected"),
        ("length", "'s2' has bands"),
        ("zero", "not positive numbers"),
        ("field", "not a statistics file"),
    ],
)
def test_statistics_of_something_else_are_refused(tmp_path, change, message):
    save_statistics(tmp_path, CARD.name, gather([range(2)]))
    content = json.loads((tmp_path / STATISTICS_FILE).read_text())
    spoil(content["sensors"], change)
    (tmp_path / STATISTICS_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_statistics(tmp_path, CARD)


@pytest.mark.parametrize("text", ["", "[]", '{"sensors": 3}', '{"sensors": {"s2": {"bands": '])
def test_damaged_statistics_are_refused(tmp_path, text):
    (tmp_path / STATISTICS_FILE).write_text(text)
    with pytest.raises(ValueError, match="not a statistics file"):
        load_statistics(tmp_path, CARD)
