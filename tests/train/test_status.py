"""JobStatus: what status.json holds and when it is written, its watchdogs, and the tiles left out."""

import functools
import json
import threading
import time
import types

import jax
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.errors import NonFiniteError, Preempted
from anysat_jax.status import FILE_NAME, describe, read_status
from anysat_jax.train import status as status_module
from anysat_jax.train.compile import Compiled
from anysat_jax.train.input import StepInput
from anysat_jax.train.monitor import Finished, Meter
from anysat_jax.train.record import RunRecord
from anysat_jax.train.status import JobStatus, Watchdog, device_memory, training_fields
from tests.train.toys import toy_masks


class Device:
    """Stands for a device with memory."""

    def __init__(self, stats):
        self.memory_stats = lambda: stats


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: now[0])
    return now


def content(workdir):
    return json.loads((workdir / FILE_NAME).read_text())


def fields():
    record, meter = RunRecord(), Meter(peak=1000.0)
    record.add_step({"predictive": 0.5, "contrastive": 2.0}, "fake 10 m")
    record.add_step(None, "fake 10 m")
    record.skipped["fake"] = 3
    meter._laps.append((4, 0.5, 0.1, 100.0))
    return training_fields(record, meter, (4, 8))


def finished(step):
    batch = fake_batch(("spot",), batch_size=4, extent=20.0)
    return Finished(step, StepInput((batch, toy_masks(4)), {}), {})


def test_a_run_from_its_start_to_its_end(tmp_path, clock):
    with JobStatus(tmp_path, "toy", 10) as status:
        assert content(tmp_path)["state"] == "starting" and content(tmp_path)["step"] == 0
        status.follow(fields)
        status.set_state("running", step=8)
        found = content(tmp_path)
        assert (found["state"], found["step"], found["total_steps"]) == ("running", 8, 10)
        assert found["losses"] == {"predictive": 0.5, "contrastive": 2.0}
        assert (found["tiles_per_second"], found["mfu"], found["input_wait_share"]) == (8.0, 0.2, 0.2)
        assert (found["last_checkpoint"], found["device_memory"]) == (8, None)
        assert (found["nonfinite_steps"], found["skipped_records"], found["health_warnings"]) == (1, 3, 0)
        with status.during("saving"):
            assert content(tmp_path)["state"] == "saving"
        assert content(tmp_path)["state"] == "running"
        with status.during("evaluating"):
            status.set_state("evaluating", progress=None)
        assert content(tmp_path)["state"] == "running"
        status.set_state("reporting", step=10)
    found = read_status(tmp_path)
    assert (found["state"], found["step"], found["error"], found["trouble"]) == ("done", 10, None, "")
    assert "done, step 10 of 10 (100%)" in describe("run", found)


def test_it_is_written_every_few_seconds_only(tmp_path, clock):
    with JobStatus(tmp_path, "toy", 10) as status:
        status.follow(fields, step=0)
        clock[0] += 1.0
        status(finished(1))
        assert content(tmp_path)["step"] == 0
        clock[0] += status_module.EVERY_SECONDS
        status(finished(2))
        assert content(tmp_path)["step"] == 2


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Preempted("asked to stop"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (NonFiniteError("step 7 is not finite"), "failed"),
        (RuntimeError(), "failed"),
    ],
)
def test_how_it_ended_and_why(tmp_path, error, state):
    with pytest.raises(type(error)), JobStatus(tmp_path, "toy", 10):
        raise error
    assert content(tmp_path)["state"] == state
    assert content(tmp_path)["error"] == (str(error) or type(error).__name__)


def test_what_fails_on_the_way_is_not_called_running(tmp_path):
    error = NonFiniteError("step 7 is not finite")
    with pytest.raises(NonFiniteError), JobStatus(tmp_path, "toy", 10) as status, status.during("evaluating"):
        raise error
    assert (content(tmp_path)["state"], content(tmp_path)["error"]) == ("failed", "step 7 is not finite")


