"""Maps: samples of an evaluation, features and land cover of a pretraining."""

import dataclasses

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.report.maps import (
    class_colours,
    draw_mosaic,
    draw_samples,
    mosaic_columns,
    principal_colours,
    read_samples,
    stretch,
    value_range,
)
from anysat_jax.report.runs import BrokenRun, TaskInfo
from data_pipelines.plots.colours import paint
from tests.report.fake_runs import BIOMASS, CROPS, TREES, has_colour, panel_arrays, run_of, summary, toy_mosaic


@pytest.fixture(scope="module")
def mosaic():
    return toy_mosaic()


def test_the_columns_of_a_mosaic(mosaic):
    columns = mosaic_columns(mosaic)
    assert list(columns) == [
        "Natural colour\naerial",
        "Features, random start\naerial, 2 m, PCA",
        "Features, pretrained\naerial, 2 m, PCA",
        "Land cover, probe of\nrandom start",
        "Land cover, probe of\npretrained",
        "Land cover,\nlabel",
    ]
    assert all(len(images) == 2 for images in columns.values())


def test_a_mosaic_is_drawn_with_the_classes_that_occur(tmp_path, mosaic):
    draw_mosaic(tmp_path / "m.png", "run", mosaic)
    assert [has_colour(tmp_path / "m.png", colour) for colour in mosaic.card.dense_colours] == [True, True, False]


def test_stretch_shares_its_limits_between_images():
    dark, bright = np.zeros((10, 10, 3)), np.ones((10, 10, 3))
    stretched = stretch([dark, bright])
    assert stretched[0].max() == 0.0 and stretched[1].min() == 1.0
    assert np.isfinite(stretch([dark])[0]).all()


def test_principal_colours_separate_what_features_separate():
    rng = np.random.default_rng(0)
    kinds = np.stack([rng.permutation(np.arange(36) % 3).reshape(6, 6) for _ in range(2)])
    features = rng.standard_normal((3, 16))[kinds] + 0.01 * rng.standard_normal((2, 6, 6, 16))
    colours = np.stack(principal_colours(list(features)))
    assert colours.shape == (2, 6, 6, 3) and 0 <= colours.min() <= colours.max() <= 1
    means = np.stack([colours[kinds == kind].mean(axis=0) for kind in range(3)])
    within = max(np.abs(colours[kinds == kind][:, :2] - means[kind, :2]).max() for kind in range(3))
    between = min(np.abs(means[a, :2] - means[b, :2]).max() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 5 * within


def test_the_samples_of_a_run(tmp_path):
    samples = read_samples(run_of(tmp_path, summary(CROPS)))
    assert list(samples.inputs) == ["s2", "s1"] and samples.ids == ["tile_0", "tile_1"] and samples.extent == 160
    assert samples.truth.shape == samples.prediction.shape == (2, 16, 16)


def test_no_file_and_no_tiles_are_no_samples(tmp_path):
    run = run_of(tmp_path, summary(CROPS), panels=False)
    assert read_samples(run) is None
    np.savez(run.folder / "panels.npz", **panel_arrays(CROPS, tiles=0))
    assert read_samples(run) is None


def test_void_is_white_and_classes_have_their_official_colours():
    painted = 255 * paint(CROPS.colours, np.array([[-1, 0], [2, 255]]))
    np.testing.assert_allclose(painted, [[[255] * 3, [0xA0, 0xDB, 0x8E]], [[0xE0, 0x52, 0x2F], [255] * 3]])


def test_classes_without_official_colours_get_some():
    colours = class_colours(
        TaskInfo("x", "dense", "class", "mean_iou", "X", ("a", "b", "c"), ("red", "nonsense", "#12"))
    )
    assert len(set(colours)) == 3


@pytest.mark.parametrize(("task", "colour"), [(CROPS, "#c7b12b"), (BIOMASS, "#fde725")], ids=["classes", "numbers"])
def test_maps_are_drawn(tmp_path, task, colour):
    run = run_of(tmp_path, summary(task))
    draw_samples(tmp_path / "p.png", "Title", run.task, read_samples(run))
    assert has_colour(tmp_path / "p.png", colour)


def test_answers_of_tiles_are_written(tmp_path):
    run = run_of(tmp_path, summary(TREES))
    samples = read_samples(run)
    wordless = dataclasses.replace(samples, prediction=np.array(["", ""]))
    for name, one in (("words", samples), ("none", wordless)):
        draw_samples(tmp_path / f"{name}.png", "Title", run.task, one)
    words, none = (image.imread(tmp_path / f"{name}.png") for name in ("words", "none"))
    assert (words < none).any() and not (words > none).any()  # dark on white


def test_the_colour_bar_leaves_out_what_is_unknown(tmp_path):
    samples = read_samples(run_of(tmp_path, summary(BIOMASS)))
    low, high = value_range(samples)
    assert 0 <= low < 10 and 190 < high <= 200
    empty = np.full((2, 4, 4), np.nan, np.float32)
    assert value_range(dataclasses.replace(samples, truth=empty, prediction=empty)) == (0, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"truth": None},
        {"sensors": None},
        {"sensors": np.array(["s2", "s1", "l8"])},
        {"truth": np.zeros((2, 16, 16), np.float32)},
        {"prediction": np.zeros((2, 16), np.int32)},
        {"input_0": np.zeros((2, 16, 16, 3))},
        {"input_1": np.zeros((1, 16, 16, 3), np.uint8)},
        {"ids": np.array([{"code": "to run"}], object)},
        {"ids": np.array("one")},
    ],
)
def test_a_wrong_array_is_a_sentence(tmp_path, changes):
    run = run_of(tmp_path, summary(CROPS))
    arrays = {name: array for name, array in (panel_arrays(CROPS) | changes).items() if array is not None}
    np.savez(run.folder / "panels.npz", **arrays)
    with pytest.raises(BrokenRun, match=r"^run/panels\.npz cannot be shown: .*\.$"):
        read_samples(run)


def test_flipped_bits_are_a_sentence_or_do_not_matter(tmp_path):
    run = run_of(tmp_path, summary(CROPS))
    path, rng = run.folder / "panels.npz", np.random.default_rng(0)
    whole = path.read_bytes()
    broken = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            read_samples(run)
        except BrokenRun:
            broken += 1
    assert broken
