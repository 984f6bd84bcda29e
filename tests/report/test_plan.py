"""What a card allows to probe."""

import dataclasses

import pytest

from anysat_jax.pretrain.probe import make_plan
from tests.report.toy import CARD


def test_dense_is_probed_on_the_sensor_of_the_label_and_shown_on_the_finest(plan):
    assert plan.tasks == ("tile", "dense")
    assert plan.dense_sensor == "s2"
    assert plan.picture_sensor == "aerial"
    assert plan.sensors == ("aerial", "s2")


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"tile_label": "none"}, ("dense",)),
        ({"dense_label": "none"}, ("tile",)),
        ({"dense_metres": 5.0}, ("tile",)),
        ({"sensors": ("aerial", "modis")}, ("tile",)),
        ({"tile_label": "regression"}, ("dense",)),
        ({"tile_label": "none", "dense_label": "none"}, ()),
    ],
)
def test_tasks_are_those_with_labels_that_fit(changes, tasks):
    assert make_plan(dataclasses.replace(CARD, **changes)).tasks == tasks


def test_another_sensor_serves_where_there_is_no_sentinel_2():
    assert make_plan(dataclasses.replace(CARD, sensors=("aerial", "spot"))).dense_sensor == "spot"


def test_held_out_is_the_test_split_where_there_is_one(plan):
    assert plan.held_out == "val"
    assert make_plan(dataclasses.replace(CARD, splits=("train", "val", "test"))).held_out == "test"


def test_the_headline_is_the_first_metric(plan):
    assert next(iter(plan.metrics("tile"))) == "weighted F1"
    assert next(iter(plan.metrics("dense"))) == "mIoU"
    assert next(iter(make_plan(dataclasses.replace(CARD, tile_label="class")).metrics("tile"))) == "accuracy"
