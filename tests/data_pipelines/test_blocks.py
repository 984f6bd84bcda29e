"""Tiles in several records: cut and joined again, and windows that read only their own."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.batches import BatchMaker, InOrder
from data_pipelines.card import example_spec
from data_pipelines.options import Sampling
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example, complete_example
from data_pipelines.prepared import PreparedDataset
from data_pipelines.transforms import TileTransform
from data_pipelines.windows import block_card, covering_blocks, join_blocks, split_example
from tests.data_pipelines import coordinate_tiles
from tests.data_pipelines.check_batch import check_batch
from tests.data_pipelines.coordinate_tiles import make_tile, neutral_statistics

CARD = dataclasses.replace(coordinate_tiles.CARD, sensors=("spot", "s2", "alos", "modis"), sides={}, blocks=4)


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
    check_card(CARD)
    blocks = split_example(CARD, tile())
    assert len(blocks) == 16 and block_card(CARD).extent == 30.0
    for block in blocks:
        for key, (shape, dtype) in example_spec(block_card(CARD)).items():
            assert np.asarray(block[key]).dtype == dtype or key in ("tile", "modis")
            assert all(want in (None, got) for want, got in zip(shape, np.shape(block[key]), strict=True))
        assert_equal({"modis": tile()["modis"]}, {"modis": block["modis"]})


def test_blocks_join_to_the_tile():
    assert_equal(join_blocks(CARD, split_example(CARD, tile())), tile())
    card, example = dataclasses.replace(CARD, blocks=1), tile()
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
    assert covering_blocks(CARD, offset, extent) == blocks
    assert covering_blocks(dataclasses.replace(CARD, blocks=1), offset, extent) == [0]


class TilesReader:
    """Three tiles; the second without ALOS."""

    card = CARD

    def splits(self):
        return ("train",)

    def keys(self, split):
        return ["t0", "t1", "t2"]

    def example(self, split, key):
        number = int(key[1:])
        one = {k: v for k, v in tile(number, alos_dates=int(number != 1)).items() if k != "alos_present"}
        one = {k: v for k, v in one.items() if number != 1 or not k.startswith("alos")}
        check_example(CARD, key, one)
        return one


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = prepare_dataset(TilesReader(), tmp_path_factory.mktemp("blocks"), "1.0.0")
    return PreparedDataset.open(CARD, folder)


def test_prepared_tiles_come_back_whole_and_in_parts(prepared):
    records = prepared.records("train")
    assert len(records) == 3 and len(records.source) == 48
    for number in range(3):
        example = complete_example(CARD, TilesReader().example("train", f"t{number}"))
        assert_equal(records[number], example)
        (block,) = records.blocks(number, [6])
        assert (block.offset, block.extent) == ((30.0, 60.0), 30.0)
        assert_equal(block.example, split_example(CARD, example)[6])
    assert {name: lengths.tolist() for name, lengths in prepared.series_lengths("train").items()} == {
        "s2": [3, 3, 3],
        "alos": [1, 0, 1],
        "modis": [3, 3, 3],
    }


@pytest.mark.parametrize("extent", [None, 30.0, 60.0])
def test_batches_from_blocks_are_those_from_whole_tiles(prepared, extent):
    records, sampling = prepared.records("train"), Sampling(max_dates=2, extent=extent)
    statistics = {name: one for name, one in neutral_statistics(3).items() if name in CARD.sensors}
    whole_card = dataclasses.replace(CARD, blocks=1)
    makers = [
        BatchMaker(source, TileTransform(card, statistics, sampling))
        for card, source in ((CARD, records), (whole_card, [records[number] for number in range(3)]))
    ]
    picked = [m.training([(i, np.random.default_rng((5, i))) for i in range(3)], range(3), 30) for m in makers]
    evaluated = [list(InOrder(m, 5, 30.0)) for m in makers]
    for first, second in zip([picked[0], *evaluated[0]], [picked[1], *evaluated[1]], strict=True):
        check_batch(CARD, first, extent)
        assert_equal(first.labels, second.labels)
        for name in CARD.sensors:
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
    statistics = {name: one for name, one in neutral_statistics(3).items() if name in CARD.sensors}
    maker = BatchMaker(counted, TileTransform(CARD, statistics, Sampling(extent=60.0)))
    quarters = [4 + 1, 4 + 2]  # the upper right and the lower left one of the second tile
    maker.evaluation(quarters, quarters, 30.0)
    assert read == [16 + number for number in (2, 3, 6, 7, 8, 9, 12, 13)]


@pytest.mark.parametrize("card", [dict(blocks=3), dict(blocks=0), dict(blocks=2, sides={"spot": 124})])
def test_blocks_that_cannot_be(card):
    with pytest.raises(ValueError, match="blocks is .*; tiles of 120 m are cut where pixels of all arrays begin"):
        check_card(dataclasses.replace(CARD, **card))
