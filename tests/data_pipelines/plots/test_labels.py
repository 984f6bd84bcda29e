"""Labels on pictures: colours, legends, numbers, words."""

import dataclasses
import pathlib

import numpy as np
import pytest

from data_pipelines.plots.tile import draw_tile, legend_entries, paint, tile_label
from tests.data_pipelines.fake_reader import CARD, CELLS, FakeReader
from tests.data_pipelines.plots.figures import caught, collisions, legend_texts, texts

COLOURS = ("#ff0000", "#00ff00", "#0000ff", *("#123456",) * 5)
COLOURED = dataclasses.replace(CARD, dense_colours=COLOURS)
HEIGHT = dataclasses.replace(
    CARD, dense_label="regression", dense_classes=(), dense_colours=(), label_unit="metres", arrays={"dense": "float32"}
)


def test_classes_have_their_official_colours_and_no_label_is_white():
    image = paint(COLOURED, np.array([[0, 1], [2, -1]], np.int8))
    assert image.tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]]


def test_a_class_number_may_stand_for_no_label():
    card = dataclasses.replace(COLOURED, ignore_label=1)
    assert paint(card, np.array([[1]], np.int8)).tolist() == [[[1, 1, 1]]]
    assert legend_entries(card, np.array([[0, 1]], np.int8)) == [("a, 50%", "#ff0000"), ("no label, 50%", "#ffffff")]


def test_the_legend_has_the_classes_that_are_there_in_the_order_of_the_card():
    classes = np.full((20, 20), 2, np.int8)
    classes[0, 0] = 0
    assert legend_entries(COLOURED, classes) == [("a, < 1%", "#ff0000"), ("c, > 99%", "#0000ff")]


@pytest.mark.parametrize(
    ("changes", "value", "words"),
    [
        (dict(tile_label="class", tile_classes=("oak", "ash")), np.int32(1), "ash"),
        (dict(tile_label="multi_label", tile_classes=("oak", "ash")), np.array([1, 1], np.uint8), "oak, ash"),
        (dict(tile_label="multi_label", tile_classes=("a, b", "c")), np.array([1, 1], np.uint8), '"a, b", c'),
        (dict(tile_label="multi_label", tile_classes=("oak", "ash")), np.zeros(2, np.uint8), "none of the classes"),
        (dict(tile_label="regression", label_unit="t/ha"), np.float32(12.3456), "12.35 t/ha"),
        (dict(tile_label="none"), None, ""),
    ],
)
def test_the_label_of_the_tile_in_words(changes, value, words):
    assert tile_label(dataclasses.replace(CARD, **changes), {"tile": value}) == words


def draw(monkeypatch, card, **changes):
    example = FakeReader().example("train", "train0") | changes
    with caught(monkeypatch) as figures:
        draw_tile(pathlib.Path("x.png"), card, "train", "train0", example)
    return figures[0]


def test_a_regression_has_a_colour_bar_with_its_unit_and_hatches_what_has_no_label(monkeypatch):
    dense = np.linspace(5, 30, CELLS * CELLS, dtype=np.float32).reshape(CELLS, CELLS)
    dense[0, 0] = np.nan
    figure = draw(monkeypatch, HEIGHT, dense=dense)
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["metres"]
    assert "10 m, map of numbers" in texts(figure)
    assert collisions(figure) == ([], [])


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_a_regression_without_contrast_is_drawn(monkeypatch, value):
    draw(monkeypatch, HEIGHT, dense=np.full((CELLS, CELLS), value, np.float32))


def test_many_classes_fit_beside_the_map(monkeypatch):
    names = tuple(f"a class with a name, {number}" for number in range(20))
    card = dataclasses.replace(CARD, dense_classes=names, dense_colours=("#336699",) * 20)
    figure = draw(monkeypatch, card, dense=(np.arange(16).reshape(4, 4) + 4).astype(np.int8))
    shown = [text for text in legend_texts(figure) if text.startswith("a class with")]
    assert len(shown) == 16 and collisions(figure) == ([], [])
