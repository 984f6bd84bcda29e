"""Batches of training and evaluation, made of tiles whose pixels hold their own place."""

import numpy as np
import pytest

from data_pipelines.batches import BatchMaker, InOrder
from data_pipelines.options import Sampling
from data_pipelines.transforms import TileTransform
from tests.data_pipelines.check_batch import check_batch
from tests.data_pipelines.coordinate_tiles import CARD, make_tile, neutral_statistics

LENGTHS = (2, 3, 6, 1, 4)
TILES = [make_tile(num_dates=count, alos_dates=count % 3) for count in LENGTHS]
COUNTS = {"s2": np.asarray(LENGTHS), "modis": np.asarray(LENGTHS), "alos": np.asarray(LENGTHS) % 3}


def maker_of(counts=None, **sampling):
    return BatchMaker(TILES, TileTransform(CARD, neutral_statistics(6), Sampling(**sampling)), counts)


def train(maker, tiles, together=None, seed=0):
    picks = [(tile, np.random.default_rng((seed, tile))) for tile in tiles]
    return maker.training(picks, together or tiles, 30)


def evaluate(maker, batch_size):
    return list(InOrder(maker, batch_size, 30.0))


@pytest.mark.parametrize("extent", [None, 60.0, 30.0])
@pytest.mark.parametrize("sampling", [{}, dict(max_dates=2, temporal_dropout=0.5, max_cloud=50.0, dates="published")])
def test_training_batches_are_as_the_card_promises(extent, sampling):
    for seed in range(3):
        batch = train(maker_of(extent=extent, **sampling), [0, 2, 4], seed=seed)
        check_batch(CARD, batch, extent)
        assert batch.labels["index"].tolist() == [0, 2, 4]


def test_all_batches_have_the_same_shapes_without_buckets():
    import jax

    maker = maker_of(max_dates=4)
    first, second = (train(maker, tiles) for tiles in ([0, 3], [2, 4]))
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, second)
    assert first.observations["s2"].values.shape[1] == 4


def test_a_bucket_holds_the_longest_series_of_all_processes():
    maker = maker_of(COUNTS, date_buckets=(2, 3, 8))

    def length(tiles, together=None):
        batch = train(maker, tiles, together)
        check_batch(CARD, batch)
        return {o.dates.shape[1] for o in batch.observations.values() if o.dates is not None}

    assert length([0, 3]) == {2} and length([0, 1]) == {3} and length([0, 4]) == {6}
    assert length([0], together=[0, 1]) == {3} and length([3], together=[3, 2]) == {6}
    shapes = {tuple(b.observations[s].dates.shape[1] for s in ("s2", "alos", "modis")) for b in evaluate(maker, 1)}
    assert len(shapes) <= 3


def test_augmentation_can_be_left_out():
    plain = maker_of(augment=False)
    for seed in range(4):
        spot = train(plain, [0], seed=seed).observations["spot"].values[0]
        np.testing.assert_array_equal(spot, TILES[0]["spot"])
    turned = {train(maker_of(), [0], seed=seed).observations["spot"].values.tobytes() for seed in range(60)}
    assert len(turned) == 8


def test_training_windows_lie_anywhere_and_say_where():
    maker = maker_of(extent=60.0, augment=False)
    corners = set()
    for seed in range(60):
        batch = train(maker, [0], seed=seed)
        top, left = batch.labels["window"][0]
        corners.add((top, left))
        np.testing.assert_array_equal(batch.observations["spot"].values[0, :2, 0, 0], (top + 0.5, left + 0.5))
    assert len(corners) == 9  # aligned to the 30 m pixels of ALOS


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_evaluation_gives_each_tile_once_in_order(batch_size):
    batches = evaluate(maker_of(), batch_size)
    indices = np.concatenate([batch.labels["index"] for batch in batches])
    valid = np.concatenate([batch.labels["valid"] for batch in batches])
    assert indices[valid].tolist() == [0, 1, 2, 3, 4] and (indices[~valid] == 4).all()
    assert len(batches) == -(-5 // batch_size) and {batch.batch_size for batch in batches} == {batch_size}
    for batch in batches:
        check_batch(CARD, batch)


def test_evaluation_gives_each_part_of_each_tile_once():
    batches = evaluate(maker_of(extent=60.0), 3)
    seen = [
        (int(index), *window)
        for batch in batches
        for index, window, valid in zip(batch.labels["index"], batch.labels["window"], batch.labels["valid"])
        if valid
    ]
    assert seen == [(tile, top, left) for tile in range(5) for top in (0, 60) for left in (0, 60)]
    for batch in batches:
        check_batch(CARD, batch, 60.0)
        corners = batch.observations["spot"].values[:, :2, 0, 0]
        np.testing.assert_array_equal(corners, batch.labels["window"] + 0.5)


def test_a_tile_is_read_once_for_its_parts():
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    maker = BatchMaker(Counted(TILES), maker_of(extent=60.0).transform)
    maker.evaluation(range(8), range(8), 30.0)
    assert read == [0, 1]


def test_evaluation_is_the_same_each_time():
    for first, second in zip(evaluate(maker_of(max_dates=2), 2), evaluate(maker_of(max_dates=2), 2), strict=True):
        for name, one in first.observations.items():
            np.testing.assert_array_equal(one.values, second.observations[name].values)
