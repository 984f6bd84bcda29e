"""Open datasets, from the config to batches, on the fake dataset."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.batch import Batch
from data_pipelines import load, registry
from data_pipelines.batches import HostShard
from data_pipelines.load import check_tiles, chosen_tiles, read_options
from data_pipelines.locate import find_card, locate
from tests.data_pipelines.check_batch import check_batch
from tests.data_pipelines.fake_reader import CARD, data_config, fake_entry


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, CARD.name, fake_entry)


def batches(config, count, seed=0, **shard):
    iterator = load.train_iterator(load.open_datasets(config), seed=seed, **shard)
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def leaves(batch):
    return jax.tree.leaves(batch)


def assert_equal(first: Batch, second: Batch):
    assert (first.dataset, first.patch_size) == (second.dataset, second.patch_size)
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_batches_are_as_promised(root):
    for batch in batches(data_config(root), 3):
        assert isinstance(batch, Batch) and batch.dataset == CARD.name and batch.patch_size in (10.0, 20.0)
        assert set(batch.observations) == set(CARD.sensors) and batch.batch_size == 2
        spot, s2, s1 = (batch.observations[name] for name in ("spot", "s2", "s1-asc"))
        assert spot.values.shape == (2, 3, 40, 40) and spot.dates is None and spot.pixel_mask is None
        assert s2.values.shape == (2, 4, 10, 4, 4) and s2.pixel_mask.shape == (2, 4, 1, 4, 4)
        assert s2.dates.shape == s2.date_mask.shape == (2, 4) and s1.pixel_mask.shape == s1.values.shape
        assert all(o.values.dtype == np.float32 and np.isfinite(o.values).all() for o in batch.observations.values())
        assert {k: (v.dtype, v.shape) for k, v in batch.labels.items()} == {
            "tile": (np.int32, (2,)),
            "dense": (np.int32, (2, 4, 4)),
            "index": (np.int32, (2,)),
        }


def test_the_seed_alone_decides(root):
    first, again, other = (batches(data_config(root), 4, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first, again):
        assert_equal(a, b)
    assert any((a.labels["index"] != b.labels["index"]).any() for a, b in zip(first, other))


def test_resume_through_json(root):
    straight = batches(data_config(root), 6)
    iterator = load.train_iterator(load.open_datasets(data_config(root)), seed=0)
    iterator.set_state(json.loads(json.dumps({"next_step": 4})))
    assert_equal(next(iterator), straight[4])
    assert iterator.get_state() == {"next_step": 5}
    iterator.close()


def test_two_processes_share_the_batch(root):
    whole = batches(data_config(root, batch_size=4), 3)
    parts = [batches(data_config(root, batch_size=4), 3, shard=HostShard((i,), 2)) for i in range(2)]
    for k, batch in enumerate(whole):
        shards = [part[k] for part in parts]
        assert {s.patch_size for s in shards} == {batch.patch_size} and {s.batch_size for s in shards} == {2}
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *rows: np.concatenate(rows), *shards), batch)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), batch_size=st.sampled_from([2, 4]), count=st.sampled_from([1, 2]))
def test_an_epoch_has_every_training_tile_once_and_no_other(root, seed, batch_size, count):
    config = data_config(root, batch_size=batch_size, temporal_dropout=0.3)
    steps = 4 * 7 // batch_size  # four epochs of seven tiles
    shards = [batches(config, steps, seed, shard=HostShard((index,), count)) for index in range(count)]
    stored = {tile["spot"][0, 2:-2, 2:-2].sum(dtype=int): i for i, tile in enumerate(records(root, "train"))}
    tiles = []
    for parts in zip(*shards, strict=True):
        assert len({(p.dataset, p.patch_size, str(jax.tree.map(np.shape, p))) for p in parts}) == 1
        for part in parts:
            check_batch(CARD, part)
        rows = [(index, total) for part in parts for index, total in zip(part.labels["index"], totals(root, part))]
        assert all(stored[total] == index for index, total in rows)  # so no tile of another split is among them
        tiles += [int(index) for index, _ in rows]
    assert sorted(tiles) == sorted(4 * list(range(7)))


def records(root, split):
    source = locate(CARD.name, str(root)).records(split)
    return [source[index] for index in range(len(source))]


def totals(root, batch):
    """Sums of the first band of each tile's image in native units, which no turn changes."""
    one = locate(CARD.name, str(root)).statistics["spot"]
    native = batch.observations["spot"].values[:, 0].astype(np.float64) * one.std[0] + one.mean[0]
    return [round(total) for total in native.sum(axis=(1, 2))]


