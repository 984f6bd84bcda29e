"""A run that hangs is ended, and says what it was at."""

import subprocess
import sys
import threading

import pytest

from anysat_jax.train import watchdog as watchdog_module
from anysat_jax.train.watchdog import Watchdog


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
    told = []
    watchdog, codes = watch(tmp_path, ended, on_hang=told.append)
    with watchdog:
        assert hang_here(ended)
    assert codes == [75]
    text = (tmp_path / "stacks-0.txt").read_text()
    assert "no step finished for 0.2 s (config.watchdog_seconds)" in text and "in hang_here" in text
    assert told == [f"no step finished for 0.2 s (config.watchdog_seconds); stacks are in {tmp_path / 'stacks-0.txt'}"]
    assert "in hang_here" in capfd.readouterr().err


def test_steps_that_finish_keep_it_quiet(tmp_path, ended, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watchdog_module.time, "monotonic", lambda: now[0])
    watchdog, codes = watch(tmp_path, ended)
    with watchdog:
        for _ in range(10):
            now[0] += 0.15
            watchdog()
            assert not ended.wait(0.06)  # it looks every 0.05 s
        now[0] += 0.25
        assert ended.wait(60)
    assert codes == [75]


def test_compiling_takes_its_time(tmp_path, ended):
    watchdog, codes = watch(tmp_path, ended, busy=lambda: True)
    with watchdog:
        assert not ended.wait(1.0)
    assert not codes


def test_what_is_watched_by_itself_takes_its_time_and_then_it_watches_again(tmp_path, ended):
    watchdog, codes = watch(tmp_path, ended, what="batch of val")
    with watchdog:
        with watchdog.resting():
            assert not ended.wait(1.0)
        assert ended.wait(60)
    assert codes == [75] and "no batch of val finished for 0.2 s" in (tmp_path / "stacks-0.txt").read_text()


def test_after_the_run_it_watches_no_more(tmp_path, ended):
    watchdog, codes = watch(tmp_path, ended)
    with watchdog:
        pass
    assert not ended.wait(1.0) and not codes


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


def test_a_disk_that_hangs_does_not_keep_it_from_ending(tmp_path):
    code = (
        "import pathlib, time\n"
        "from anysat_jax.train import watchdog\n"
        "watchdog.GRACE_SECONDS = 0.5\n"
        f"with watchdog.Watchdog(0.2, pathlib.Path({str(tmp_path)!r}), on_hang=lambda message: time.sleep(600)):\n"
        "    time.sleep(600)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 75, result.stderr
