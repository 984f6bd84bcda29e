"""What is kept of each step, and what is done about one that is not finite."""

import dataclasses

import jax.numpy as jnp
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.errors import NonFiniteError
from anysat_jax.train.input import Fed
from anysat_jax.train.monitor import Ledger, count_skipped
from anysat_jax.train.record import RunRecord
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


BAD = (True, False, False)


def run(kinds, **options):
    """A ledger after steps that are finite ("."), or are not ("x")."""
    lines, record = Lines(), RunRecord()
    ledger = Ledger(record, lines, NAMES, **options)
    for step, kind in enumerate(kinds, 1):
        ledger.after_step(step, fed(), metrics(BAD if kind == "x" else (False,) * 3))
    ledger.finish()
    return record, lines


def test_steps_that_are_not_finite_are_counted_and_the_run_goes_on():
    record, lines = run(".x.xx.", max_nonfinite=3)
    assert record.steps == 6 and record.nonfinite_steps == 3 and len(lines.rows) == 6
    assert record.losses["predictive"].last == [1.0] * 3  # of the others


def test_too_many_in_a_row_end_it():
    with pytest.raises(NonFiniteError, match=r"step 6 on dataset 'fake' .* in: loss\."):
        run("x.x.xx", max_nonfinite=2)


def test_the_samples_of_such_a_step_are_named():
    with pytest.raises(NonFiniteError, match=r"start again from the last checkpoint; samples: fake$"):
        run("x", blame=lambda fed: f"samples: {fed.batch.dataset}")


def test_watchers_see_every_step_once_it_is_finished():
    seen = []
    run(".x.", max_nonfinite=2, watchers=[lambda finished: seen.append((finished.step, finished.kind))])
    assert seen == [(1, "fake 10 m"), (2, "fake 10 m"), (3, "fake 10 m")]


def test_tiles_that_were_left_out_are_counted():
    record = RunRecord()
    ledger = Ledger(record, Lines(), NAMES, watchers=[count_skipped(record)])
    for step, skipped in enumerate((0, 2, 1), 1):
        ledger.after_step(step, dataclasses.replace(fed(), skipped=skipped), metrics())
    ledger.finish()
    assert record.skipped == {"fake": 3}
