"""Evaluation over several processes, and of some tiles: every sample once in all, in batches of one shape."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import load, registry
from data_pipelines.batches import BatchMaker, HostShard, InOrder
from data_pipelines.fakes import write_fake
from data_pipelines.options import Sampling
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.registry import get_entry
from data_pipelines.transforms import TileTransform
from tests.data_pipelines.coordinate_tiles import CARD, make_tile, neutral_statistics
from tests.data_pipelines.fake_reader import CARD as FAKE
from tests.data_pipelines.fake_reader import data_config, fake_entry

LENGTHS = (2, 3, 6, 1, 4)
TILES = [make_tile(num_dates=count, alos_dates=count % 3) for count in LENGTHS]
COUNTS = {"s2": np.asarray(LENGTHS), "modis": np.asarray(LENGTHS), "alos": np.asarray(LENGTHS) % 3}


@pytest.fixture
def data(tmp_path_factory, monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, FAKE.name, fake_entry)
    return data_config(tmp_path_factory.getbasetemp() / "evaluation_share")


def batches(tiles=None, batch_size=4, index=0, count=1, **sampling):
    transform = TileTransform(CARD, neutral_statistics(6), Sampling(date_buckets=(2, 3, 8), **sampling))
    chosen = None if tiles is None else np.asarray(tiles)
    return list(InOrder(BatchMaker(TILES, transform, COUNTS), batch_size, 30.0, chosen, HostShard((index,), count)))


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
