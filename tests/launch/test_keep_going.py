"""The restarts of one host: many after exit code 75, a few after other failures, none after being stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.tools import REPOSITORY, bash

SCRIPT = "launch/keep_going.sh"


def run(stand_ins, *codes: int, words: tuple[str, ...] = ()):
    stand_ins.exit_codes("train", *codes)
    return bash(SCRIPT, *words, "train", "--flag=a b", "c", PATH=stand_ins.path, ANYSAT_PAUSE="0")


@pytest.mark.parametrize(
    ("codes", "ends_with"),
    [
        ((0,), 0),
        ((75, 75, 75, 75, 75, 0), 0),
        ((1, 134, 137, 0), 0),
        ((1, 75, 1, 75, 1, 0), 0),
        ((1, 1, 1, 1), 1),
        ((75, 1, 137, 1, 75, 134), 134),
    ],
)
def test_how_often_it_starts_again(stand_ins, codes, ends_with):
    ended = run(stand_ins, *codes)
    assert ended.returncode == ends_with, ended.stderr
    assert stand_ins.calls == [["train", "--flag=a b", "c"]] * len(codes)
    assert ended.stderr.count("starting again") == len(codes) - 1


def test_the_number_of_retries_can_be_given(stand_ins):
    assert run(stand_ins, 75, 2, words=("--retries", "0")).returncode == 2
    assert len(stand_ins.calls) == 2


def test_a_run_that_always_hangs_uses_up_its_restarts(stand_ins):
    stand_ins.exit_codes("train", *[75] * 5)
    ended = bash(SCRIPT, "train", PATH=stand_ins.path, ANYSAT_PAUSE="0", ANYSAT_RESTARTS="2")
    assert ended.returncode == 75 and len(stand_ins.calls) == 3
    assert "all 2 restarts are used: does it hang?" in ended.stderr


def test_without_a_command_it_says_how_to_use_it():
    assert bash(SCRIPT).returncode == 2
    assert "usage: bash launch/keep_going.sh" in bash(SCRIPT, "--retries", "1").stderr


def test_its_help_teaches_and_a_wrong_number_is_one_sentence(stand_ins):
    helped = bash(SCRIPT, "--help")
    assert helped.returncode == 0 and "usage: bash launch/keep_going.sh" in helped.stdout
    assert "not run again" in helped.stdout.splitlines()[-1] and "set -e" not in helped.stdout
    wrong = run(stand_ins, 0, words=("--retries", "many"))
    assert wrong.returncode == 2 and not stand_ins.calls
    assert wrong.stderr == "keep_going: --retries needs a number, and got 'many'\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_command_save_and_ends_both(stand_ins, tmp_path, sent):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    stand_ins.add(
        "train", f"trap 'sleep 0.3; touch {saved}; exit 75' TERM; touch {ready}; while :; do sleep 0.05; done"
    )
    # A shell cannot trap what was ignored when it began, as SIGINT is where the tests run in the background.
    begin = (
        f"import os, signal; signal.signal({sent:d}, signal.SIG_DFL); os.execvp('bash', ['bash', {SCRIPT!r}, 'train'])"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", begin],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": stand_ins.path},
        stderr=subprocess.PIPE,
    )
    wait_for(ready.exists)
    running.send_signal(sent)
    said = running.communicate(timeout=30)[1].decode()
    assert running.returncode == 75 and saved.exists() and "stopped with exit code 75" in said
    assert len(stand_ins.calls) == 1


def test_a_signal_in_the_pause_ends_it(stand_ins):
    stand_ins.exit_codes("train", 75)
    running = subprocess.Popen(
        ["bash", SCRIPT, "train"],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": stand_ins.path, "ANYSAT_PAUSE": "600"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "starting again in 600 s" in running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 75 and len(stand_ins.calls) == 1


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
