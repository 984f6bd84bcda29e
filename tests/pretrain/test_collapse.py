"""Warnings of features that collapse."""

import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.pretrain import collapse as collapse
from anysat_jax.pretrain.collapse import WINDOW, CollapseMonitor
from anysat_jax.pretrain.config import HealthConfig
from anysat_jax.train.input import StepInput
from anysat_jax.train.monitor import Finished
from anysat_jax.train.record import RunRecord


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(collapse.logging, "warning", lambda form, *values: lines.append(form % values))
    return lines


def look(watch, rank, cosine=0.5, variance=0.3, steps=WINDOW, first=1, dataset="fake"):
    batch = fake_batch(("spot",), batch_size=2, extent=20.0, dataset=dataset)
    for step in range(first, first + steps):
        values = dict(rank_tiles=rank, cosine=cosine, variance=variance)
        metrics = {f"feature_{name}": np.float32(value) for name, value in values.items()}
        watch(Finished(step, StepInput((batch, None), {}), metrics, 1.0))


def watch_of(record=None):
    return CollapseMonitor(HealthConfig(min_rank_share=0.2, max_cosine=0.99, min_variance=1e-3), record or RunRecord())


def test_a_rank_far_below_its_start_is_told_of_once(warned):
    watch, record = watch_of(record := RunRecord()), record
    look(watch, rank=10.0)
    look(watch, rank=3.0)
    assert not warned and record.first_ranks == {"fake 10 m": 10.0}
    look(watch, rank=1.0)
    look(watch, rank=1.0)
    assert len(warned) == 1 and record.warnings == 1
    assert "fake 10 m: the rank between tiles fell from 10.00 to 1." in warned[0]
    assert "below health.min_rank_share = 0.2 of its start" in warned[0]


def test_it_is_told_of_again_after_it_recovered(warned):
    watch = watch_of()
    for rank in (10.0, 1.0, 9.0, 1.0):
        look(watch, rank)
    assert len(warned) == 2


def test_a_cosine_near_one(warned):
    look(watch_of(), rank=10.0, cosine=0.995)
    assert len(warned) == 1 and "the cosine between tiles rose to 0.9950, above health.max_cosine = 0.99" in warned[0]


@pytest.mark.parametrize("rank", [10.0, np.nan])  # several tiles, or one alone
def test_a_variance_near_zero(warned, rank):
    watch = watch_of()
    look(watch, rank, variance=0.01)
    assert not warned
    look(watch, rank, variance=2e-4)
    assert len(warned) == 1 and "the variance fell to 0.0002, below health.min_variance = 0.001" in warned[0]


def test_values_that_are_not_finite_are_passed_over(warned):
    watch = watch_of(record := RunRecord())
    look(watch, rank=np.nan, cosine=np.nan, variance=np.nan, steps=3)
    look(watch, rank=10.0)
    assert not warned and record.first_ranks == {"fake 10 m": 10.0}


def test_one_batch_is_no_collapse(warned):
    watch = watch_of()
    look(watch, rank=10.0)
    look(watch, rank=0.1, steps=1)
    assert not warned


def test_kinds_of_batches_are_not_compared(warned):
    watch = watch_of()
    look(watch, rank=10.0, dataset="many_tiles")
    look(watch, rank=1.5, dataset="few_tiles")
    assert not warned


def test_a_run_that_goes_on_knows_its_start(warned):
    watch_of(record := RunRecord())
    look(watch_of(record), rank=10.0)
    look(watch_of(RunRecord.from_json(record.to_json())), rank=1.0)
    assert len(warned) == 1


def test_single_tiles_have_nothing_to_compare_with(warned):
    watch = watch_of(record := RunRecord())
    look(watch, rank=np.nan, cosine=np.nan)
    assert not warned and not record.first_ranks
