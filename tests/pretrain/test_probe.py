"""The report of a pretraining: which rows are probed, which scores come out, which tiles are shown."""

import dataclasses
import json
import logging
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from anysat_jax.batch import Observation
from anysat_jax.downstream.examples import Highest
from anysat_jax.downstream.features import FrozenFeatures
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.pretrain.config import EvaluateConfig
from anysat_jax.pretrain.probe import (
    METRICS,
    add_pictures,
    collect_rows,
    make_plan,
    natural_colour,
    probe_dataset,
    report_pretraining,
    summarise,
    take_tiles,
    validation_rows,
)
from anysat_jax.report.tables import Score
from tests.pretrain.probe_toys import CARD, toy_batch, toy_features

NETWORKS = {"random": 0.0, "pretrained": 1.0}
PLAN = make_plan(CARD)


# ---------------------------------------------------------------- plan


def test_dense_is_probed_on_the_sensor_of_the_label_and_shown_on_the_finest():
    assert tuple(PLAN.tasks) == ("tile", "dense")
    assert PLAN.tasks["dense"].sensor == "s2"
    assert PLAN.picture_sensor == PLAN.natural_sensor == "aerial"
    assert PLAN.sensors == ("aerial", "s2")
    assert make_plan(dataclasses.replace(CARD, sensors=("aerial", "spot"))).tasks["dense"].sensor == "spot"


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"tile_label": "none"}, ("dense",)),
        ({"dense_label": "none"}, ("tile",)),
        ({"dense_metres": 5.0}, ("tile",)),
        ({"sensors": ("aerial", "modis")}, ("tile",)),
        ({"tile_label": "regression"}, ("dense",)),
        ({"tile_label": "none", "dense_label": "none"}, ()),
    ],
)
def test_tasks_are_those_with_labels_that_fit(changes, levels):
    assert tuple(make_plan(dataclasses.replace(CARD, **changes)).tasks) == levels


def test_held_out_is_the_test_split_where_there_is_one():
    assert PLAN.held_out == "val"
    assert make_plan(dataclasses.replace(CARD, splits=("train", "val", "test"))).held_out == "test"


# ---------------------------------------------------------------- rows


def label_features(params, batch):
    """Features that are the label itself, so that a wrong row shows."""
    dense = batch.labels["dense"][..., None].astype(np.float32) * np.ones(2, np.float32)
    return FrozenFeatures(batch.labels["tile"][:, :2], {"s2": dense, "aerial": dense})


