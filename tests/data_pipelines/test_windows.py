"""Windows of tiles, their rotation, the blocks they cover, and their labels."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batches import BatchMaker, InOrder
from data_pipelines.card import example_spec
from data_pipelines.datasets.treesatai_ts import CARD as TREESAT
from data_pipelines.options import Sampling
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example, complete_example
from data_pipelines.prepared import PreparedDataset
from data_pipelines.transforms import TileTransform
from data_pipelines.windows import (
    IGNORE,
    Block,
    Dihedral,
    Window,
    alignment,
    block_card,
    check_extent,
    covering_blocks,
    empty_labels,
    join_blocks,
    sample_window,
    split_example,
    window_offsets,
    without_margin,
    write_labels,
)
from tests.data_pipelines import coordinate_tiles
from tests.data_pipelines.check_batch import check_batch
from tests.data_pipelines.coordinate_tiles import CARD, EXTENT, NAMES, class_at, coarse, make_tile, neutral_statistics


def show(window, card, key, array):
    """What a sample of the window shows of an array that is stored as one."""
    return window.dihedral.copied(window.cut(card, key, [Block({key: array}, card.extent)]))


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
    assert window.cut(CARD, "modis", [Block(TILE, CARD.extent)]) is TILE["modis"]


def test_the_eight_turns_differ_and_keep_every_pixel():
    square = np.arange(9).reshape(3, 3)
    turned = {turn(square).tobytes() for turn in TURNS}
    assert len(turned) == 8
    assert all(sorted(np.frombuffer(one, square.dtype)) == list(range(9)) for one in turned)
    rng = np.random.default_rng(0)
    assert {sample_window(CARD, CARD.extent, True, rng).dihedral for _ in range(200)} == set(TURNS)


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
        blocks.append(Block(example, 60.0, (float(top), float(left))))
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
        Window(60.0, corner).cut(CARD, "s2", [Block({"s2": seen}, CARD.extent)])[...] += 1
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


PLAIN = dict(tile_label="none", tile_classes=(), dense_label="none", dense_classes=(), dense_colours=(), sides={})


WHOLE = Window(EXTENT)


def labels_of(card, example, window=WHOLE):
    labels = empty_labels(card, 2, window.extent)
    write_labels(card, labels, 1, [Block(example, card.extent)], window)
    return {key: value[1] for key, value in labels.items()}


@pytest.mark.parametrize(
    ("kind", "stored", "dtype"),
    [
        ("class", np.int32(2), np.int32),
        ("multi_label", np.asarray([1, 0, 1], np.uint8), np.float32),
        ("regression", np.float32(0.5), np.float32),
    ],
)
def test_labels_of_tiles(kind, stored, dtype):
    card = dataclasses.replace(CARD, **PLAIN | dict(tile_label=kind, tile_classes=("a", "b", "c")))
    labels = labels_of(card, {"tile": stored})
    assert set(labels) == {"tile"} and np.asarray(labels["tile"]).dtype == dtype
    np.testing.assert_array_equal(labels["tile"], stored)


def test_no_labels():
    assert labels_of(dataclasses.replace(CARD, **PLAIN), {}) == {}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("kind", ["segmentation", "change"])
def test_class_maps_are_int32_with_one_value_for_no_label(dtype, kind):
    card = dataclasses.replace(CARD, **PLAIN | dict(dense_label=kind, dense_classes=NAMES, ignore_label=7))
    dense = np.arange(144).reshape(12, 12).astype(dtype) % 8
    labels = labels_of(card, {"dense": dense})
    assert labels["dense"].dtype == np.int32
    np.testing.assert_array_equal(labels["dense"], np.where(dense == 7, IGNORE, dense.astype(np.int32)))
    assert labels_of(dataclasses.replace(card, ignore_label=-1), {"dense": dense})["dense"].max() == 7


def test_maps_of_a_regression_keep_nan_for_no_label():
    card = dataclasses.replace(CARD, **PLAIN | dict(dense_label="regression", label_unit="t"))
    dense = np.full((12, 12), 1.5, np.float32)
    dense[0, 1] = np.nan
    labels = labels_of(card, {"dense": dense}, Window(EXTENT, dihedral=Dihedral(True, 0)))
    assert labels["dense"].dtype == np.float32 and np.argwhere(np.isnan(labels["dense"])).tolist() == [[0, 10]]


def test_the_multi_label_of_a_part_is_what_its_map_shows():
    example = make_tile()
    example["dense"] = np.full((14, 14), 7, np.int8)  # 7: no label
    example["dense"][1:4, 1:4] = 3
    example["dense"][4, 4] = 0  # the one class that the multi-label does not name
    example["dense"][12, 12] = 5
    example["tile"] = np.asarray([0, 0, 1, 0, 1, 0], np.uint8)
    assert labels_of(CARD, example)["tile"].tolist() == [0, 0, 1, 0, 1, 0]
    assert labels_of(CARD, example, Window(60.0))["tile"].tolist() == [0, 0, 1, 0, 0, 0]
    assert labels_of(CARD, example, Window(60.0, (60.0, 60.0)))["tile"].tolist() == [0, 0, 0, 0, 1, 0]
    assert not labels_of(CARD, example, Window(60.0, (0.0, 60.0)))["tile"].any()


BLOCKED = dataclasses.replace(coordinate_tiles.CARD, sensors=("spot", "s2", "alos", "modis"), sides={}, blocks=4)


def tile(number=0, alos_dates=2):
    """A tile without margins; `number` stands in its images."""
    example = {k: v for k, v in make_tile(alos_dates=alos_dates).items() if not k.startswith("aerial")}
    example["dense"] = example["dense"][1:-1, 1:-1]
    example["spot"][2] = number
    example["modis"][:] = number
    return example | {"id": f"t{number}"}


def assert_equal(first, second):
    assert set(first) == set(second)
    for key in set(first) - {"id"}:  # a text comes back as bytes
        np.testing.assert_array_equal(first[key], second[key])


def test_a_block_is_a_tile_of_its_own_card():
    check_card(BLOCKED)
    blocks = split_example(BLOCKED, tile())
    assert len(blocks) == 16 and block_card(BLOCKED).extent == 30.0
    for block in blocks:
        for key, (shape, dtype) in example_spec(block_card(BLOCKED)).items():
            assert np.asarray(block[key]).dtype == dtype or key in ("tile", "modis")
            assert all(want in (None, got) for want, got in zip(shape, np.shape(block[key]), strict=True))
        assert_equal({"modis": tile()["modis"]}, {"modis": block["modis"]})


def test_blocks_join_to_the_tile():
    assert_equal(join_blocks(BLOCKED, split_example(BLOCKED, tile())), tile())
    card, example = dataclasses.replace(BLOCKED, blocks=1), tile()
    assert split_example(card, example) == [example] and block_card(card) is card
    assert join_blocks(card, [example]) is example


@pytest.mark.parametrize(
    ("offset", "extent", "blocks"),
    [
        ((0.0, 0.0), 120.0, [*range(16)]),
        ((0.0, 30.0), 30.0, [1]),
        ((20.0, 30.0), 30.0, [1, 5]),
        ((59.0, 90.0), 30.0, [7, 11]),
        ((0.0, 10.0), 60.0, [0, 1, 2, 4, 5, 6]),
    ],
)
def test_the_blocks_of_a_window(offset, extent, blocks):
    assert covering_blocks(BLOCKED, offset, extent) == blocks
    assert covering_blocks(dataclasses.replace(BLOCKED, blocks=1), offset, extent) == [0]


class TilesReader:
    """Three tiles; the second without ALOS."""

    card = BLOCKED

    def splits(self):
        return ("train",)

    def keys(self, split):
        return ["t0", "t1", "t2"]

    def example(self, split, key):
        number = int(key[1:])
        one = {k: v for k, v in tile(number, alos_dates=int(number != 1)).items() if k != "alos_present"}
        one = {k: v for k, v in one.items() if number != 1 or not k.startswith("alos")}
        check_example(BLOCKED, key, one)
        return one


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = prepare_dataset(TilesReader(), tmp_path_factory.mktemp("blocks"), "1.0.0")
    return PreparedDataset.open(BLOCKED, folder)


def test_prepared_tiles_come_back_whole_and_in_parts(prepared):
    records = prepared.records("train")
    assert len(records) == 3 and len(records.source) == 48
    for number in range(3):
        example = complete_example(BLOCKED, TilesReader().example("train", f"t{number}"))
        assert_equal(records[number], example)
        (block,) = records.blocks(number, [6])
        assert (block.offset, block.extent) == ((30.0, 60.0), 30.0)
        assert_equal(block.example, split_example(BLOCKED, example)[6])
    assert {name: lengths.tolist() for name, lengths in prepared.series_lengths("train").items()} == {
        "s2": [3, 3, 3],
        "alos": [1, 0, 1],
        "modis": [3, 3, 3],
    }


@pytest.mark.parametrize("extent", [None, 30.0, 60.0])
def test_batches_from_blocks_are_those_from_whole_tiles(prepared, extent):
    records, sampling = prepared.records("train"), Sampling(max_dates=2, extent=extent)
    statistics = {name: one for name, one in neutral_statistics(3).items() if name in BLOCKED.sensors}
    whole_card = dataclasses.replace(BLOCKED, blocks=1)
    makers = [
        BatchMaker(source, TileTransform(card, statistics, sampling))
        for card, source in ((BLOCKED, records), (whole_card, [records[number] for number in range(3)]))
    ]
    picked = [m.training([(i, np.random.default_rng((5, i))) for i in range(3)], range(3), 30) for m in makers]
    evaluated = [list(InOrder(m, 5, 30.0)) for m in makers]
    for first, second in zip([picked[0], *evaluated[0]], [picked[1], *evaluated[1]], strict=True):
        check_batch(BLOCKED, first, extent)
        assert_equal(first.labels, second.labels)
        for name in BLOCKED.sensors:
            np.testing.assert_array_equal(first.observations[name].values, second.observations[name].values)


def test_a_window_reads_only_its_own_blocks(prepared):
    records, read = prepared.records("train"), []

    class Counted:
        def __getitem__(self, number):
            read.append(number)
            return records.source[number]

        def __len__(self):
            return len(records.source)

    counted = dataclasses.replace(records, source=Counted())
    statistics = {name: one for name, one in neutral_statistics(3).items() if name in BLOCKED.sensors}
    maker = BatchMaker(counted, TileTransform(BLOCKED, statistics, Sampling(extent=60.0)))
    quarters = [4 + 1, 4 + 2]  # the upper right and the lower left one of the second tile
    maker.evaluation(quarters, quarters, 30.0)
    assert read == [16 + number for number in (2, 3, 6, 7, 8, 9, 12, 13)]


@pytest.mark.parametrize("card", [dict(blocks=3), dict(blocks=0), dict(blocks=2, sides={"spot": 124})])
def test_blocks_that_cannot_be(card):
    with pytest.raises(ValueError, match="blocks is .*; tiles of 120 m are cut where pixels of all arrays begin"):
        check_card(dataclasses.replace(BLOCKED, **card))
