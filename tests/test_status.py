"""The command that prints how runs are."""

import datetime
import json
import os
import re
import socket
import subprocess
import sys

import pytest

from anysat_jax.status import FILE_NAME, LOCK_FILE, STALE_SECONDS, main
from anysat_jax.train.workdir import lock_workdir


def write(folder, seconds_ago=3, **changes):
    updated = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    values = dict(
        state="running",
        step=120,
        total_steps=300,
        error=None,
        host=socket.gethostname(),
        pid=os.getpid(),
        losses={"predictive": 0.0123, "contrastive": 4.81},
        tiles_per_second=64.06,
        mfu=0.412,
        input_wait_share=0.03,
        last_checkpoint=100,
        device_memory={"peak_bytes": 12 * 2**30, "limit_bytes": 16 * 2**30},
        nonfinite_steps=2,
        skipped_records=0,
        health_warnings=1,
        updated=updated.isoformat(timespec="seconds"),
    )
    folder.mkdir(exist_ok=True)
    (folder / FILE_NAME).write_text(json.dumps(values | changes))
    return str(folder)


def test_one_run_in_a_few_lines(tmp_path, capsys):
    assert main([write(tmp_path)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{tmp_path}: running, step 120 of 300 (40%)",
        "  losses          predictive 0.0123, contrastive 4.8100",
        "  speed           64.1 tiles/s, MFU 41.2%, 3% of the time waiting for input",
        "  last checkpoint step 100",
        "  device memory   12.0 of 16.0 GiB at most",
        "  set aside       2 steps not finite, 1 warnings of the features' health",
    ]
    assert re.fullmatch(rf"  updated         \d+ s ago by process {os.getpid()} on {socket.gethostname()}", last)


def test_a_job_that_evaluates_says_how_far_it_is_and_what_was_best(tmp_path, capsys):
    found = dict(
        state="evaluating",
        progress={"of": "val", "samples": 1200, "total": 5000},
        best={"metric": "accuracy", "value": 0.51234, "epoch": 3},
        left_out_tiles=4,
        mfu=None,
    )
    assert main([write(tmp_path, **found)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: evaluating, step 120 of 300 (40%)"
    assert lines[1] == "  progress        val: 1,200 of 5,000 samples"
    assert lines[3] == "  best            accuracy 0.5123 at epoch 3"
    assert lines[4] == "  speed           64.1 tiles/s, 3% of the time waiting for input"
    assert lines[7].endswith("2 steps not finite, 4 tiles left out of evaluations, 1 warnings of the features' health")


def test_what_is_not_known_is_left_out(tmp_path, capsys):
    unknown = dict.fromkeys(("tiles_per_second", "mfu", "input_wait_share", "last_checkpoint", "device_memory"))
    early = unknown | {"state": "starting", "losses": {"predictive": None}, "nonfinite_steps": 0, "health_warnings": 0}
    assert main([write(tmp_path, **early)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["updated"]


def test_several_runs_are_a_table(tmp_path, capsys):
    other = write(tmp_path / "b", state="done", mfu=None, step=300)
    assert main([write(tmp_path / "a"), other]) == 0
    head, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["run", "state", "step", "loss", "tiles/s", "MFU", "input", "checkpoint", "updated"]
    assert first[1:8] == ["running", "120/300", "4.8223", "64.1", "41.2%", "3%", "100"]
    assert second[1:6] == ["done", "300/300", "4.8223", "64.1", "-"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(seconds_ago=STALE_SECONDS + 60), "stale: nothing was written for 11 min"),
        (dict(state="failed", error="step 7 is not finite"), "failed: step 7 is not finite"),
    ],
)
def test_what_is_wrong_with_a_run(tmp_path, capsys, changes, said):
    assert main([write(tmp_path, **changes)]) == 1
    assert said in capsys.readouterr().out


def test_a_run_that_no_longer_holds_its_lock_is_dead(tmp_path, capsys):
    run = write(tmp_path)
    with lock_workdir(tmp_path):
        assert main([run]) == 0
    (tmp_path / LOCK_FILE).touch()  # as a killed process leaves it
    assert main([run]) == 1
    assert "dead: its process no longer exists (killed?); start the same command again" in capsys.readouterr().out


def test_a_run_of_another_machine_may_be_stale_but_is_not_called_dead(tmp_path, capsys):
    (tmp_path / LOCK_FILE).touch()
    assert main([write(tmp_path, host="elsewhere")]) == 0
    assert main([write(tmp_path, host="elsewhere", seconds_ago=STALE_SECONDS + 60)]) == 1
    assert "stale" in capsys.readouterr().out


def test_a_finished_run_is_not_stale(tmp_path, capsys):
    assert main([write(tmp_path, state="done", seconds_ago=10**6)]) == 0
    assert "12 days ago" in capsys.readouterr().out


def test_a_clock_that_is_ahead_does_no_harm(tmp_path, capsys):
    assert main([write(tmp_path, seconds_ago=-3600)]) == 0
    assert " 0 s ago" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "", "[]", '{"state": "running"}', '{"updated": "yesterday"}'])
def test_a_folder_without_a_status_is_named(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / FILE_NAME).write_text(text)
    assert main([str(tmp_path), write(tmp_path / "good")]) == 1
    found = capsys.readouterr()
    assert str(tmp_path / FILE_NAME) in found.err and "running, step 120" in found.out


@pytest.mark.parametrize(
    "changes", [dict(total_steps=None), dict(step=10**400), dict(losses={"a": "b"}), dict(losses=[1])]
)
def test_a_status_that_cannot_be_shown_is_none(tmp_path, capsys, changes):
    assert main([write(tmp_path, **changes)]) == 1
    assert f"{tmp_path / FILE_NAME} is not the status of a run" in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    main([write(tmp_path, state="failed", error="\x1b[31mred", host="\x9b2J")])
    out = capsys.readouterr().out
    assert r"\x1b[31mred" in out and out.replace("\n", "").isprintable()


def test_it_starts_at_once():
    """No JAX: on a login node, a status should not take seconds."""
    code = "import sys, anysat_jax.status; sys.exit(any(name in sys.modules for name in ('jax', 'flax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
