"""Batches of training and evaluation, also those of several processes."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import load, registry
from data_pipelines.batches import WHOLE, BatchMaker, HostShard, InOrder
from data_pipelines.fakes import write_fake
from data_pipelines.options import Sampling
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.registry import get_entry
from data_pipelines.transforms import TileTransform
from tests.data_pipelines.check_batch import check_batch
from tests.data_pipelines.coordinate_tiles import CARD, make_tile, neutral_statistics
from tests.data_pipelines.fake_reader import CARD as FAKE
from tests.data_pipelines.fake_reader import data_config, fake_entry

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


def test_the_shares_make_up_the_batch_in_its_order():
    assert WHOLE.rows(6).tolist() == list(range(6))
    assert np.concatenate([HostShard((part,), 3).rows(6) for part in range(3)]).tolist() == list(range(6))
    assert HostShard((0, 2), 3).rows(6).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("indices", [(), (2,), (-1, 0)])
def test_indices_that_are_not_there_are_refused(indices):
    with pytest.raises(ValueError, match="of a batch"):
        HostShard(indices, 2)


NUM_DATES = (2, 3, 6, 1, 4)
RAGGED = [make_tile(num_dates=count, alos_dates=count % 3) for count in NUM_DATES]
RAGGED_COUNTS = {
    "s2": np.asarray(NUM_DATES),
    "modis": np.asarray(NUM_DATES),
    "alos": np.asarray(NUM_DATES) % 3,
}


@pytest.fixture
def data(tmp_path_factory, monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, FAKE.name, fake_entry)
    return data_config(tmp_path_factory.getbasetemp() / "evaluation_share")


def batches(tiles=None, batch_size=4, index=0, count=1, **sampling):
    transform = TileTransform(CARD, neutral_statistics(6), Sampling(date_buckets=(2, 3, 8), **sampling))
    chosen = None if tiles is None else np.asarray(tiles)
    return list(
        InOrder(
            BatchMaker(RAGGED, transform, RAGGED_COUNTS),
            batch_size,
            30.0,
            chosen,
            HostShard((index,), count),
        )
    )


def samples(batch):
    """Tile and window of each valid row."""
    windows = batch.labels.get("window", np.zeros((batch.batch_size, 2)))
    rows = zip(batch.labels["index"].tolist(), windows.tolist(), batch.labels["valid"])
    return [(tile, *window) for tile, window, valid in rows if valid]


@settings(max_examples=12, deadline=None)
@given(
    count=st.sampled_from([1, 2, 4]),
    share=st.integers(1, 3),
    extent=st.sampled_from([None, 60.0]),
    tiles=st.none() | st.lists(st.integers(0, 4), min_size=1, unique=True),
)
def test_processes_share_each_batch_and_every_sample_comes_once(count, share, extent, tiles):
    whole = batches(tiles, count * share, extent=extent)
    parts = [batches(tiles, count * share, index, count, extent=extent) for index in range(count)]
    for number, batch in enumerate(whole):
        shards = [part[number] for part in parts]
        assert len({str(jax.tree.map(np.shape, shard)) for shard in shards}) == 1
        for index, shard in enumerate(shards):
            for one, all_rows in zip(jax.tree.leaves(shard), jax.tree.leaves(batch), strict=True):
                np.testing.assert_array_equal(one, all_rows[index * share : (index + 1) * share])
    seen = [sample for part in parts for batch in part for sample in samples(batch)]
    corners = [(0.0, 0.0)] if extent is None else [(top, left) for top in (0.0, 60.0) for left in (0.0, 60.0)]
    assert sorted(seen) == sorted((tile, *corner) for tile in (tiles or range(5)) for corner in corners)
    assert {len(part) for part in parts} == {len(whole)}


def test_chosen_tiles_come_in_their_order():
    assert [sample[0] for batch in batches([4, 0, 2]) for sample in samples(batch)] == [4, 0, 2]


def test_no_tiles_are_no_batches():
    assert batches([]) == []


@pytest.mark.parametrize(("tiles", "count"), [(None, 7), ([1, 3], 2)])
def test_the_number_of_samples_is_known_before(data, tiles, count):
    asked = dict(patch_size=10, batch_size=4, tiles=tiles)
    dataset = load.open_datasets(data)[FAKE.name]
    given_out = [batch.labels["valid"].sum() for batch in dataset.evaluation_batches("train", **asked)]
    assert dataset.num_samples("train", tiles) == sum(given_out) == count


def test_windows_are_counted(tmp_path):
    write_fake("sen1floods11_chip", tmp_path / "raw", tiles=1)
    prepare_dataset(get_entry("sen1floods11_chip").reader(tmp_path / "raw"), tmp_path, "1.0.0", limit=2)
    config = data_config(tmp_path)
    config.datasets = {"sen1floods11_chip": dict(batch_size=2, extent=320.0)}
    asked = dict(patch_size=40, batch_size=3)
    dataset = load.open_datasets(config)["sen1floods11_chip"]
    given_out = [batch.labels["valid"].sum() for batch in dataset.evaluation_batches("val", **asked)]
    assert dataset.num_samples("val") == sum(given_out) == 8
    assert dataset.num_samples("val", [1]) == 4


def test_what_the_processes_cannot_share_is_refused(data):
    asked = dict(patch_size=10, batch_size=3)
    for wrong, message in (
        (dict(shard=HostShard((0,), 2)), "batch_size is 3; it must be a positive multiple of 2, the parts"),
        (dict(tiles=[7]), "different positions in a split of 7; 7 is outside"),
    ):
        with pytest.raises(ValueError, match=message):
            load.open_datasets(data)[FAKE.name].evaluation_batches("train", **asked | wrong)