def test_rows_keep_features_labels_and_tiles_together():
    batches = [toy_batch(seed=0), toy_batch(seed=1, valid=2)]
    rows = collect_rows(PLAN, batches, label_features, {"random": 0}, pixels_per_tile=7, seed=0)
    tile, dense = rows["tile"], rows["dense"]
    np.testing.assert_array_equal(tile.tiles, [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(tile.features["random"], tile.labels[:, :2])
    np.testing.assert_array_equal(np.bincount(dense.tiles), [7] * 6)
    np.testing.assert_array_equal(dense.features["random"][:, 0], dense.labels)
    assert dense.labels.min() == 0  # the unknown pixel is never sampled


def test_the_choice_of_pixels_follows_the_seed_and_takes_all_of_few():
    def rows(seed, pixels=5):
        return collect_rows(PLAN, [toy_batch()], label_features, {"r": 0}, pixels, seed)["dense"]

    np.testing.assert_array_equal(rows(0).labels, rows(0).labels)
    assert (rows(0).labels != rows(1).labels).any()
    np.testing.assert_array_equal(np.bincount(rows(0, pixels=1000).tiles), [15] * 4)


def test_take_tiles_stops_at_the_limit_and_skips_padding():
    batches = [toy_batch(seed=0, valid=3), toy_batch(seed=1), toy_batch(seed=2)]
    taken = list(take_tiles(batches, 5))
    assert [batch.labels["valid"].tolist() for batch in taken] == [[True] * 3 + [False], [True] * 2 + [False] * 2]


def test_validation_takes_tiles_whole():
    tiles = np.repeat(np.arange(20), 10)
    chosen = validation_rows(tiles, seed=0)
    assert chosen.sum() == 40 and set(tiles[chosen]).isdisjoint(tiles[~chosen])
    assert not validation_rows(np.arange(4), seed=0).any()


def test_rows_that_cannot_be_had_are_refused():
    batch = toy_batch()
    unknown = batch.replace(labels=batch.labels | {"dense": np.full((4, 4, 4), -1)})

    def coarse(params, batch):
        features = label_features(params, batch)
        return features.replace(dense={"s2": features.dense["s2"][:, ::2, ::2]})

    for batches, extract, message in (
        ([], label_features, "toy: the split 'train' has no tiles"),
        ([unknown], label_features, "toy: no label 'dense' in the split 'train'"),
        ([batch], coarse, "toy: the dense label is 4 x 4 pixels, but 's2' has 2 x 2 sub-patches"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_rows(PLAN, batches, extract, {"random": 0}, 5, 0)


# ---------------------------------------------------------------- scores


def splits(train: int = 8, val: int = 4, last_valid: int = 2):
    """Batches of 4 tiles; the last of each split is padded."""
    sizes = {"train": (train, 0), "val": (val, 100)}

    def batches(split):
        number, seed = sizes[split]
        return [toy_batch(seed=seed + i, valid=4 if i < number - 1 else last_valid) for i in range(number)]

    return batches


@pytest.fixture(scope="module")
def found():
    return probe_dataset(PLAN, splits(), toy_features, NETWORKS, EvaluateConfig(pictures=3))


def test_informed_features_score_high_and_noise_does_not(found):
    scores = {(score.task, score.metric): score for score in found[0]}
    assert set(scores) == {("tile", "weighted F1"), ("tile", "macro F1"), ("dense", "mIoU"), ("dense", "accuracy")}
    for score in scores.values():
        assert score.dataset == "Toy"
        assert score.pretrained > 0.95 > 0.9 > score.random
    assert [s.metric for s in found[0] if s.headline] == ["weighted F1", "mIoU"]
    assert METRICS["class"][0] == "accuracy"


def test_pictures_are_of_held_out_tiles_the_most_varied_first(found):
    pictures = found[1].pictures
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.extent == pytest.approx((40.0, 40.0))
        assert picture.natural_sensor == "aerial" and picture.natural.shape == (200, 200, 3)
        assert picture.features["random"].shape == (20, 20, 8)
        assert set(picture.land_cover) == {"random", "pretrained", "label"}
        known = picture.land_cover["label"] >= 0
        agreement = picture.land_cover["pretrained"] == picture.land_cover["label"]
        assert agreement[known].mean() > 0.9
    shares = [np.mean(picture.land_cover["label"] == 1) for picture in pictures]
    assert shares == sorted(shares, key=lambda share: abs(share - 0.5))


def test_padding_does_not_change_the_scores():
    plan = make_plan(dataclasses.replace(CARD, dense_label="none"))

    def score(garbage):
        def batches(split):
            for batch in splits()(split):
                wrong = np.where(batch.labels["valid"][:, None], batch.labels["tile"], garbage)
                yield batch.replace(labels=batch.labels | {"tile": wrong})

        return probe_dataset(plan, batches, toy_features, NETWORKS, EvaluateConfig(pictures=0))[0]

    assert score(0.0) == score(1.0)


def test_a_class_without_a_training_tile_is_never_predicted():
    def batches(split):
        for batch in splits(train=1, val=1, last_valid=4)(split):
            yield batch.replace(labels=batch.labels | {"tile": batch.labels["tile"][:, 0].astype(np.int32)})

    def extract(params, batch):
        multi_hot = np.stack([batch.labels["tile"] == k for k in range(3)], axis=1).astype(np.float32)
        return toy_features(params, batch.replace(labels=batch.labels | {"tile": multi_hot}))

    plan = make_plan(dataclasses.replace(CARD, tile_label="class", dense_label="none"))
    scores, mosaic = probe_dataset(plan, batches, extract, NETWORKS, EvaluateConfig(pictures=0))
    assert [(score.metric, score.pretrained) for score in scores] == [("accuracy", 1.0), ("macro F1", 1.0)]
    assert mosaic.pictures == []


def test_nothing_held_out_is_refused():
    plan = make_plan(dataclasses.replace(CARD, dense_label="none"))
    with pytest.raises(ValueError, match="toy: the split 'val' has no tiles"):
        probe_dataset(plan, splits(val=0), toy_features, NETWORKS, EvaluateConfig())


# ---------------------------------------------------------------- pictures


def test_natural_colour_takes_the_channels_in_order_and_the_median_of_real_dates():
    values = np.arange(2 * 4 * 3 * 5, dtype=np.float32).reshape(2, 4, 3, 5)
    colour = natural_colour(Observation(values), 1, (2, 1, 0))
    assert colour.shape == (3, 5, 3)
    np.testing.assert_array_equal(colour[..., 0], values[1, 2])
    series = np.zeros((1, 4, 3, 2, 2), np.float32)
    series[0, :, 0] = np.array([1.0, 2.0, 9.0, 500.0])[:, None, None]  # a cloud, then padding
    mask = np.array([[True, True, True, False]])
    colour = natural_colour(Observation(series, date_mask=mask), 0, (0, 1, 2))
    np.testing.assert_array_equal(colour[..., 0], np.full((2, 2), 2.0))


@pytest.mark.parametrize(("size", "expected"), [(2, [0.5, 0.25]), (0, [])])
def test_pictures_keep_the_most_varied_tiles_and_no_padding(size, expected):
    pictures = Highest(size)
    for seed in range(3):
        batch = toy_batch(seed=seed, valid=3)
        batch = batch.replace(labels=batch.labels | {"dense": np.zeros((4, 4, 4), np.int32)})
        batch.labels["dense"][1, : seed + 1] = 1
        batch.labels["dense"][3, :2] = np.arange(4)  # the most varied of all, but padding
        add_pictures(pictures, PLAN, batch, {"random": toy_features(1.0, batch)}, {})
    # Two quarters and three quarters have the same entropy: the first stays.
    assert [np.mean(picture.land_cover["label"] == 1) for picture in pictures.items] == expected


# ---------------------------------------------------------------- the whole report, with a very small encoder


MODEL = ModelConfig.from_section(
    dict(preset="tiny", dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2",))
)
CARDS = {
    "toy": dataclasses.replace(CARD, sensors=("s2",), natural_colour={"s2": (2, 1, 0)}),
    "bare": dataclasses.replace(CARD, name="bare", title="Bare", tile_label="none", dense_label="none"),
}


def evaluation_batches(split, *, patch_size, batch_size):
    """Two batches of a split, the second padded; the reflectance shows the classes."""
    assert patch_size == 10  # the smallest of the options
    for seed in range(2):
        batch = toy_batch(batch_size, seed=seed + 10 * (split == "val"), valid=batch_size - seed)
        s2 = batch.observations["s2"]
        values = 0.1 * s2.values + batch.labels["dense"][:, None, None]
        labels = batch.labels | {"index": np.arange(batch_size)}
        observations = {"s2": s2.replace(values=values.astype(np.float32))}
        yield batch.replace(observations=observations, labels=labels, patch_size=float(patch_size))


def open_toy(name):
    if name == "gone":
        raise FileNotFoundError("no folder of gone")
    options = SimpleNamespace(patch_sizes=(20, 10))
    return SimpleNamespace(card=CARDS[name], options=options, evaluation_batches=evaluation_batches)


def report(folder, networks=None, **settings):
    settings = EvaluateConfig(batch_size=2, pictures=1, **settings)
    datasets = {"toy": open_toy("toy"), "bare": open_toy("bare")}
    networks = networks or {"random": {}, "pretrained": {}}
    return report_pretraining(settings, datasets, open_toy, MODEL, networks, folder, title="toy, 3 steps", seed=0)


def test_report_prints_writes_and_returns(tmp_path, capsys, caplog):
    networks = {"random": init_encoder(MODEL, 0), "pretrained": init_encoder(MODEL, 1)}
    with caplog.at_level(logging.INFO):
        probe = json.loads(json.dumps(report(tmp_path, networks, datasets=("toy", "bare", "gone"))))
    assert set(probe) == {"tile", "dense", "datasets"}
    assert all(0 <= probe[task][name] <= 1 for task in ("tile", "dense") for name in ("random", "pretrained"))
    assert set(probe["datasets"]) == {"Toy"}
    assert probe["datasets"]["Toy"]["dense"]["accuracy"]["random"] > 0.7  # reflectance shows the classes
    assert re.search("Toy +tile +weighted F1", capsys.readouterr().out)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"README.md", "probes.png", "features_toy.png"}
    logged = caplog.text
    assert "no probe of bare: it has no labels" in logged
    assert "no probe of gone: no folder of gone" in logged
    assert str(tmp_path / "report" / "README.md") in logged


def test_without_probes_only_the_curves_are_drawn(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,dataset,loss_predictive,loss_contrastive,learning_rate\n1,toy,1,2,0.1\n2,toy,1,2,0.1\n"
    )
    assert report(tmp_path, probe=False)["dense"] == {"random": None, "pretrained": None}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"README.md", "curves.png"}


def test_no_dataset_that_can_be_probed_gives_none(tmp_path):
    assert report(tmp_path, datasets=("bare",))["tile"] == {"random": None, "pretrained": None}
    assert "Nothing was probed." in (tmp_path / "report" / "README.md").read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("max_tiles", 0), ("pixels_per_tile", -1), ("pictures", -1), ("patch_size", 0)],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"evaluate.{field} = {value} must be"):
        EvaluateConfig(**{field: value})


def test_means_are_of_headline_scores_and_every_score_is_kept_without_nan():
    found = summarise(
        [
            Score("Mini A", "tile", "weighted F1", 0.25, 0.5, headline=True),
            Score("Mini A", "tile", "macro F1", 0.2, 0.1),
            Score("Mini B", "tile", "accuracy", 0.75, 1.0, headline=True),
            Score("Mini B", "dense", "mIoU", math.nan, 0.5, headline=True),
        ]
    )
    assert (found["tile"], found["dense"]) == (
        {"random": 0.5, "pretrained": 0.75},
        {"random": None, "pretrained": None},
    )
    assert found["datasets"]["Mini B"]["dense"]["mIoU"] == {"random": None, "pretrained": 0.5}
    assert found["datasets"]["Mini A"]["tile"]["macro F1"]["random"] == 0.2
