"""The logs of fitting, across restarts, and what its complaints say."""

import csv
import math

import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.downstream.fit import FitFed, FitLedger, FitLog
from anysat_jax.downstream.selection import Memory
from anysat_jax.errors import NonFiniteError
from tests.downstream.fit_toys import TASK, ToyBatches

SCORES = {"loss": 0.25, "accuracy": 0.5, "macro_f1": math.nan, "weighted_f1": 0.1, "micro_f1": 0.2, "mean_iou": 0.3}


def open_log(workdir, step=0, evaluated=0, enabled=True, log_every=1):
    run = dict(step=step, total_steps=12, log_every=log_every, enabled=enabled)
    return FitLog(workdir, TASK, steps_per_epoch=4, evaluated_step=evaluated, **run)


def write(log, first, last):
    for step in range(first, last + 1):
        log.write(step, "toy", 20.0, dict.fromkeys(FitLog.metrics, float(step)))
        if step % 4 == 0:
            log.write_evaluation(step // 4, step, SCORES, best=0.75)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_tell_epochs_and_evaluations(tmp_path):
    with open_log(tmp_path) as log:
        write(log, 1, 12)
    assert [int(row["epoch"]) for row in rows(tmp_path / "metrics.csv")] == [1] * 4 + [2] * 4 + [3] * 4
    found = rows(tmp_path / "evaluation.csv")
    assert [(row["epoch"], row["step"], row["accuracy"]) for row in found] == [
        (f"{n}", f"{4 * n}", "0.5") for n in (1, 2, 3)
    ]
    assert found[0]["macro_f1"] == "nan" and list((tmp_path / "tensorboard").iterdir())


def test_a_restart_drops_steps_and_evaluations_that_it_will_repeat(tmp_path):
    with open_log(tmp_path) as log:
        write(log, 1, 9)
    before = (tmp_path / "evaluation.csv").read_text()
    # The checkpoint is of step 8, and was saved before its evaluation.
    with open_log(tmp_path, step=8, evaluated=4) as log:
        assert [row["step"] for row in rows(tmp_path / "evaluation.csv")] == ["4"]
        log.write_evaluation(2, 8, SCORES, best=0.75)
        write(log, 9, 11)
    assert (tmp_path / "evaluation.csv").read_text() == before
    assert [int(row["step"]) for row in rows(tmp_path / "metrics.csv")] == list(range(1, 12))


def test_the_bar_shows_the_loss_the_validation_and_the_speed(tmp_path, capsys):
    with open_log(tmp_path) as log:
        write(log, 1, 12)
    last = capsys.readouterr().err
    for part in ("toy 20 m", "12/12", "loss 12.0000", "validation accuracy 0.5000 (best 0.7500)", "12.0 tiles/s"):
        assert part in last


def test_other_processes_write_nothing(tmp_path):
    with open_log(tmp_path, enabled=False) as log:
        log.write(1, "toy", 10.0, {})
        log.write_evaluation(1, 4, SCORES, best=0.5)
    assert not list(tmp_path.iterdir())


def test_a_complaint_names_the_samples(tmp_path):
    fed = FitFed(next(ToyBatches()), None, {})
    bad = np.zeros(16, bool)
    bad[[1, 4]] = True
    metrics = {
        "loss": jnp.nan,
        "finite": jnp.array(False),
        "nonfinite_leaves": jnp.array([True, False]),
        "nonfinite_samples": jnp.array(bad),
        "index": jnp.arange(100, 116),
    }
    ledger = FitLedger(Memory().record, None, ["loss", "gradient of head/a"], lambda index: [f"id{i}" for i in index])
    ledger.after_step(3, fed, metrics)
    with pytest.raises(NonFiniteError, match=r"step 3 on dataset 'toy' .* in: loss\..*not finite: id101, id104$"):
        ledger.finish()
