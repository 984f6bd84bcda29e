"""The linear baselines: their samples are those of the datasets, and their figures on real data are the known ones."""

import numpy as np
import pytest

from benchmarks import baselines
from data_pipelines.fakes import write_fake

CLASSES, NUMBERS, MAP = "fuel_moisture_land_cover", "fuel_moisture", "sen1floods11_chip"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    for name in (CLASSES, NUMBERS, MAP):
        write_fake(name, folder / name, tiles=20)
    return folder


@pytest.mark.parametrize(("name", "best"), [(CLASSES, "C"), (NUMBERS, "alpha")])
def test_bands_tell_what_the_made_up_archives_hide_in_them(made, name, best):
    study = baselines.study_of(name, made / name)
    assert {split: features.shape for split, (features, _) in study.samples.items()} == dict.fromkeys(
        study.samples, (20, 36)
    )
    table = baselines.rows(study)
    assert [count for _, count, _ in table] == [40, 40, 20, 40] and f"{best} = " in table[2][0]
    first = [next(iter(scores.values())) for _, _, scores in table]
    assert first[0] < 0.2 and min(first[1:]) > 0.35
    text = baselines.as_markdown(study, table)
    assert "(train 20, val 20, test 20)" in text and text.count("\n| ") == 6


def test_pixels_without_a_label_or_a_sensor_are_no_samples(made):
    study = baselines.study_of(MAP, made / MAP)
    features, labels = study.together("train", "val", "test")
    seen = 3 * 512 - 128  # columns of three chips; the radar lacks some of the first
    labelled = 512 - 64  # rows of each
    assert features.shape == (seen * labelled, 12) and np.isfinite(features).all() and set(np.unique(labels)) == {0, 1}
    part = study.only(slice(10, 12), "radar")
    np.testing.assert_array_equal(part.samples["test"][0], study.samples["test"][0][:, 10:])


def test_the_known_figures_of_the_real_pixels(real_data):
    study = baselines.study_of(CLASSES, real_data / "presto_eval")
    both = study.together("train", "val")
    blind, plain = (study.scores(model, both) for model in (study.blind, study.make(1.0)))
    assert round(blind["accuracy"], 3) == 0.404
    assert (round(plain["accuracy"], 3), round(plain["macro-F1"], 3)) == (0.659, 0.326)
    study = baselines.study_of(NUMBERS, real_data / "presto_eval")
    both = study.together("train", "val")
    assert [round(study.scores(baselines.ridge(alpha), both)["R2"], 2) for alpha in (1.0, 10.0)] == [0.20, 0.22]


def test_the_known_figures_of_the_real_chip(real_data):
    study = baselines.study_of(MAP, real_data / "sen1floods11")
    both = study.together("train", "val")
    assert round(study.scores(study.blind, both)["accuracy"], 3) == 0.637
    few = tuple(array[::50] for array in both)
    assert study.scores(study.make(1.0), few)["accuracy"] == pytest.approx(0.922, abs=2e-3)
