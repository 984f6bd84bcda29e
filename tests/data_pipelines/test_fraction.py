"""Training on a share of the tiles: nested, never empty, the same on every process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import load, registry
from data_pipelines.batches import HostShard
from data_pipelines.load import check_tiles, chosen_tiles, read_options
from tests.data_pipelines.fake_reader import CARD, data_config, fake_entry

quick = settings(max_examples=40, deadline=None)
SHARES = st.floats(0.001, 1.0)
SIZES, SEEDS = st.integers(1, 300), st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, CARD.name, lambda: fake_entry(sizes={"train": 20, "val": 3}))


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
def test_training_takes_each_of_the_share_once_an_epoch(root, count):
    config = data_config(root, batch_size=4, fraction=0.4, fraction_seed=3)
    wanted = load.open_datasets(config)[CARD.name].training_tiles
    assert wanted.tolist() == chosen_tiles(CARD.name, 20, 0.4, 3).tolist() and len(wanted) == 8
    datasets = load.open_datasets(config)
    iterators = [load.train_iterator(datasets, seed=1, shard=HostShard((i,), count)) for i in range(count)]
    epochs = [[int(tile) for _ in range(2) for one in iterators for tile in next(one).labels["index"]] for _ in "abc"]
    assert [sorted(epoch) for epoch in epochs] == [wanted.tolist()] * 3
    for iterator in iterators:
        iterator.close()


def test_a_batch_may_be_larger_than_the_share(root):
    config = data_config(root, batch_size=4, fraction=0.05)
    datasets = load.open_datasets(config)
    batch = next(load.train_iterator(datasets, seed=0))
    assert batch.labels["index"].tolist() == 4 * datasets[CARD.name].training_tiles.tolist()


def test_all_tiles_unless_the_config_says_otherwise(root):
    assert load.open_datasets(data_config(root))[CARD.name].training_tiles.tolist() == list(range(20))
    (options,) = read_options(data_config(root, fraction=None, fraction_seed=None)).values()
    assert (options.fraction, options.fraction_seed) == (1.0, 0)


@pytest.mark.parametrize(
    ("field", "value"), [("fraction", 0), ("fraction", 1.01), ("fraction", float("nan")), ("fraction_seed", -1)]
)
def test_a_share_that_cannot_be_is_refused(root, field, value):
    with pytest.raises(ValueError, match=rf"data.datasets.fake_tiles.{field} is {value}; it must be"):
        load.open_datasets(data_config(root, **{field: value}))
