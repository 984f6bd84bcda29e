"""Inputs and logs of a fit."""

import csv
import math

import numpy as np
import pytest

from anysat_jax.downstream.fit import EvaluationLog, make_inputs
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import DeviceFeed
from anysat_jax.train.metrics_log import MetricsLog, StepColumns
from anysat_jax.train.sharding import make_mesh
from tests.downstream.fit_toys import BATCH, TASK, ToyBatches

MESH = make_mesh(MeshConfig(data=4, fsdp=1))
SCORES = {"loss": 0.25, "accuracy": 0.5, "macro_f1": math.nan, "weighted_f1": 0.1, "micro_f1": 0.2, "mean_iou": 0.3}
COLUMNS = StepColumns(("loss",), lambda values: "", {"loss": "loss"}, ("loss",), steps_per_epoch=4)


def test_batches_are_cut_over_the_devices_with_the_labels_of_the_task():
    found = DeviceFeed(ToyBatches(), make_inputs("tile", 5, MESH)).next()
    expected = next(ToyBatches())
    assert sorted(found.batch.labels) == ["index", "tile"]
    for name in ("index", "tile"):
        np.testing.assert_array_equal(found.batch.labels[name], expected.labels[name])
        assert found.batch.labels[name].dtype == np.int32  # stored as int64
    np.testing.assert_array_equal(found.batch.values, expected.values)
    assert found.batch.values.addressable_shards[0].data.shape[0] == BATCH // 4
    batch, seed = found.inputs
    assert batch is found.batch and batch.dataset == "toy" and int(seed) == 5


def test_which_samples_are_real_is_passed_on():
    class Padded(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            return batch.replace(labels={**batch.labels, "valid": np.arange(BATCH) < 3})

    labels = DeviceFeed(Padded(), make_inputs("tile", 0, MESH)).next().batch.labels
    assert labels["valid"].dtype == bool and int(labels["valid"].sum()) == 3


@pytest.fixture
def log(tmp_path):
    with MetricsLog(tmp_path, COLUMNS, step=0, total_steps=12, log_every=1) as log:
        yield log


def rows(workdir):
    with (workdir / "evaluation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_restart_drops_evaluations_that_it_will_repeat(tmp_path, log):
    evaluations = EvaluationLog(tmp_path, TASK, 0)
    for epoch in (1, 2, 3):
        evaluations.write(epoch, 4 * epoch, SCORES, 0.75, log)
    evaluations.close()
    assert [(row["epoch"], row["step"], row["accuracy"]) for row in rows(tmp_path)] == [
        (f"{n}", f"{4 * n}", "0.5") for n in (1, 2, 3)
    ]
    assert rows(tmp_path)[0]["macro_f1"] == "nan"
    assert evaluations.line == "validation accuracy 0.5000 (best 0.7500), "
    EvaluationLog(tmp_path, TASK, 8).close()
    assert [row["step"] for row in rows(tmp_path)] == ["4", "8"]


def test_rows_have_epochs(tmp_path, log):
    for step in (1, 4, 5):
        log.write(step, "toy", 20.0, {"loss": 0.5})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [(row["step"], row["epoch"]) for row in csv.DictReader(file)] == [("1", "1"), ("4", "1"), ("5", "2")]
