"""What a job of adaptation tells of itself, and what ends it."""

import functools
import json
import threading
import time
import types

import numpy as np
import pytest

from anysat_jax.status import FILE_NAME, describe
from anysat_jax.train import status as status_module
from anysat_jax.train import status as vitals_module
from anysat_jax.train import watchdog as watchdog_module
from anysat_jax.train.compile import Compiled
from anysat_jax.train.status import JobStatus
from anysat_jax.train.watchdog import Watchdog


@pytest.fixture
def ended(monkeypatch):
    """Set in place of the end of the process."""
    event = threading.Event()
    monkeypatch.setattr(vitals_module, "Watchdog", functools.partial(Watchdog, end=lambda code: event.set()))
    return event


def content(workdir):
    return json.loads((workdir / FILE_NAME).read_text())


def double():
    return Compiled(lambda x: 2 * x)


def test_batches_on_their_way_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "EVERY_SECONDS", 0.0)
    with StatusFile(tmp_path, "toy", 0) as status:
        status, program = JobStatus(tmp_path, 0.0, status), double()
        status.follow(lambda: status.evaluation_fields() | {"step": status.batches}, total_steps=3)
        with status.over_split("evaluating", "val", 10, program) as passing:
            for samples in passing.timed([4, 4, 2]):
                program(np.ones(samples))
                time.sleep(0.01)
                passing.done(samples)
                found = content(tmp_path)
                assert found["state"] == "evaluating" and found["progress"]["total"] == 10
        assert found["progress"] == {"of": "val", "samples": 10, "total": 10} and found["step"] == 3
        assert "at work on      val: 10 of 10 samples" in describe("run", found)
        after = content(tmp_path)
        assert after["state"] == "starting" and after["progress"] is None and after["mfu"] is None
        # Only the second batch was neither the first of its shape nor the last.
        assert 0 < after["tiles_per_second"] <= 400 and 0 <= after["input_wait_share"] <= 1


def test_tiles_that_are_left_out_count_once(tmp_path):
    with StatusFile(tmp_path, "toy", 0) as status:
        status = JobStatus(tmp_path, 0.0, status)
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
        StatusFile(tmp_path, "toy", 0) as status,
        JobStatus(tmp_path, 0.3, status).passing("evaluating", "val", 10, program) as passing,
    ):
        passing.done(4)
        assert ended.wait(60)
        found = content(tmp_path)
    assert found["state"] == "failed"
    assert "no batch of val finished for 0.3 s (config.watchdog_seconds)" in found["error"]
    assert "test_a_batch_that_hangs" in (tmp_path / "stacks-0.txt").read_text()


def test_neither_compiling_nor_many_batches_do(tmp_path, ended, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watchdog_module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(seconds):
        now[0] += seconds
        assert not ended.wait(0.3)  # it looks every 0.1 s

    def slow_to_trace(x):
        pass_time(5.0)
        return 2 * x

    program = Compiled(slow_to_trace)
    with JobStatus(tmp_path, 0.4).passing("evaluating", "val", 10, program) as passing:
        for _ in range(3):
            program(np.ones(2))
            pass_time(0.3)
            passing.done(2)
        now[0] += 0.5
        assert ended.wait(60)


def test_by_itself_it_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, before = JobStatus(), set(threading.enumerate())
    with status.over_split("evaluating", "val", 4, double()) as passing, status.watchdog("step", lambda: False):
        passing.done(4)
        assert set(threading.enumerate()) <= before
    status.set_state("reporting")
    assert status.batches == 1 and not list(tmp_path.iterdir())
