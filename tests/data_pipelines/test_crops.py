"""Windows and turns: all arrays of a tile stay on the same ground."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.datasets.treesatai_ts import CARD as TREESAT
from data_pipelines.windows import (
    Block,
    Dihedral,
    Window,
    alignment,
    check_extent,
    sample_window,
    whole_tile,
    window_offsets,
    without_margin,
)
from tests.data_pipelines.coordinate_tiles import CARD, EXTENT, class_at, coarse, make_tile


def show(window, card, key, array):
    """What a sample of the window shows of an array that is stored as one."""
    return window.dihedral.copied(window.cut(card, key, [whole_tile(card, {key: array})]))


TURNS = [Dihedral(mirrored, quarters) for mirrored in (False, True) for quarters in range(4)]
TILE = make_tile()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), extent=st.sampled_from([30.0, 60.0, 120.0]))
def test_all_arrays_show_the_same_ground(seed, extent):
    window = sample_window(CARD, extent, True, np.random.default_rng(seed))
    cells = round(extent / 30)
    ground = coarse(show(window, CARD, "aerial", TILE["aerial"])[:2], cells)
    for name in ("spot", "s2", "alos"):
        shown = show(window, CARD, name, TILE[name])
        np.testing.assert_allclose(coarse(shown[..., :2, :, :].reshape(-1, *shown.shape[-2:])[:2], cells), ground)
    classes = class_at(show(window, CARD, "s2", TILE["s2"])[0, :2])
    np.testing.assert_array_equal(show(window, CARD, "dense", TILE["dense"]), classes)
    assert window.cut(CARD, "modis", [whole_tile(CARD, TILE)]) is TILE["modis"]


def test_the_eight_turns_differ_and_keep_every_pixel():
    square = np.arange(9).reshape(3, 3)
    turned = {turn(square).tobytes() for turn in TURNS}
    assert len(turned) == 8
    assert all(sorted(np.frombuffer(one, square.dtype)) == list(range(9)) for one in turned)
    rng = np.random.default_rng(0)
    assert {Dihedral.sample(rng) for _ in range(200)} == set(TURNS)


def test_margins_are_cut_in_the_centre():
    image = np.arange(304 * 304).reshape(1, 304, 304)
    np.testing.assert_array_equal(show(Window(60.0), TREESAT, "aerial", image), image[:, 2:302, 2:302])
    np.testing.assert_array_equal(without_margin(TREESAT, "aerial", image), image[:, 2:302, 2:302])
    assert without_margin(CARD, "modis", TILE["modis"]) is TILE["modis"]
    flair = dataclasses.replace(TREESAT, sensors=("aerial-flair", "s2"), extent=100.0, sides={"aerial-flair": 512})
    image = np.arange(512 * 512).reshape(1, 512, 512)
    np.testing.assert_array_equal(show(Window(100.0), flair, "aerial-flair", image), image[:, 6:506, 6:506])


def test_labels_with_a_margin_lose_it_as_the_image_does():
    card = dataclasses.replace(
        TREESAT, sensors=("aerial",), dense_label="segmentation", dense_metres=0.2, sides={"aerial": 304, "dense": 304}
    )
    image = np.arange(304 * 304).reshape(304, 304)
    window = Window(60.0, dihedral=Dihedral(True, 1))
    np.testing.assert_array_equal(show(window, card, "dense", image), show(window, card, "aerial", image[None])[0])


def test_a_whole_tile_without_a_turn_is_the_array_itself():
    np.testing.assert_array_equal(show(Window(EXTENT), CARD, "spot", TILE["spot"]), TILE["spot"])


@pytest.mark.parametrize("turn", TURNS)
def test_pieces_come_to_the_same_as_the_whole(turn):
    window = Window(60.0, (30.0, 50.0), turn)
    blocks = []
    for top, left in itertools.product((0, 60), repeat=2):
        example = {"spot": TILE["spot"][:, top : top + 60, left : left + 60]}
        example |= {"s2_mask": TILE["s2_mask"][..., top // 10 : top // 10 + 6, left // 10 : left // 10 + 6]}
        blocks.append(Block(example, (float(top), float(left)), 60.0))
    spot, mask = window.cut(CARD, "spot", blocks), window.cut(CARD, "s2", blocks, "_mask", np.asarray([0, 2]))
    np.testing.assert_array_equal(window.dihedral(spot), show(window, CARD, "spot", TILE["spot"]))
    np.testing.assert_array_equal(mask, TILE["s2_mask"][[0, 2], :, 3:9, 5:11])


@pytest.mark.parametrize("turn", TURNS)
def test_copies_are_what_the_views_are(turn):
    large = np.arange(2 * 300 * 130, dtype=np.int32).reshape(2, 300, 130)
    np.testing.assert_array_equal(turn.copied(large), turn(large))


def test_windows_begin_where_pixels_of_all_arrays_begin():
    assert alignment(CARD) == 30.0
    assert alignment(dataclasses.replace(CARD, sensors=("aerial", "s2"))) == 10.0
    assert alignment(dataclasses.replace(CARD, sensors=("spot",), dense_label="none")) == 1.0
    assert alignment(dataclasses.replace(CARD, sensors=("naip", "aerial"), dense_label="none")) == 5.0
    corners = {sample_window(CARD, 60.0, False, np.random.default_rng(seed)).offset for seed in range(200)}
    assert corners == {(30.0 * row, 30.0 * column) for row in range(3) for column in range(3)}
    assert sample_window(CARD, 60.0, False, np.random.default_rng(0)).dihedral == Dihedral()


def test_windows_of_whole_blocks_lie_on_blocks():
    def corners(extent, blocks):
        card = dataclasses.replace(CARD, sensors=("spot", "s2"), sides={}, blocks=blocks)
        return {sample_window(card, extent, False, np.random.default_rng(seed)).offset for seed in range(800)}

    assert corners(60.0, 2) == {(0.0, 0.0), (0.0, 60.0), (60.0, 0.0), (60.0, 60.0)}
    assert len(corners(60.0, 4)) == 9 and len(corners(60.0, 1)) == 49 and len(corners(40.0, 2)) == 81


def test_evaluation_windows_cover_a_tile_once():
    seen = np.zeros((12, 12), int)
    for corner in window_offsets(CARD, 60.0):
        Window(60.0, corner).cut(CARD, "s2", [whole_tile(CARD, {"s2": seen})])[...] += 1
    assert (seen == 1).all() and window_offsets(CARD, 60.0)[:2] == [(0.0, 0.0), (0.0, 60.0)]
    assert window_offsets(CARD, EXTENT) == [(0.0, 0.0)]


@pytest.mark.parametrize(
    ("extent", "message"),
    [
        (50.0, "50 m; tiles of 120 m are cut into a whole number of windows"),
        (0.0, "0 m; tiles of 120 m"),
        (240.0, "240 m; tiles of 120 m"),
        (40.0, "40 m; windows are whole multiples of 30 m, where pixels of all arrays begin"),
    ],
)
def test_extents_that_cannot_be(extent, message):
    with pytest.raises(ValueError, match=message):
        check_extent(CARD, extent)


def test_extents_that_can_be():
    assert [check_extent(CARD, extent) for extent in (30, 60, 120)] == [30.0, 60.0, 120.0]
