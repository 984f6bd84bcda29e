"""A dataset's probes tell features that know the labels from features that do not."""

import dataclasses

import numpy as np
import pytest

from anysat_jax.pretrain.config import EvaluateSettings
from anysat_jax.pretrain.probe import make_plan, probe_dataset
from tests.report.toy import CARD, toy_batch, toy_features

NETWORKS = {"random": 0.0, "pretrained": 1.0}


def splits(train: int = 8, val: int = 4, last_valid: int = 2):
    """Batches of 4 tiles; the last of each split is padded."""
    sizes = {"train": (train, 0), "val": (val, 100)}

    def batches(split):
        number, seed = sizes[split]
        return [toy_batch(seed=seed + i, valid=4 if i < number - 1 else last_valid) for i in range(number)]

    return batches


@pytest.fixture(scope="module")
def found():
    return probe_dataset(make_plan(CARD), splits(), toy_features, NETWORKS, EvaluateSettings(pictures=3))


def test_informed_features_score_high_and_noise_does_not(found):
    scores = {(score.task, score.metric): score for score in found[0]}
    assert set(scores) == {("tile", "weighted F1"), ("tile", "macro F1"), ("dense", "mIoU"), ("dense", "accuracy")}
    for score in scores.values():
        assert score.dataset == "Toy"
        assert score.pretrained > 0.95 > 0.9 > score.random
    assert [s.metric for s in found[0] if s.headline] == ["weighted F1", "mIoU"]


def test_pictures_are_of_held_out_tiles_the_most_varied_first(found):
    pictures = found[1]
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
    def score(garbage):
        def batches(split):
            for batch in splits(train=4, val=2)(split):
                wrong = np.where(batch.labels["valid"][:, None], batch.labels["tile"], garbage)
                yield batch.replace(labels=batch.labels | {"tile": wrong})

        plan = make_plan(dataclasses.replace(CARD, dense_label="none"))
        return probe_dataset(plan, batches, toy_features, NETWORKS, EvaluateSettings(pictures=0))[0]

    assert score(0.0) == score(1.0)


def test_a_single_class_task_is_scored_by_accuracy():
    def batches(split):
        for batch in splits(train=4, val=1, last_valid=1)(split):
            yield batch.replace(labels=batch.labels | {"tile": batch.labels["tile"][:, 0].astype(np.int32)})

    def extract(params, batch):
        multi_hot = np.stack([batch.labels["tile"] == k for k in range(3)], axis=1).astype(np.float32)
        return toy_features(params, batch.replace(labels=batch.labels | {"tile": multi_hot}))

    plan = make_plan(dataclasses.replace(CARD, tile_label="class", dense_label="none"))
    scores, pictures = probe_dataset(plan, batches, extract, NETWORKS, EvaluateSettings(pictures=0))
    assert [(score.metric, score.pretrained) for score in scores] == [("accuracy", 1.0), ("macro F1", 1.0)]
    assert pictures == []


def test_nothing_held_out_is_refused():
    with pytest.raises(ValueError, match="toy: the split 'val' has no tiles"):
        probe_dataset(make_plan(CARD), splits(train=2, val=0), toy_features, NETWORKS, EvaluateSettings())
