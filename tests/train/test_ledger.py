"""Throughput, finite values."""

import jax.numpy as jnp
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.train import ledger as ledger_module
from anysat_jax.train.errors import NonFiniteError
from anysat_jax.train.feed import Fed
from anysat_jax.train.ledger import Ledger, Throughput
from anysat_jax.train.summary import RunRecord
from tests.train.toys import toy_masks

NAMES = ["loss", "gradient of encoder/a", "gradient of encoder/b"]


class Lines:
    """Stands for RunLog."""

    def __init__(self):
        self.rows = []

    def write(self, *row):
        self.rows.append(row)


def fed(dataset="fake", patch_size=10.0, masks=None):
    batch = fake_batch(("spot",), batch_size=2, extent=20.0, patch_size=patch_size, dataset=dataset)
    return Fed(batch, masks or toy_masks(2), {})


def metrics(bad=(False, False, False)):
    numbers = {"loss": 3.0, "loss_predictive": 1.0, "loss_contrastive": 2.0}
    return {name: jnp.float32(value) for name, value in numbers.items()} | {
        "finite": jnp.array(not any(bad)),
        "nonfinite_leaves": jnp.array(bad),
    }


def test_laps_that_compile_do_not_count(monkeypatch):
    times = iter([0.0, 5.0, 7.0, 8.0])
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: next(times))
    throughput = Throughput()
    throughput.compiled()
    assert throughput.lap(4) == (0, 0.0)
    assert throughput.lap(4) == (4, 2.0) and throughput.latest == 2.0
    assert throughput.lap(4) == (4, 1.0) and throughput.latest == 4.0


def test_what_is_done_between_two_steps_is_no_training(monkeypatch):
    times = iter([0.0, 5.0, 105.0, 107.0])
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: next(times))
    throughput = Throughput()
    assert throughput.lap(4) == (4, 5.0)
    throughput.restart()
    assert throughput.lap(4) == (4, 2.0)


def test_metrics_are_written_one_step_later():
    record, lines = RunRecord(), Lines()
    ledger = Ledger(record, lines, NAMES)
    for step in (1, 2, 3):
        ledger.before_step(programs=1, compiling=False)
        ledger.after_step(step, fed(), metrics())
        assert [row[0] for row in lines.rows] == list(range(1, step))
    ledger.finish()
    ledger.finish()
    assert [row[0] for row in lines.rows] == [1, 2, 3] and record.steps == 3 and record.programs == 1
    assert lines.rows[0][1:3] == ("fake", 10.0) and record.losses["contrastive"].first == [2.0] * 3


def test_a_value_that_is_not_finite_stops_the_run_by_name():
    lines = Lines()
    ledger = Ledger(RunRecord(), lines, NAMES)
    ledger.after_step(7, fed("mini_flair", 20.0), metrics((False, False, True)))
    with pytest.raises(
        NonFiniteError, match=r"step 7 on dataset 'mini_flair' with patches of 20 m .* in: gradient of encoder/b\."
    ):
        ledger.finish()
    assert not lines.rows
