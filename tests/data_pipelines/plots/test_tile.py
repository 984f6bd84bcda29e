"""The sheet of a tile: what is on it, and that nothing lies over anything else."""

import dataclasses
import pathlib

import numpy as np
import pytest

from data_pipelines.card import DatasetCard
from data_pipelines.mini.datasets import MINI_CARDS, MiniReader
from data_pipelines.plots.colours import view_of
from data_pipelines.plots.gallery import draw_tile, place
from data_pipelines.plots.tile import (
    CLEAR_COLOUR,
    CLOUDY_COLOUR,
    NARROWEST,
    PARTLY_COLOUR,
    THUMBNAILS,
    UNKNOWN_COLOUR,
    bar_metres,
    cloud_colour,
    draw_strips,
    in_rows,
    shown_dates,
)
from tests.data_pipelines.fake_reader import CARD, FakeReader
from tests.data_pipelines.plots.figures import caught, collisions, legend_texts, texts

PIXEL = DatasetCard(
    name="pixels",
    title="Pixels",
    sensors=("s2",),
    extent=10.0,
    patch_sizes=(10,),
    splits=("train",),
    arrays={"s2": "int16"},
    clouds=("s2",),
    tile_label="class",
    tile_classes=("maize",),
)


def draw(monkeypatch, card, example, key="a tile"):
    with caught(monkeypatch) as figures:
        draw_tile(pathlib.Path("x.png"), card, "train", key, example)
    return figures[0]


def test_the_picture_is_a_file(tmp_path):
    path = tmp_path / "tile.png"
    draw_tile(path, CARD, "train", "train0", FakeReader().example("train", "train0"))
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


@pytest.mark.parametrize("name", MINI_CARDS)
def test_nothing_lies_over_anything_else(monkeypatch, name):
    reader = MiniReader(name)
    figure = draw(monkeypatch, reader.card, reader.example("train", "train_00003"))
    assert collisions(figure) == ([], [])
    shown = texts(figure)
    assert f"{reader.card.title}: a tile" in shown
    assert all(sensor in shown for sensor in reader.card.sensors)


def test_long_names_and_long_lists_stay_on_the_paper(monkeypatch):
    card = dataclasses.replace(
        CARD, tile_label="multi_label", tile_classes=tuple(f"class number {i}" for i in range(60))
    )
    example = FakeReader().example("train", "train0") | {"tile": np.ones(60, np.uint8)}
    figure = draw(monkeypatch, card, example, key="x" * 300)
    assert collisions(figure) == ([], [])
    assert any(text.endswith("xxx...") for text in texts(figure))


def test_names_are_no_formulas(monkeypatch):
    figure = draw(monkeypatch, CARD, FakeReader().example("train", "train0"), key="$x_{$")
    figure.draw_without_rendering()
    assert "Fake tiles: $x_{$" in texts(figure)


def test_a_missing_sensor_says_so(monkeypatch):
    card = dataclasses.replace(CARD, optional=("s2", "spot", "modis"))
    example = FakeReader().example("train", "train0")
    lacking = {key: value for key, value in example.items() if key.split("_")[0] not in ("s2", "spot", "modis")}
    shown = texts(draw(monkeypatch, card, lacking))
    assert "no s2\nin this tile" in shown and "no spot\nin this tile" in shown
    assert any("not in this tile: modis" in text for text in shown)


def pixel_example(cloud):
    days = np.arange(0, 300, 60, dtype=np.int32)
    values = np.arange(50, dtype=np.int16).reshape(5, 10, 1, 1)
    dates = {"s2_dates": days, "s2_years": np.full(5, 2021, np.int16)}
    return {"id": "a", "s2": values, **dates, "s2_cloud": np.full((5, 1, 1, 1), cloud, np.uint8), "tile": np.int32(0)}


