"""Metrics of steps, steps that are not finite, and speed."""

import jax.numpy as jnp
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.errors import NonFiniteError
from anysat_jax.train import monitor as monitor_module
from anysat_jax.train.input import StepInput
from anysat_jax.train.metrics_log import StepColumns
from anysat_jax.train.monitor import WINDOW, Meter, StepMonitor
from anysat_jax.train.record import RunRecord
from tests.train.toys import toy_masks

PARAMS = {"encoder": {"a": 0, "b": 0}}
COLUMNS = StepColumns(("loss",), str, {"predictive": "loss_predictive", "contrastive": "loss_contrastive"}, ("loss",))


class Lines:
    """Stands for MetricsLog."""

    def __init__(self):
        self.rows = []

    def write(self, *row):
        self.rows.append(row)


def step_input(dataset="fake", patch_size=10.0, masks=None, skipped=0):
    batch = fake_batch(("spot",), batch_size=2, extent=20.0, patch_size=patch_size, dataset=dataset)
    return StepInput((batch, masks or toy_masks(2)), {}, skipped=skipped)


def metrics(bad=(False, False, False)):
    numbers = {"loss": 3.0, "loss_predictive": 1.0, "loss_contrastive": 2.0}
    return {name: jnp.float32(value) for name, value in numbers.items()} | {
        "finite": jnp.array(not any(bad)),
        "nonfinite_leaves": jnp.array(bad),
    }


def test_metrics_are_written_one_step_later():
    record, lines = RunRecord(), Lines()
    monitor = StepMonitor(record, lines, COLUMNS, PARAMS, Meter())
    for step in (1, 2, 3):
        monitor.after_step(step, step_input(), metrics())
        assert [row[0] for row in lines.rows] == list(range(1, step))
    monitor.flush()
    monitor.flush()
    assert [row[0] for row in lines.rows] == [1, 2, 3] and record.steps == 3
    assert lines.rows[0][1:3] == ("fake", 10.0) and record.losses["contrastive"].first == [2.0] * 3


def test_a_value_that_is_not_finite_stops_the_run_by_name():
    lines = Lines()
    monitor = StepMonitor(RunRecord(), lines, COLUMNS, PARAMS, Meter())
    monitor.after_step(7, step_input("mini_flair", 20.0), metrics((False, False, True)))
    with pytest.raises(
        NonFiniteError, match=r"step 7 on dataset 'mini_flair' with patches of 20 m .* in: gradient of encoder/b\."
    ):
        monitor.flush()
    assert not lines.rows


BAD = (True, False, False)


def run(kinds, **options):
    """A monitor after steps that are finite ("."), or are not ("x")."""
    lines, record = Lines(), RunRecord()
    monitor = StepMonitor(record, lines, COLUMNS, PARAMS, Meter(), **options)
    for step, kind in enumerate(kinds, 1):
        monitor.after_step(step, step_input(), metrics(BAD if kind == "x" else (False,) * 3))
    monitor.flush()
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
        run("x", describe_samples=lambda inputs, metrics: f"samples: {inputs.batch.dataset}")


def test_hooks_see_every_step_once_it_is_finished():
    seen = []
    run(".x.", max_nonfinite=2, hooks=[lambda finished: seen.append((finished.step, finished.kind))])
    assert seen == [(1, "fake 10 m"), (2, "fake 10 m"), (3, "fake 10 m")]


def test_tiles_that_were_left_out_are_counted():
    record = RunRecord()
    monitor = StepMonitor(record, Lines(), COLUMNS, PARAMS, Meter())
    for step, skipped in enumerate((0, 2, 1), 1):
        monitor.after_step(step, step_input(skipped=skipped), metrics())
    monitor.flush()
    assert record.skipped == {"fake": 3}


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now[0])
    return now


def lap(meter, clock, seconds, tiles=4, **values):
    clock[0] += seconds
    return meter.lap(tiles, **values)


def test_laps_that_compile_do_not_count(clock):
    meter = Meter()
    meter.exclude()
    assert lap(meter, clock, 5.0) == 0.0 and meter.latest == 0.8
    assert meter.values() == {"tiles_per_second": None, "mfu": None, "input_wait_share": None}
    assert lap(meter, clock, 2.0) == 2.0 and meter.latest == 2.0
    assert lap(meter, clock, 1.0) == 1.0 and meter.latest == 4.0
    assert meter.values()["tiles_per_second"] == 8 / 3


def test_a_run_counts_the_tiles_of_such_steps_no_more_than_their_time(clock):
    record, meter = RunRecord(), Meter()
    monitor = StepMonitor(record, Lines(), COLUMNS, PARAMS, meter)
    meter.exclude()
    for step in (1, 2, 3):
        monitor.after_step(step, step_input(), metrics())
        clock[0] += 2.0
    monitor.flush()
    assert (record.steps, record.tiles, record.seconds) == (3, 4, 4.0)


def test_what_is_done_between_two_steps_is_no_training(clock):
    meter = Meter()
    assert lap(meter, clock, 5.0) == 5.0
    clock[0] += 100.0
    meter.reset_timer()
    assert lap(meter, clock, 2.0) == 2.0


def test_speed_is_a_mean_over_the_latest_steps(clock):
    meter = Meter(peak=1000.0)
    lap(meter, clock, 1.0, tiles=4, waited=0.5, flops=400.0)
    lap(meter, clock, 3.0, tiles=8, waited=0.5, flops=800.0)
    assert meter.values() == {"tiles_per_second": 3.0, "mfu": 1200 / 4 / 1000, "input_wait_share": 0.25}
    for _ in range(WINDOW):
        lap(meter, clock, 1.0, tiles=2)
    assert meter.values()["tiles_per_second"] == 2.0


def test_flops_are_counted_once_for_each_kind_of_batch(clock):
    counted, meter = [], Meter(peak=1000.0)
    monitor = StepMonitor(
        RunRecord(), Lines(), COLUMNS, PARAMS, meter, count_flops=lambda inputs: counted.append(inputs) or 100.0
    )
    for step, patch_size in enumerate((10.0, 10.0, 20.0, 10.0), 1):
        monitor.after_step(step, step_input(patch_size=patch_size), metrics())
        clock[0] += 1.0
    monitor.flush()
    assert [inputs.batch.patch_size for inputs in counted] == [10.0, 20.0]
    assert meter.values()["mfu"] == pytest.approx(0.1)


def test_where_the_rate_of_the_devices_is_not_known_there_is_no_utilisation(clock):
    meter = Meter()
    for _ in range(2):
        lap(meter, clock, 2.0, waited=0.5, flops=100.0)
    assert meter.values() == {"tiles_per_second": 2.0, "mfu": None, "input_wait_share": 0.25}
