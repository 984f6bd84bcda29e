"""A run that hangs is ended, and says what it was at."""

import json
import os
import subprocess
import sys
import threading

import jax
import pytest

from anysat_jax.train import watchdog as watchdog_module
from anysat_jax.train.watchdog import MOST, Hangs, Watchdog


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


def end_of_process(workdir, before="", options=""):
    """A process of its own that hangs within a watchdog."""
    code = (
        "import pathlib, time\n"
        "import jax\n"
        f"from anysat_jax.train import watchdog\n{before}\n"
        f"with watchdog.Watchdog(0.2, pathlib.Path({str(workdir)!r}){options}):\n"
        "    time.sleep(600)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


SHORT_LAST_WORDS = "watchdog.GRACE_SECONDS = 0.5"
THE_LAST_WORDS_HANG = ", on_hang=lambda message: time.sleep(600)"


def test_a_disk_that_hangs_does_not_keep_it_from_ending(tmp_path):
    result = end_of_process(tmp_path, SHORT_LAST_WORDS, THE_LAST_WORDS_HANG)
    assert result.returncode == 75, result.stderr


SHORT_ONCE_IT_GIVES_UP = """
def too_often(found, say=watchdog.too_often):
    watchdog.GRACE_SECONDS = 0.5
    return say(found)
watchdog.too_often = too_often
"""


def test_a_disk_that_hangs_after_the_last_hang_was_counted_does_not_keep_it_from_giving_up(tmp_path):
    Hangs(count=MOST - 1).write(tmp_path)
    result = end_of_process(tmp_path, SHORT_ONCE_IT_GIVES_UP, THE_LAST_WORDS_HANG)
    assert result.returncode == 1, result.stderr


def test_a_disk_that_hangs_at_once_does_not_keep_it_from_ending(tmp_path):
    """Then nothing can be counted, and it may be started again."""
    os.mkfifo(tmp_path / "stacks-0.txt")  # nobody reads it: opening it takes for ever
    result = end_of_process(tmp_path, SHORT_LAST_WORDS)
    assert result.returncode == 75 and not (tmp_path / "hangs.json").exists(), result.stderr


def hang(workdir, told=None):
    """A start of a run that hangs. Returns the exit code."""
    ended = threading.Event()
    watchdog, codes = watch(workdir, ended, on_hang=lambda message: told is None or told.append(message))
    with watchdog:
        assert hang_here(ended)
    return codes[0]


def test_from_the_third_hang_in_a_row_on_starting_again_is_no_use(tmp_path):
    told = []
    assert [hang(tmp_path, told) for _ in range(4)] == [75, 75, 1, 1]
    assert ["in a row" in said for said in told] == [False, False, True, True]
    assert f"stacks are in {tmp_path / 'stacks-0.txt'}; it is hang 3 in a row before the first checkpoint" in told[2]
    assert (tmp_path / "stacks-0.txt").read_text().count("in hang_here") == 4


def test_a_newer_checkpoint_starts_the_count_anew(tmp_path):
    told, codes = [], []
    for step in (10, 10, 20, 20, 20):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / f"{step + 10}.orbax-checkpoint-tmp-1").mkdir(exist_ok=True)  # not whole yet
        codes.append(hang(tmp_path, told))
    assert codes == [75, 75, 75, 75, 1] and "it is hang 3 in a row since the checkpoint of step 20" in told[-1]


def test_processes_that_hang_together_count_one_hang_whoever_is_first(tmp_path, monkeypatch):
    Hangs(count=1).write(tmp_path)
    ended = [threading.Event(), threading.Event()]
    watchdogs = []
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        watchdogs.append(watch(tmp_path, ended[index]))
    (first, first_codes), (second, second_codes) = watchdogs
    with first, second:
        assert ended[0].wait(60) and ended[1].wait(60)
    assert first_codes == second_codes == [75] and Hangs.read(tmp_path).count == 2


def test_a_count_that_cannot_be_kept_still_ends_the_run(tmp_path):
    (tmp_path / "hangs.json").mkdir()
    assert hang(tmp_path) == 75


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"count": null, "checkpoint": 3}'])
def test_a_spoiled_count_begins_anew(tmp_path, text):
    (tmp_path / "hangs.json").write_text(text)
    assert hang(tmp_path) == 75
    assert json.loads((tmp_path / "hangs.json").read_text()) == {"count": 1, "checkpoint": 0}


def test_the_last_hang_ends_a_real_process_with_1(tmp_path):
    """Also where it is not the first process that hangs."""
    Hangs(count=MOST - 1).write(tmp_path)
    result = end_of_process(tmp_path, "jax.process_index = lambda: 1")
    assert result.returncode == 1 and "it is hang 3 in a row" in result.stderr, result.stderr
    assert str(tmp_path / "stacks-1.txt") in result.stderr and Hangs.read(tmp_path).count == MOST