def test_single_pixels_are_lines_of_bands(monkeypatch):
    figure = draw(monkeypatch, PIXEL, pixel_example(cloud=0))
    curves, timeline = figure.axes
    lines = {line.get_label(): line for line in curves.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"}
    assert lines["B3"].get_ydata().tolist() == [1, 11, 21, 31, 41]
    assert curves.get_xlim() == timeline.get_xlim() and collisions(figure) == ([], [])


def test_bands_that_are_never_valid_are_not_in_the_legend(monkeypatch):
    card = dataclasses.replace(PIXEL, masks={"s2": "band"})
    valid = np.ones((5, 10, 1, 1), np.bool_)
    valid[:, 6] = False
    curves, _ = draw(monkeypatch, card, pixel_example(cloud=0) | {"s2_mask": valid}).axes
    named = [text.get_text() for text in curves.get_legend().get_texts()]
    assert len(named) == 9 and "B8" not in named and "B8A" in named


def test_no_picture_shows_more_of_a_date_than_is_known(monkeypatch):
    """Monthly images are stored with a day, and images without a date with one, as models need numbers."""
    example = FakeReader().example("train", "train0")
    example["s2_dates"][:], example["s2_years"][:] = (14, 45, 73), 2021
    monthly = dataclasses.replace(CARD, date_precision={"s2": "month"})
    shown = texts(draw(monkeypatch, monthly, example))
    assert {"2021-01", "2021-02", "2021-03"} <= set(shown) and not any("2021-01-15" in text for text in shown)
    undated = dataclasses.replace(CARD, date_precision=dict.fromkeys(("s2", "s1-asc", "modis"), "none"))
    figure = draw(monkeypatch, undated, example)
    assert any("10 m, date not known" in text for text in texts(figure))
    assert "dates" not in texts(figure) and not any("20" in text for text in texts(figure))


def test_clouds_are_hollow_and_off_the_line(monkeypatch):
    curves, _ = draw(monkeypatch, PIXEL, pixel_example(cloud=90)).axes
    assert curves.get_legend().get_title().get_text() == "hollow: cloud"
    filled = [line for line in curves.lines if line.get_label() == "B3"]
    assert len(filled[0].get_ydata()) == 0


def test_dates_and_clouds_are_written_below_their_thumbnails(monkeypatch):
    card = dataclasses.replace(CARD, clouds=("s2",))
    example = FakeReader().example("train", "train0")
    example["s2_dates"][:], example["s2_years"][:] = (0, 31, 59), 2021
    example["s2_mask"][:], example["s2_mask"][2] = True, False
    cloud = np.zeros((3, 1, 4, 4), np.uint8)
    cloud[1] = 83
    figure = draw(monkeypatch, card, example | {"s2_cloud": cloud})
    shown = texts(figure)
    assert {"2021-01-01", "2021-02-01", "2021-03-01", "cloud 83 %", "not valid 100 %"} <= set(shown)
    assert "cloud < 10 %" in legend_texts(figure)


def test_at_most_twelve_dates_evenly_with_both_ends():
    assert shown_dates(3).tolist() == [0, 1, 2]
    many = shown_dates(146)
    assert len(many) == THUMBNAILS and many[0] == 0 and many[-1] == 145 and set(np.diff(many)) <= {13, 14}


def test_short_strips_share_a_row():
    reader = MiniReader("mini_planted")
    example = reader.example("train", "train_00003")
    views = {s: view_of(reader.card, s, example) for s in ("s2", "s1", "l7", "alos")}
    lengths = {s: len(view.days) for s, view in views.items()}
    rows = in_rows(list(views.values()))
    assert [view.sensor.name for row in rows for _, view in row] == ["s2", "s1", "l7", "alos"]
    for row in rows:
        ends = [first + max(NARROWEST, min(lengths[v.sensor.name], THUMBNAILS)) for first, v in row]
        assert ends[-1] <= THUMBNAILS
        assert all(first > end for (first, _), end in zip(row[1:], ends[:-1], strict=True))


def test_colours_tell_how_cloudy_a_date_is():
    colours = [cloud_colour(percent) for percent in (None, 0, 9.9, 10, 49, 50, 100)]
    assert colours == [
        UNKNOWN_COLOUR, CLEAR_COLOUR, CLEAR_COLOUR, PARTLY_COLOUR, PARTLY_COLOUR, CLOUDY_COLOUR, CLOUDY_COLOUR,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("extent", "metres"), [(10, 2), (40, 10), (60, 10), (100, 20), (1280, 200), (5120, 1000), (15360, 2000), (2, 0.5)]
)
def test_scale_bars_are_round_and_at_most_a_third(extent, metres):
    assert bar_metres(extent) == pytest.approx(metres)


def test_the_place_is_the_centre_of_the_tile():
    card = dataclasses.replace(CARD, georeferenced="spot")
    utm = {"crs": "EPSG:25832", "transform": np.array([1, 0, 500000, 0, -1, 5700000.0])}
    assert place(card, utm) == "EPSG:25832, centre at x 500,022, y 5,699,978"
    degrees = {"crs": "EPSG:4326", "transform": np.array([0.001, 0, -1, 0, -0.001, -2.0])}
    assert place(card, degrees) == "2.02200° S, 0.97800° W"
    assert place(card, {"crs": "", "transform": np.full(6, np.nan)}) == ""
    assert place(CARD, {}) == ""


def test_strips_say_how_many_of_the_dates_they_show():
    written = []

    class Paper:
        def text(self, left, top, text, **style):
            written.append(text)

        def axes(self, *place):
            from matplotlib.figure import Figure

            return Figure().add_subplot()

    reader = MiniReader("mini_pastis_hd")
    view = view_of(reader.card, "s2", reader.example("train", "train_00001"))
    draw_strips(Paper(), 0.0, [(0, view)])
    total = len(view.days)
    assert f"{f'12 of {total}' if total > 12 else total} dates, stretched alike" in written
