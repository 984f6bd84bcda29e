"""A run's folder is found writable and held before anything costs time."""

import errno
import os
import pathlib
import subprocess
import sys
import time

import pytest

from anysat_jax import main
from anysat_jax.errors import StorageError
from anysat_jax.train.workdir import Lock, hold
from tests.train.processes import start_processes

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TWO_PROCESSES = """
import pathlib, sys
import jax

address, index, shared, taken, *own = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from anysat_jax.train.errors import RunError
from anysat_jax.train.workdir import hold

for folder in (shared, taken, own[int(index)]):
    try:
        with hold(pathlib.Path(folder)):
            print("held", flush=True)
    except RunError as error:
        print(error, flush=True)
"""
UNWRITABLE = pathlib.Path("/sys")  # not even by root


def run_main(workdir) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "anysat_jax.main", "--config=configs/pretrain.py", f"--workdir={workdir}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_a_folder_is_made_held_and_given_back(tmp_path):
    workdir = tmp_path / "runs" / "new"
    with hold(workdir) as held:
        assert held == workdir and (workdir / "run.lock").is_file()
        with pytest.raises(StorageError, match="is in use by another run"):
            Lock(workdir).take()
        (workdir / "result").touch()
    assert [path.name for path in workdir.iterdir()] == ["result"]


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path):
    with hold(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path):  # one that was there stays
        pass
    assert tmp_path.is_dir()


def refused(workdir, reason) -> None:
    message = rf"the workdir {workdir} cannot be written \({reason}\); give another --workdir"
    with pytest.raises(StorageError, match=message), hold(workdir):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "File exists")
    refused(tmp_path / "file" / "below", "Not a directory")


@pytest.mark.skipif(not UNWRITABLE.is_dir(), reason="no folder here that nobody can write")
def test_a_folder_that_cannot_be_written_is_refused():
    refused(UNWRITABLE, "Operation not permitted|Permission denied|Read-only file system")


def test_a_disk_that_is_full_later_on_ends_the_run_in_one_sentence(tmp_path):
    def write():
        with hold(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=rf"{tmp_path} cannot be written \(No space left on device\); make room"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_put_back_gives_no_run_the_folder_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    first = main.choose_workdir(None, "mini")
    first.mkdir(parents=True)
    second = main.choose_workdir(None, "mini")
    assert first.name == "mini-20260101-000000" and second.name == "mini-20260101-000000-again"


def test_a_second_run_of_the_command_line_is_refused(tmp_path):
    with hold(tmp_path):
        refused = run_main(tmp_path)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"anysat_jax: {tmp_path} is in use by another run (process " in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_processes_hold_one_folder_or_are_both_refused(tmp_path):
    shared, taken, far, near = (tmp_path / name for name in ("shared", "taken", "far", "near"))
    with hold(taken):
        processes = start_processes(TWO_PROCESSES, 2, shared, taken, far, near, devices=1)
        (first, second) = (process.communicate(timeout=300)[0].splitlines() for process in processes)
    assert first[0] == second[0] == "held" and not shared.exists()
    assert f"{taken} is in use by another run" in first[1] and f"{taken} is in use by another run" in second[1]
    for said in (first[2], second[2]):
        assert "run.lock" in said and said.endswith("give a --workdir on a file system that all machines share")