def test_buckets_are_the_same_on_all_processes(root):
    config = data_config(root, batch_size=4, max_dates=None, date_buckets=(3, 5, 8))
    whole = batches(config, 8)
    parts = [batches(config, 8, shard=HostShard((index,), 2)) for index in range(2)]
    for k, batch in enumerate(whole):
        check_batch(CARD, batch)
        lengths = {n: o.dates.shape[1] for n, o in batch.observations.items() if o.dates is not None}
        for part in parts:
            assert lengths == {n: part[k].observations[n].dates.shape[1] for n in lengths}


def test_evaluation_gives_each_tile_once_in_order_and_the_same_each_time(root):
    def run():
        dataset = load.open_datasets(data_config(root))[CARD.name]
        return list(dataset.evaluation_batches("train", patch_size=20, batch_size=3))

    first, second = run(), run()
    indices = np.concatenate([batch.labels["index"] for batch in first])
    valid = np.concatenate([batch.labels["valid"] for batch in first])
    assert indices.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6] and valid.tolist() == [True] * 7 + [False] * 2
    assert {batch.batch_size for batch in first} == {3} and {batch.patch_size for batch in first} == {20.0}
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)


def test_evaluation_of_a_dataset_that_the_config_does_not_train_on(root):
    dataset = load.open_dataset(CARD.name, str(root))
    batch = next(dataset.evaluation_batches("val", patch_size=10, batch_size=2))
    assert batch.observations["s2"].values.shape[1] == 6  # all dates of the longest series


def test_prepare_says_where(root, capsys):
    load.open_datasets(data_config(root))
    assert f"fake_tiles: 10 tiles, prepared in {root}" in capsys.readouterr().err


def test_card():
    assert find_card(CARD.name, None) is CARD
    assert find_card("treesatai_ts", None).extent == 60.0
    assert find_card("mini_flair", None).name == "mini_flair"


def test_a_field_that_cannot_be_is_refused_by_name(root):
    with pytest.raises(ValueError, match=r"data\.datasets\.fake_tiles\.max_dates is 0"):
        load.open_datasets(data_config(root, max_dates=0))
    with pytest.raises(ValueError, match=r"datasets\.fake_tiles\.temporal_dropout is 2"):
        load.open_datasets(data_config(root, temporal_dropout=2))


def test_a_batch_size_that_cannot_be_shared_out(root):
    config = data_config(root, batch_size=3)
    with pytest.raises(ValueError, match="batch_size is 3; it must be a positive multiple of 2, the parts"):
        load.train_iterator(load.open_datasets(config), seed=0, shard=HostShard((1,), 2))


def test_no_dataset_and_unknown_datasets(root):
    config = data_config(root)
    config.datasets = {"fake_tile": dict(batch_size=2)}
    with pytest.raises(ValueError, match=r"unknown dataset 'fake_tile'"):
        load.open_datasets(config)
    config.datasets = {}
    with pytest.raises(ValueError, match=r"data\.datasets is empty"):
        load.open_datasets(config)


