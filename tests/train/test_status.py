"""status.json: what is in it, and when it is written."""

import dataclasses
import json

import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.errors import NonFiniteError, Preempted
from anysat_jax.status import FILE_NAME, describe, read_status, trouble
from anysat_jax.train import status as status_module
from anysat_jax.train.input import Fed
from anysat_jax.train.monitor import Finished, Meter
from anysat_jax.train.record import RunRecord
from anysat_jax.train.status import Sources, StatusFile, device_memory
from tests.train.toys import toy_masks


class Saved:
    """Stands for Checkpoints."""

    steps = (4, 8)


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


def sources():
    record, meter = RunRecord(), Meter(lambda fed: 100.0, peak=1000.0)
    record.add_step({"predictive": 0.5, "contrastive": 2.0}, "fake 10 m")
    record.add_step(None, "fake 10 m")
    record.add_skipped("fake", 3)
    meter(finished(1))
    return Sources(record, meter, Saved())


def finished(step):
    return Finished(step, Fed(fake_batch(("spot",), batch_size=4, extent=20.0), toy_masks(4), {}, waited=0.1), {}, 0.5)


def test_a_run_from_its_start_to_its_end(tmp_path, clock):
    with StatusFile(tmp_path, "toy", 10) as status:
        assert content(tmp_path)["state"] == "starting" and content(tmp_path)["step"] == 0
        status.follow(sources().values)
        status.state("running", step=8)
        found = content(tmp_path)
        assert (found["state"], found["step"], found["total_steps"]) == ("running", 8, 10)
        assert found["losses"] == {"predictive": 0.5, "contrastive": 2.0}
        assert (found["tiles_per_second"], found["mfu"], found["input_wait_share"]) == (8.0, 0.2, 0.2)
        assert (found["last_checkpoint"], found["device_memory"]) == (8, None)
        assert (found["nonfinite_steps"], found["skipped_records"], found["health_warnings"]) == (1, 3, 0)
        with status.saving():
            assert content(tmp_path)["state"] == "saving"
        assert content(tmp_path)["state"] == "running"
        with status.during("evaluating"):
            status.state("evaluating", progress=None)
        assert content(tmp_path)["state"] == "running"
        status.state("reporting", step=10)
    found = read_status(tmp_path)
    assert (found["state"], found["step"], found["error"]) == ("done", 10, None) and trouble(found) == ""
    assert "done, step 10 of 10 (100%)" in describe("run", found)


def test_it_is_written_every_few_seconds_only(tmp_path, clock):
    with StatusFile(tmp_path, "toy", 10) as status:
        status.follow(sources().values, step=0)
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
    with pytest.raises(type(error)), StatusFile(tmp_path, "toy", 10):
        raise error
    assert content(tmp_path)["state"] == state
    assert content(tmp_path)["error"] == (str(error) or type(error).__name__)


def test_what_fails_on_the_way_is_not_called_running(tmp_path):
    error = NonFiniteError("step 7 is not finite")
    with pytest.raises(NonFiniteError), StatusFile(tmp_path, "toy", 10) as status, status.during("evaluating"):
        raise error
    assert (content(tmp_path)["state"], content(tmp_path)["error"]) == ("failed", "step 7 is not finite")


def test_sources_may_have_more_to_say(tmp_path):
    with StatusFile(tmp_path, "toy", 10) as status:
        own = dataclasses.replace(sources(), meter=Meter(), more=lambda: {"best": {"value": 0.5}})
        status.follow(own.values)
        found = content(tmp_path)
        assert found["state"] == "starting" and found["best"] == {"value": 0.5} and found["mfu"] is None


def test_a_disk_that_is_full_costs_the_status_and_not_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with StatusFile(tmp_path, "toy", 10) as status:
        monkeypatch.setattr(status_module, "write_json", full)
        status.state("running")
    assert content(tmp_path)["state"] == "starting"


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module.jax, "process_index", lambda: 1)
    with StatusFile(tmp_path, "toy", 10) as status:
        status.state("running")
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_the_fullest_device():
    stats = [{"peak_bytes_in_use": peak, "bytes_limit": 100} for peak in (20, 70, 30)]
    assert device_memory([Device(one) for one in stats]) == {"peak_bytes": 70, "limit_bytes": 100}
    assert device_memory([Device(None)]) is None
