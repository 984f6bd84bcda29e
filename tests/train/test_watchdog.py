"""A run that hangs is ended, and its stacks are written down."""

import os
import subprocess
import sys
import threading

import pytest

from anysat_jax.train import status as status_module
from anysat_jax.train.status import Watchdog


@pytest.fixture
def ended():
    return threading.Event()


def watch(workdir, ended, seconds=0.2, **options):
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    return Watchdog(seconds, workdir, end=end, **options), codes


def hang_here(ended):
    return ended.wait(60)


def test_a_step_that_never_finishes_ends_the_run_and_leaves_the_stacks(tmp_path, ended, capfd):
    messages = []
    watchdog, codes = watch(tmp_path, ended, on_hang=messages.append)
    with watchdog:
        assert hang_here(ended)
    assert codes == [75]
    text = (tmp_path / "stacks-0.txt").read_text()
    assert "no step finished for 0.2 s (config.watchdog_seconds)" in text and "in hang_here" in text
    assert messages == [
        f"no step finished for 0.2 s (config.watchdog_seconds); stacks are in {tmp_path / 'stacks-0.txt'}"
    ]
    assert "in hang_here" in capfd.readouterr().err


def test_steps_that_finish_keep_it_quiet(tmp_path, ended, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: now[0])
    watchdog, codes = watch(tmp_path, ended)
    with watchdog:
        for _ in range(10):
            now[0] += 0.15
            watchdog()
            assert not ended.wait(0.06)  # it looks every 0.05 s
        now[0] += 0.25
        assert ended.wait(60)
    assert codes == [75]


def test_it_watches_neither_compiling_nor_pauses_nor_what_follows_the_run(tmp_path, ended):
    compiling = [True]
    watchdog, codes = watch(tmp_path, ended, what="batch of val", busy=lambda: compiling[0])
    with watchdog:
        assert not ended.wait(0.5)
        with watchdog.paused():
            compiling[0] = False
            assert not ended.wait(0.5)
    assert not ended.wait(0.5) and not codes
    watchdog, codes = watch(tmp_path, ended, what="batch of val")
    with watchdog:
        with watchdog.paused():
            assert not ended.wait(0.3)
        assert ended.wait(60)  # it watches again
    assert codes == [75] and "no batch of val finished for 0.2 s" in (tmp_path / "stacks-0.txt").read_text()


def test_it_may_be_switched_off(tmp_path, ended):
    watchdog, codes = watch(tmp_path, ended, seconds=0.0)
    with watchdog:
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]
    assert not codes


def test_a_disk_that_is_gone_does_not_keep_it_from_ending(tmp_path, ended):
    watchdog, codes = watch(tmp_path / "nowhere", ended)
    with watchdog:
        assert ended.wait(60)
    assert codes == [75]


def end_of_process(workdir, body="time.sleep(600)", before="", options=""):
    """A process of its own that hangs within a watchdog."""
    code = (
        "import pathlib, re, time\n"
        f"from anysat_jax.train import status\n{before}\n"
        f"with status.Watchdog(0.2, pathlib.Path({str(workdir)!r}){options}):\n"
        f"    {body}\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


SHORT_GRACE = "status.GRACE_SECONDS = 0.5"


@pytest.mark.parametrize("where", ["stacks", "status"])
def test_a_disk_that_hangs_does_not_keep_it_from_ending(tmp_path, where):
    if where == "stacks":
        os.mkfifo(tmp_path / "stacks-0.txt")  # without a reader opening it blocks for ever
    options = ", on_hang=lambda message: time.sleep(600)" if where == "status" else ""
    result = end_of_process(tmp_path, before=SHORT_GRACE, options=options)
    assert result.returncode == 75, result.stderr


def test_a_call_that_never_releases_pythons_lock_is_ended_too(tmp_path):
    """Matching this takes for ever and runs no other thread; faulthandler ends the process, with its own exit code."""
    hang = "time.sleep(0.3 / 4); re.match('(a+)+b', 'a' * 100)"
    result = end_of_process(tmp_path, body=hang, before=SHORT_GRACE)
    assert result.returncode == 1 and "Timeout" in result.stderr and "in match" in result.stderr