def test_evaluation_refuses_before_the_first_batch(root):
    ask, dataset = dict(patch_size=10, batch_size=2), load.open_datasets(data_config(root))[CARD.name]
    for changes, message in (
        (dict(patch_size=15), "patches of 15 m do not fit"),
        (dict(batch_size=0), "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.evaluation_batches("val", **ask | changes)
    with pytest.raises(ValueError, match="has no split 'test'"):
        dataset.evaluation_batches("test", **ask)


quick = settings(max_examples=40, deadline=None)
SHARES = st.floats(0.001, 1.0)
SIZES, SEEDS = st.integers(1, 300), st.integers(0, 2**31 - 1)


@pytest.fixture
def many_tiles(tmp_path_factory, monkeypatch):
    """A root for the same dataset with twenty training tiles."""
    monkeypatch.setitem(registry._ENTRIES, CARD.name, lambda: fake_entry(sizes={"train": 20, "val": 3}))
    return tmp_path_factory.getbasetemp() / "many_tiles"


@quick
@given(size=SIZES, one=SHARES, other=SHARES, seed=SEEDS)
def test_a_smaller_share_lies_within_a_larger_one(size, one, other, seed):
    small, large = (set(chosen_tiles("a", size, share, seed).tolist()) for share in sorted((one, other)))
    assert small <= large <= set(range(size))


@quick
@given(size=SIZES, share=SHARES, seed=SEEDS)
def test_the_share_is_kept_to_the_tile_and_is_never_empty(size, share, seed):
    tiles = chosen_tiles("a", size, share, seed)
    assert len(tiles) == max(1, round(share * size)) and (np.diff(tiles) > 0).all()
    np.testing.assert_array_equal(tiles, chosen_tiles("a", size, share, seed))


def test_all_is_all():
    assert chosen_tiles("a", 9, 1.0, 5).tolist() == list(range(9))


def test_name_and_seed_choose_others():
    chosen = {chosen_tiles(name, 100, 0.1, seed).tobytes() for name in ("a", "b") for seed in range(3)}
    assert len(chosen) == 6


@pytest.mark.parametrize("tiles", [(0, 5), (-1,), (2, 2)])
def test_positions_that_a_split_has_not_are_refused(tiles):
    with pytest.raises(ValueError, match=r"in a split of 5; (5 is outside|-1 is outside|one comes twice)"):
        check_tiles(tiles, 5)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_training_takes_each_of_the_share_once_an_epoch(many_tiles, count):
    config = data_config(many_tiles, batch_size=4, fraction=0.4, fraction_seed=3)
    wanted = load.open_datasets(config)[CARD.name].training_tiles
    assert wanted.tolist() == chosen_tiles(CARD.name, 20, 0.4, 3).tolist() and len(wanted) == 8
    datasets = load.open_datasets(config)
    iterators = [load.train_iterator(datasets, seed=1, shard=HostShard((i,), count)) for i in range(count)]
    epochs = [[int(tile) for _ in range(2) for one in iterators for tile in next(one).labels["index"]] for _ in "abc"]
    assert [sorted(epoch) for epoch in epochs] == [wanted.tolist()] * 3
    for iterator in iterators:
        iterator.close()


def test_a_batch_may_be_larger_than_the_share(many_tiles):
    config = data_config(many_tiles, batch_size=4, fraction=0.05)
    datasets = load.open_datasets(config)
    batch = next(load.train_iterator(datasets, seed=0))
    assert batch.labels["index"].tolist() == 4 * datasets[CARD.name].training_tiles.tolist()


def test_all_tiles_unless_the_config_says_otherwise(many_tiles):
    assert load.open_datasets(data_config(many_tiles))[CARD.name].training_tiles.tolist() == list(range(20))
    (options,) = read_options(data_config(many_tiles, fraction=None, fraction_seed=None)).values()
    assert (options.fraction, options.fraction_seed) == (1.0, 0)


@pytest.mark.parametrize(
    ("field", "value"), [("fraction", 0), ("fraction", 1.01), ("fraction", float("nan")), ("fraction_seed", -1)]
)
def test_a_share_that_cannot_be_is_refused(many_tiles, field, value):
    with pytest.raises(ValueError, match=rf"data.datasets.fake_tiles.{field} is {value}; it must be"):
        load.open_datasets(data_config(many_tiles, **{field: value}))