def test_a_disk_that_is_full_costs_the_status_and_not_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with JobStatus(tmp_path, "toy", 10) as status:
        monkeypatch.setattr(status_module, "write_json", full)
        status.set_state("running")
    assert content(tmp_path)["state"] == "starting"


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module.jax, "process_index", lambda: 1)
    with JobStatus(tmp_path, "toy", 10) as status:
        status.set_state("running")
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_the_fullest_device():
    stats = [{"peak_bytes_in_use": peak, "bytes_limit": 100} for peak in (20, 70, 30)]
    assert device_memory([Device(one) for one in stats]) == {"peak_bytes": 70, "limit_bytes": 100}
    assert device_memory([Device(None)]) is None


@pytest.fixture
def ended(monkeypatch):
    """Set in place of the end of the process."""
    event = threading.Event()
    monkeypatch.setattr(status_module, "Watchdog", functools.partial(Watchdog, end=lambda code: event.set()))
    return event


def double():
    return Compiled(jax.jit(lambda x: 2 * x))


def test_batches_on_their_way_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "EVERY_SECONDS", 0.0)
    with JobStatus(tmp_path, "toy") as status:
        program = double()
        status.follow(lambda: status.evaluation_fields() | {"step": status.batches}, total_steps=3)
        with status.over_split("evaluating", "val", 10, program) as progress:
            for samples in progress.timed([4, 4, 2]):
                program(np.ones(samples))
                time.sleep(0.01)
                progress.done(samples)
                found = content(tmp_path)
                assert found["state"] == "evaluating" and found["progress"]["total"] == 10
        assert found["progress"] == {"of": "val", "samples": 10, "total": 10} and found["step"] == 3
        assert "progress        val: 10 of 10 samples" in describe("run", found)
        after = content(tmp_path)
        assert after["state"] == "starting" and after["progress"] is None and after["mfu"] is None
        # Only the second batch was neither the first of its shape nor the last.
        assert 0 < after["tiles_per_second"] <= 400 and 0 <= after["input_wait_share"] <= 1


def test_tiles_that_are_left_out_count_once(tmp_path):
    with JobStatus(tmp_path, "toy") as status:
        status.follow(status.evaluation_fields)
        for tiles in ([3, 3], [3], []):
            status.leave_out("val", np.array(tiles, np.int32))
        status.leave_out("test", [5, 1])
        status.leave_out("train", [])
    assert status.left_out == {"test": [1, 5], "val": [3]}
    assert content(tmp_path)["left_out_tiles"] == 3
    assert "3 tiles left out of evaluations" in describe("run", content(tmp_path))


def test_a_batch_that_hangs_ends_the_job(tmp_path, ended):
    program = double()
    with (
        JobStatus(tmp_path, "toy", watchdog_seconds=0.3) as status,
        status.over_split("evaluating", "val", 10, program) as progress,
    ):
        progress.done(4)
        assert ended.wait(60)
        found = content(tmp_path)
    assert found["state"] == "failed"
    assert "no batch of val finished for 0.3 s (config.watchdog_seconds)" in found["error"]
    assert "test_a_batch_that_hangs" in (tmp_path / "stacks-0.txt").read_text()


def test_neither_compiling_nor_many_batches_do(tmp_path, ended, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(status_module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(seconds):
        now[0] += seconds
        assert not ended.wait(0.3)  # it looks every 0.1 s

    def slow_to_trace(x):
        pass_time(5.0)
        return 2 * x

    program = Compiled(jax.jit(slow_to_trace))
    with JobStatus(tmp_path, watchdog_seconds=0.4).over_split("evaluating", "val", 10, program) as progress:
        for _ in range(3):
            program(np.ones(2))
            pass_time(0.3)
            progress.done(2)
        now[0] += 0.5
        assert ended.wait(60)


def test_by_itself_it_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, before = JobStatus(), set(threading.enumerate())
    with status.over_split("evaluating", "val", 4, double()) as progress, status.watchdog("step", lambda: False):
        progress.done(4)
        assert set(threading.enumerate()) <= before
    status.set_state("reporting")
    assert status.batches == 1 and not list(tmp_path.iterdir())
