import dataclasses
import json

import pytest

from anysat_jax.downstream.task import METRICS, Task, make_task
from data_pipelines.registry import ARCHIVE_NAMES, get_entry


def card(name):
    return get_entry(name).card


@pytest.mark.parametrize(
    ("name", "level", "kind", "metric", "sensor", "pixels"),
    [
        ("pastis_hd", "dense", "class", "mean_iou", "s2", 1),
        ("flair", "dense", "class", "mean_iou", "aerial-flair", 10),
        ("bradd_s1ts", "dense", "class", "mean_iou", "s1", 1),
        ("hls_burn_scars", "dense", "class", "mean_iou", "hls", 1),
        ("spacenet7", "dense", "class", "mean_iou", "planet", 4),
        ("biomassters", "dense", "regression", "rmse", "s2", 1),
    ],
)
def test_a_dense_task_is_made_of_the_fitting_sensor(name, level, kind, metric, sensor, pixels):
    task = make_task(card(name), level)
    assert (task.kind, task.metric, task.sensor, task.pixels_per_subpatch) == (kind, metric, sensor, pixels)
    assert len(task.classes) == (0 if kind == "regression" else task.num_outputs)


@pytest.mark.parametrize(
    ("name", "kind", "outputs"),
    [("treesatai_ts", "multi_label", 15), ("planted", "class", 40), ("so2sat", "class", 17)],
)
def test_a_tile_task_has_an_output_for_each_class(name, kind, outputs):
    task = make_task(card(name), "tile")
    assert (task.kind, task.num_outputs, task.metric, task.sensor) == (kind, outputs, METRICS[kind][0], "")


@pytest.mark.parametrize("name", ARCHIVE_NAMES)
def test_every_archive_has_a_task_that_survives_json(name):
    level = "dense" if card(name).tile_label == "none" else "tile"
    task = make_task(card(name), level)
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_another_sensor_may_be_asked_for():
    assert make_task(card("pastis_hd"), "dense", sensor="spot").sensor == "spot"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("planted", dict(level="dense"), "'planted' has labels of level 'tile' only"),
        ("planted", dict(level="pixel"), "must be 'tile' or 'dense'"),
        ("planted", dict(level="tile", metric="rmse"), "of kind 'class', measured by accuracy"),
        ("flair", dict(level="dense", sensor="spot"), "'spot': a dense answer for 'flair' .* aerial-flair, s2"),
    ],
)
def test_what_cannot_be_asked_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(card(name), **arguments)


def test_labels_that_no_sensor_can_draw_are_refused():
    odd = dataclasses.replace(card("pastis_hd"), dense_metres=7.0)
    with pytest.raises(ValueError, match="no sensor's sub-patches are squares of label pixels of 7 m"):
        make_task(odd, "dense")
