"""Which tiles are drawn, where they come from, and the page that shows them."""

import dataclasses
import html.parser

import numpy as np
import pytest

from data_pipelines.plots import gallery
from data_pipelines.plots.gallery import as_read, draw_gallery, file_name, prepared_tiles, raw_tiles, spread
from data_pipelines.prepare.prepare import prepare_dataset
from tests.data_pipelines.fake_reader import CARD, FakeReader


@pytest.fixture
def drawn(monkeypatch):
    """Pictures are noted, not drawn."""
    calls = []

    def note(path, card, split, key, example):
        calls.append((path.name, split, key))
        path.write_bytes(b"")

    monkeypatch.setattr(gallery, "draw_tile", note)
    return calls


def test_tiles_are_spread_over_the_split():
    assert spread(100, 4).tolist() == [0, 25, 50, 75]
    assert spread(3, 8).tolist() == [0, 1, 2]
    assert spread(8, 8).tolist() == list(range(8))


def test_the_page_shows_every_picture(tmp_path, drawn):
    page = draw_gallery(raw_tiles(FakeReader(), "train"), 3, tmp_path / "new" / "pictures")
    assert [key for _, _, key in drawn] == ["train0", "train2", "train4"]
    shown = [dict(attributes) for tag, attributes in tags_of(page) if tag == "img"]
    assert [one["src"] for one in shown] == [name for name, _, _ in drawn]
    assert all((page.parent / one["src"]).is_file() and one["alt"] for one in shown)


def test_the_page_is_static_and_stands_alone(tmp_path, drawn):
    page = draw_gallery(raw_tiles(FakeReader(), "val"), 2, tmp_path)
    text = page.read_text(encoding="utf-8")
    tags = [tag for tag, _ in tags_of(page)]
    assert "script" not in tags and "link" not in tags and "http" not in text
    assert "2 of the 3 tiles of split val" in text and "s2: uint16" in text


def test_names_cannot_break_out_of_the_page(tmp_path, drawn):
    def name(split, index, example):
        example["id"] = '<script>"../../etc'

    page = draw_gallery(raw_tiles(FakeReader(edit=name), "train"), 1, tmp_path)
    assert "<script>" not in page.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == [drawn[0][0]]


def test_file_names_are_harmless_and_unique():
    assert file_name("train", 7, "a/b c:d") == "train_000007_a_b_c_d.png"
    assert file_name("train", 7, "../x") == "train_000007_.._x.png"
    assert len(file_name("train", 7, "x" * 500)) < 110
    assert file_name("train", 1, "a b") != file_name("train", 2, "a_b")


def test_a_split_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="fake_tiles has no tiles of split 'test'; there are train, val"):
        raw_tiles(FakeReader(), "test")


def test_a_tile_that_breaks_its_card_is_not_drawn():
    def spoil(split, index, example):
        example["dense"][0, 0] = 77

    with pytest.raises(ValueError, match="tile 'train0': 'dense' holds"):
        raw_tiles(FakeReader(edit=spoil), "train").read(0)


class WithGaps(FakeReader):
    """Every second tile lacks Sentinel-2."""

    card = dataclasses.replace(CARD, optional=("s2",))

    def example(self, split, key):
        example = super().example(split, key)
        if int(key.removeprefix(split)) % 2:
            return {name: value for name, value in example.items() if not name.startswith("s2")}
        return example


def test_prepared_tiles_are_the_tiles_that_were_prepared(tmp_path):
    """Also of a dataset that this process does not know: its card is beside the data."""
    reader = WithGaps({"train": 2})
    folder = prepare_dataset(reader, tmp_path, "1.0.0")
    tiles = prepared_tiles(reader.card.name, str(tmp_path), "train")
    assert tiles.count == 2 and str(folder) in tiles.origin and tiles.card == reader.card
    for position in range(2):
        example, expected = tiles.read(position), reader.example("train", f"train{position}")
        assert set(example) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(example[key], value)


def test_texts_are_texts_whatever_they_are_stored_as():
    assert as_read(CARD, {"id": b"t\xc3\xbcr"}) == {"id": "tür"}
    assert as_read(CARD, {"id": "tür"}) == {"id": "tür"}


def test_a_folder_without_the_dataset_says_what_prepares_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="mini_flair is not prepared in .*; .*prepare. does that"):
        prepared_tiles("mini_flair", str(tmp_path), "train")


def tags_of(page):
    found = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, attrs))

    Parser().feed(page.read_text(encoding="utf-8"))
    return found
