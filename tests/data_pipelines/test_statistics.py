"""Statistics against numpy, and what is refused when they are read."""

import json

import numpy as np
import pytest

from data_pipelines.prepare.statistics import FILE_NAME, DatasetStatistics, load_statistics, save_statistics
from tests.data_pipelines.fake_reader import CARD, make_example

FIELDS = ("mean", "std", "minimum", "maximum", "count", "percentile_1", "percentile_99")


def gather(num_tiles=5):
    gatherer = DatasetStatistics(CARD)
    for index in range(num_tiles):
        gatherer.update("train", make_example("train", index))
    gatherer.update("val", make_example("val", 3))
    return gatherer.result()


def test_merged_parts_equal_one_pass():
    whole, parts = gather(), [DatasetStatistics(CARD) for _ in range(3)]
    for index in range(5):
        parts[index // 2].update("train", make_example("train", index))
    parts[2].update("val", make_example("val", 3))
    for part in parts[1:]:
        parts[0].merge(part)
    for name, one in parts[0].result().items():
        for field in FIELDS:
            np.testing.assert_allclose(getattr(one, field), getattr(whole[name], field), rtol=1e-12)
        assert one.longest_series == whole[name].longest_series


def test_a_restored_part_keeps_every_bit():
    gatherer = DatasetStatistics(CARD)
    gatherer.update("train", make_example("train", 0))
    restored = DatasetStatistics.restore(CARD, gatherer.state())
    for part in (gatherer, restored):
        part.update("train", make_example("train", 1))
    for name, one in restored.result().items():
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(one, field), getattr(gatherer.result()[name], field))


def test_percentiles_are_of_valid_training_pixels():
    examples = [make_example("train", index) for index in range(5)]
    statistics = gather()
    s2 = np.concatenate([e["s2"][:, 4][e["s2_mask"][:, 0]] for e in examples])
    expected = np.percentile(s2, [1, 99])
    got = [statistics["s2"].percentile_1[4], statistics["s2"].percentile_99[4]]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    radar = np.concatenate([e["s1-asc"][:, 0].ravel() for e in examples])
    assert statistics["s1-asc"].percentile_99[0] == pytest.approx(np.percentile(radar, 99), rel=1 / 256)


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
        for field in FIELDS:
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
        del sensors["s2"]["percentile_1"]
    if change == "percentile":
        sensors["s2"]["percentile_99"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sensor", r"is of sensors .* but dataset 'fake_tiles' has"),
        ("bands", "'s2' has bands .* expected"),
        ("length", "'s2' has bands"),
        ("percentile", "'s2' has bands"),
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
