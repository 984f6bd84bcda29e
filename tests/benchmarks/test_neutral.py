"""The neutral protocol: a learnable toy, its control, and intervals."""

import dataclasses
import pathlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from anysat_jax.batch import Observation
from anysat_jax.downstream.task import make_task
from benchmarks import neutral
from tests.downstream import adapt_toys


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of BLAS, which wait for each other longer than such small problems take, are left out."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    adapt_toys.register_toy()
    return adapt_toys.toy_config(tmp_path_factory.mktemp("toy"), job="probe", mode="probe")


@pytest.fixture(scope="module")
def found(config):
    """The control, and features of random weights."""
    return neutral.studies([config])


def test_both_kinds_of_features_are_of_the_same_samples(found):
    plain, frozen = found
    assert [study.title for study in found] == ["statistics of the bands", "features of none"]
    for split, count in adapt_toys.SIZES.items():
        (numbers, labels), (features, same) = plain.samples[split], frozen.samples[split]
        assert numbers.shape == (count, 4 * 10) and features.shape == (count, 32)
        np.testing.assert_array_equal(labels, same)
    assert len(plain.strengths) == 40 and plain.strengths[0] == pytest.approx(1e-6)


def test_brightness_separates_the_classes_of_the_toy(found):
    few = dataclasses.replace(found[0], strengths=(1e-6, 1e2))  # with the first, every sample gets one class
    neighbours, linear, strength = neutral.scores(few)
    assert strength == 1e2 and neighbours.value > 0.8 and linear.value > 0.8
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in (neighbours, linear))
    text = neutral.as_markdown("toy", [few])
    assert text.startswith("**toy**, accuracy in % [95 %] (train 10, val 6, test 7)") and "| 1e+02 |" in text


def test_statistics_are_of_what_is_valid():
    values = np.arange(2 * 3 * 1 * 2 * 2, dtype=np.float32).reshape(2, 3, 1, 2, 2)
    pixels, dates = np.ones((2, 3, 1, 2, 2), bool), np.array([[True, True, False], [True, False, False]])
    pixels[0, 0, 0, 0] = False
    series = Observation(values, date_mask=dates, pixel_mask=pixels, present=np.array([True, False]))
    kept = [2, 3, 4, 5, 6, 7]
    expected = [[np.mean(kept), np.std(kept), 2, 7], [0, 0, 0, 0]]
    np.testing.assert_allclose(neutral.band_statistics(series), expected)
    image = np.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_allclose(neutral.band_statistics(Observation(image))[:, 4:], [[0, 4, 3, 7]])


def test_several_labels_are_ranked_and_a_missing_test_split_is_replaced():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3))
    features = labels @ rng.standard_normal((3, 6)) + 0.1 * rng.standard_normal((60, 6))
    parts = {"train": slice(0, 40), "val": slice(40, 60)}
    task = dataclasses.replace(make_task(adapt_toys.CARD, "tile"), kind="multi_label")
    study = neutral.make_study(
        "labels", task, lambda split: (features[parts[split]], labels[parts[split]]), list(parts)
    )
    assert [len(study.samples[split][1]) for split in ("train", "val", "test")] == [32, 8, 20]
    neighbours, linear, _ = neutral.scores(dataclasses.replace(study, strengths=(1.0,)))
    assert 0.9 < neighbours.value <= 1 and 0.99 < linear.value <= 1
    model = study.make(1.0).fit(features, labels)
    one = LogisticRegression(max_iter=neutral.MAX_ITERATIONS, tol=neutral.TOLERANCE).fit(features, labels[:, 1])
    np.testing.assert_allclose(model.predict(features)[:, 1], one.decision_function(features), atol=1e-6)


def test_maps_and_unknown_names_are_refused(config, capsys):
    dense = adapt_toys.toy_config(pathlib.Path(config.data.root), level="dense")
    with pytest.raises(neutral.ConfigError, match="these labels are of level 'dense'"):
        neutral.studies([dense])
    assert neutral.main(["no_such_name"]) == 1
    assert "neutral.py: configs/probe.py has no 'no_such_name,random'" in capsys.readouterr().err
