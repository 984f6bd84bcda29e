"""Probes on frozen features: the cache, and that kept features answer as the network does."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.downstream import features
from anysat_jax.downstream.data import fingerprint, open_data, start_network
from anysat_jax.downstream.evaluate import evaluate_split
from anysat_jax.downstream.feature_cache import key_of
from anysat_jax.downstream.features import label_blocks, sample_subpatches, take_subpatches
from anysat_jax.downstream.network import network_features
from anysat_jax.downstream.probe import (
    features_of,
    neighbour_logits,
    neighbour_scores,
    probe_problem,
    validate_features,
)
from anysat_jax.downstream.task import LossConfig
from anysat_jax.errors import ConfigError, DataError
from anysat_jax.train.status import JobStatus
from data_pipelines import load
from tests.downstream import adapt_toys

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    adapt_toys.register_toy()
    return tmp_path_factory.mktemp("toy")


@pytest.fixture
def made(monkeypatch):
    """Which splits were extracted."""
    splits, extract = [], features.extract

    def counting(data, start, split, *rest):
        splits.append(split)
        extract(data, start, split, *rest)

    monkeypatch.setattr(features, "extract", counting)
    return splits


def toy_config(root, level="tile", cache=None, dataset=None, neighbours=0, **changes):
    config = adapt_toys.toy_config(root, job="probe", level=level, mode="probe", **changes)
    config.cache.update(cache or {})
    config.data.datasets.toy_fields.update(dataset or {})
    config.knn.neighbours = neighbours
    return config


def opened(root, level="tile", **changes):
    data = open_data(toy_config(root, level, **changes), SPLITS)
    return data, start_network(data)


def validated(data, start, sizes=(10.0,)):
    return validate_features(data, start.network, start.params, features_of(data, start, "val", sizes), LossConfig())


def test_features_are_extracted_once_for_all_probes_of_the_same_weights(root, tmp_path, made):
    data, start = opened(root, cache={"folder": str(tmp_path)})
    problem = probe_problem(data, start, LossConfig())
    assert made == ["train", "val"]
    assert problem.steps_per_epoch == 3 and set(problem.trainable) == {"head"} and not problem.frozen
    again = probe_problem(
        dataclasses.replace(data, config=dataclasses.replace(data.config, seed=7)), start, LossConfig()
    )
    assert made == ["train", "val"]
    batch, other = next(problem.batches()), next(again.batches())
    assert batch.features.shape == (4, 32) and batch.features.dtype == np.float32
    assert batch.labels["index"].tolist() != other.labels["index"].tolist()
    np.testing.assert_array_equal(batch.labels["tile"], batch.labels["index"] % 3)


def test_damaged_features_are_made_anew(root, tmp_path, made, caplog):
    data, start = opened(root, cache={"folder": str(tmp_path)})
    features_of(data, start, "val", (10.0,))
    (path,) = tmp_path.glob("features/*/features.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    features_of(data, start, "val", (10.0,))
    assert made == ["val", "val"] and path.read_bytes() == whole and "made again" in caplog.text


def test_whatever_changes_the_features_makes_another_entry(root):
    def key(split="train", size=10.0, tiles=None, **changes):
        data, network = opened(root, **changes)
        return key_of(features.feature_facts(data, network, split, size, tiles))

    same = key()
    assert key() == same == key(dataset={"augment": False}) == key(cache={"max_gb": 7.0})
    others = [
        key(seed=1),
        key(split="val"),
        key(size=20.0),
        key(tiles=[1, 2]),
        key(dataset={"max_dates": 2}),
        key(dtype="bfloat16"),
        key(level="dense"),
        key(cache={"pixels_per_tile": 4}, level="dense"),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_runs_from_before_norm_groups_are_those_of_the_published_numbers(root):
    data, start = opened(root)

    def facts(**model):
        network = dataclasses.replace(start.network, model=dataclasses.replace(start.network.model, **model))
        return fingerprint(data, dataclasses.replace(start, network=network))["model"]

    assert facts(dim=64)["norm_groups"] == "width"
    for model in (dict(dim=64, norm_groups="published"), dict(dim=96, norm_groups="width")):
        assert "norm_groups" not in facts(**model)


def test_other_data_make_another_entry(root, tmp_path):
    data, start = opened(root)
    adapt_toys.register_toy("toy_fields", dense_colours=("#000000", "#fffffe"))
    try:
        other, _ = opened(tmp_path)
    finally:
        adapt_toys.register_toy()
    facts = [features.feature_facts(one, start, "train", 10.0, None) for one in (data, other)]
    assert key_of(facts[0]) != key_of(facts[1])


@pytest.mark.parametrize("level", ["tile", "dense"])
def test_kept_features_score_as_the_network_does(root, level):
    data, start = opened(root, level)
    kept = validated(data, start)
    whole = evaluate_split(adapt_toys.evaluated_at(data), start.network, start.params, "val")
    assert kept.scores == whole.scores and kept.samples == whole.samples == 6
    assert kept.loss == pytest.approx(whole.loss, rel=1e-5)


def test_bfloat16_features_lose_nothing(root, monkeypatch):
    computed = []

    def noting(*arguments):
        exact = network_features(*arguments)
        jax.debug.callback(lambda values: computed.append(np.array(values)), exact)
        return exact

    monkeypatch.setattr(features, "network_features", noting)
    data, start = opened(root, "dense", dtype="bfloat16")
    kept = features_of(data, start, "val", (10.0,)).rows(np.arange(4), 10.0)
    jax.effects_barrier()
    assert str(kept.features.dtype) == "bfloat16" and computed[0].dtype == np.float32
    assert any(np.array_equal(kept.features.astype(np.float32), exact) for exact in computed)


def test_sampled_pixels_keep_features_and_labels_together(root):
    data, start = opened(root, "dense")
    whole = features_of(data, start, "val", (10.0,)).rows(np.arange(6), 10.0)
    data, start = opened(root, "dense", cache={"pixels_per_tile": 5})
    sampled = features_of(data, start, "val", (10.0,)).rows(np.arange(6), 10.0)
    assert sampled.features.shape == (6, 5, 1, 64) and sampled.labels["dense"].shape == (6, 5, 1)
    assert (sampled.labels["dense"] >= 0).all()  # labelled ones come first
    for tile in range(6):
        places = [
            np.flatnonzero((whole.features[tile].reshape(16, 64) == row).all(axis=1))
            for row in sampled.features[tile, :, 0]
        ]
        labels = whole.labels["dense"][tile].reshape(-1)
        assert [labels[place[0]] for place in places] == sampled.labels["dense"][tile, :, 0].tolist()
    found = validated(data, start)
    assert found.scores["count"] == 30


def test_a_share_of_the_labels_has_its_own_entry(root, made):
    data, start = opened(root, dataset={"fraction": 0.3})
    kept = features_of(data, start, "train", (10.0,))
    assert len(kept) == 3 and made == ["train"]
    chosen = data.dataset.training_tiles.tolist()
    assert sorted(kept.rows(np.arange(3), 10.0).labels["index"].tolist()) == sorted(chosen)


@pytest.fixture
def damaged(tmp_path):
    """A probe of tiles of which one was changed on disk."""
    data, start = opened(tmp_path, neighbours=3)
    adapt_toys.flip_bit_of_tile(tmp_path, "val", 2)
    return data, start


def test_features_of_a_tile_that_cannot_be_read_are_an_error_of_one_sentence(damaged):
    with pytest.raises(DataError, match=r"tile 2 of split 'val' cannot be read .*data.skip_corrupt = True would leave"):
        features_of(*damaged, "val", (10.0,))


def test_features_are_made_without_it_if_asked_until_it_can_be_read(damaged, tmp_path, made, caplog):
    data, start = damaged
    data = adapt_toys.skipping(data)
    kept = [0, 1, 3, 4, 5]
    for _ in range(2):
        status = JobStatus()
        found = features_of(data, start, "val", (10.0,), status)
        assert len(found) == 5 and found.rows(np.arange(5), 10.0).labels["index"].tolist() == kept
        assert status.left_out == {"val": [2]}
        assert validated(data, start).samples == 5
    assert made == ["val"]
    data = adapt_toys.skipping(data, False)
    with pytest.raises(DataError, match="tile 2 of split 'val'"):
        features_of(data, start, "val", (10.0,))
    assert "made again: they lack tiles that could not be read: 2" in caplog.text
    data = adapt_toys.skipping(data)
    features_of(data, start, "val", (10.0,))
    adapt_toys.flip_bit_of_tile(tmp_path, "val", 2)  # whole again
    status = JobStatus()
    whole = features_of(data, start, "val", (10.0,), status)
    assert len(whole) == 6 and not status.left_out and made == ["val"] * 4
    np.testing.assert_array_equal(whole.rows(np.array(kept), 10.0).features, found.rows(np.arange(5), 10.0).features)


def test_patch_sizes_have_the_same_samples_though_a_tile_was_damaged_in_between(damaged, tmp_path):
    data, start = damaged
    data = adapt_toys.skipping(data)
    adapt_toys.flip_bit_of_tile(tmp_path, "val", 2)
    assert len(features_of(data, start, "val", (20.0,))) == 6
    adapt_toys.flip_bit_of_tile(tmp_path, "val", 2)
    both = features_of(data, start, "val", (10.0, 20.0))
    for size in (10.0, 20.0):
        assert len(both.sizes[size]) == 5
        assert both.rows(np.arange(5), size).labels["index"].tolist() == [0, 1, 3, 4, 5]


def test_all_windows_of_a_tile_are_left_out_together(tmp_path):
    adapt_toys.register_toy("toy_windows", tile_label="none", tile_classes=())
    config = adapt_toys.toy_config(tmp_path, job="probe", level="dense", mode="probe", name="toy_windows")
    config.data.datasets.toy_windows.extent = 20.0  # four windows a tile, as many as a batch has
    config.data.skip_corrupt = True
    data = open_data(config, SPLITS)
    start = start_network(data)
    for tile in (2, 5):
        adapt_toys.flip_bit_of_tile(tmp_path, "val", tile, "toy_windows")
    kept = features_of(data, start, "val", (10.0,))
    assert kept.rows(np.arange(len(kept)), 10.0).labels["index"].tolist() == [0] * 4 + [1] * 4 + [3] * 4 + [4] * 4
    whole = evaluate_split(adapt_toys.evaluated_at(data), start.network, start.params, "val")
    found = validate_features(data, start.network, start.params, kept, LossConfig())
    assert whole.left_out == {2, 5} and found.samples == whole.samples == 16
    assert found.scores == whole.scores and found.loss == pytest.approx(whole.loss, rel=1e-5)


def test_neighbours_do_without_it_too(damaged, tmp_path):
    data, start = damaged
    for split in ("train", "test"):
        adapt_toys.flip_bit_of_tile(tmp_path, split, 0)
    with pytest.raises(DataError, match="tile 0 of split 'train'"):
        neighbour_scores(data, start)
    data = adapt_toys.skipping(data)
    status = JobStatus()
    assert neighbour_scores(data, start, status)["test"]["count"] == 6
    assert status.left_out == {"test": [0], "train": [0]}


def test_a_share_of_the_labels_is_counted_without_it_if_asked(damaged, tmp_path):
    config = toy_config(tmp_path, dataset={"fraction": 0.99})  # nine tiles
    chosen = load.open_datasets(config.data)["toy_fields"].training_tiles
    tile = int(chosen[0])
    adapt_toys.flip_bit_of_tile(tmp_path, "train", tile)
    with pytest.raises(ConfigError, match=f"tile {tile} of split 'train' cannot be read"):
        open_data(config, SPLITS)
    config.data.skip_corrupt = True
    assert open_data(config, SPLITS).counts["train"].sum() == len(chosen) - 1


def test_where_no_tile_can_be_read_there_are_no_features(damaged, tmp_path):
    data, start = damaged
    data = adapt_toys.skipping(data)
    for tile in (0, 1, 3, 4, 5):
        adapt_toys.flip_bit_of_tile(tmp_path, "val", tile)
    with pytest.raises(DataError, match="'toy_fields': no tile of split 'val' can be read"):
        features_of(data, start, "val", (10.0,))


def test_what_does_not_fit_is_refused_before_anything_is_computed(root, made):
    data, start = opened(root, "dense", cache={"max_gb": 1e-6})
    with pytest.raises(ConfigError, match=r"10 samples of split 'train' take .* GB, .* set cache.pixels_per_tile"):
        features_of(data, start, "train", (10.0,))
    tiles, network = opened(root, cache={"max_gb": 1e-9})
    with pytest.raises(ConfigError, match=r"cache.max_gb = 1e-09; raise cache.max_gb"):
        features_of(tiles, network, "train", (10.0,))
    assert not made


def test_neighbours_answer_for_tiles(root):
    data, start = opened(root, neighbours=3)
    found = neighbour_scores(data, start)
    assert found["neighbours"] == 3 and found["test"]["count"] == 7
    (train,), (test,) = (features_of(data, start, split, (10.0,)).sizes.values() for split in ("train", "test"))
    logits = neighbour_logits(data.task, (train.features, np.asarray(train.labels)), test.features, k=3)
    assert found["test"]["accuracy"] == pytest.approx((logits.argmax(axis=1) == test.labels).mean())


# ---------------------------------------------------------------- sampled sub-patches


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.data())
def test_labelled_ones_come_first_and_none_comes_twice(count, total, tile, data):
    labelled = np.array([data.draw(st.lists(st.booleans(), min_size=total, max_size=total))])
    (chosen,) = sample_subpatches(labelled, np.array([tile]), count)
    assert len(chosen) == min(count, total) == len(set(chosen.tolist())) and set(chosen) <= set(range(total))
    assert labelled[0, chosen].sum() == min(len(chosen), labelled.sum())


def test_the_sample_depends_on_the_tile_alone():
    labelled = np.ones((3, 50), bool)
    several = sample_subpatches(labelled, np.array([7, 8, 7]), 10)
    np.testing.assert_array_equal(several[0], several[2])
    assert (several[0] != several[1]).any()
    np.testing.assert_array_equal(sample_subpatches(labelled[:1], np.array([8]), 10)[0], several[1])


def test_labels_and_features_stay_together():
    rows, columns, side = 3, 4, 2
    numbers = np.arange(rows * columns).reshape(1, rows, columns)
    labels = numbers.repeat(side, axis=1).repeat(side, axis=2)
    blocks = label_blocks(labels, side)
    assert blocks.shape == (1, 12, 2, 2)
    chosen = sample_subpatches(np.ones((1, 12), bool), np.array([0]), 5)
    features = take_subpatches(numbers[..., None].astype(np.float32), chosen)
    assert features.shape == (1, 5, 1, 1)
    np.testing.assert_array_equal(blocks[0, chosen[0]], np.broadcast_to(features[0], (5, 2, 2)))
