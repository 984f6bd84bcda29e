"""The folder of a run: writable, locked by one run at a time, released by the kernel; the signal to stop."""

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest

from anysat_jax import main
from anysat_jax.errors import Preempted, StorageError
from anysat_jax.status import LOCK_FILE
from anysat_jax.train import workdir as workdir_module
from anysat_jax.train.workdir import WITHOUT_LOCKS, StopRequest, lock_workdir
from tests.train.processes import start_processes

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import pathlib, sys, time
from anysat_jax.train.workdir import lock_workdir
with lock_workdir(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""
TWO_PROCESSES = """
import pathlib, sys
import jax

address, index, shared, taken, *own = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from anysat_jax.errors import RunError
from anysat_jax.train.workdir import lock_workdir

for folder in (shared, taken, own[int(index)]):
    try:
        with lock_workdir(pathlib.Path(folder)):
            print("locked", flush=True)
    except RunError as error:
        print(error, flush=True)

import concurrent.futures, os, signal
from anysat_jax.train.compile import wait_for
from anysat_jax.train.distributed import agree
from anysat_jax.train.workdir import StopRequest

compiling = concurrent.futures.Future()
if index == "0":  # whose program is there, and who waits for the other
    compiling.set_result(None)
else:
    os.kill(os.getpid(), signal.SIGTERM)
try:
    with StopRequest(enabled=False):
        agree(lambda: wait_for(compiling))
except RunError as error:
    print(type(error).__name__, error, flush=True)
"""
STOPPED_OUTSIDE = """
import hashlib, os, signal, sys, time
from anysat_jax import main
from anysat_jax.train import distributed
from anysat_jax.train.workdir import StopRequest, end_soon_on_interrupt

main._WORKDIR = None
address, index = sys.argv[1:]
end_soon_on_interrupt()
distributed.start(f"{address},2,{index}")


def work(config):
    if index == "0":  # opens its data, in a long call of C
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    with StopRequest(enabled=False):  # the other one is in its step loop already, and waits for the first
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        distributed.agree(lambda: None)


signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))  # which becomes SIGTERM
main.run_job = work
main._CONFIG, main._PROCESSES = type("", (), {"value": 1}), type("", (), {"value": ""})
main.end_soon_on_interrupt = lambda: None
main.main([])
"""
UNWRITABLE = pathlib.Path("/sys")  # also by root


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(workdir_module, "PAUSE_SECONDS", 0.001)  # between attempts to lock


def refused(workdir, message) -> None:
    with pytest.raises(StorageError, match=message), lock_workdir(workdir):
        pass


def test_a_folder_is_made_locked_and_released(tmp_path):
    workdir = tmp_path / "runs" / "new"
    with lock_workdir(workdir) as locked:
        assert locked == workdir and (workdir / LOCK_FILE).is_file()
        refused(
            workdir, rf"{workdir} is in use by another run \(process {os.getpid()} on {socket.gethostname()}, since "
        )
        (workdir / "result").touch()
    assert [path.name for path in workdir.iterdir()] == ["result"]
    with lock_workdir(workdir):
        pass


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with lock_workdir(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    with lock_workdir(tmp_path):  # one that existed stays
        pass
    assert tmp_path.is_dir()


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"locked\n"
        refused(
            tmp_path,
            rf"{tmp_path} is in use by another run \(process {holder.pid} on {socket.gethostname()}, since "
            r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\); wait for its end, stop it, or give another --workdir",
        )
        command = [sys.executable, "-m", "anysat_jax.main", "--config=configs/pretrain.py", f"--workdir={tmp_path}"]
        second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert second.returncode == 1 and "Traceback" not in second.stderr
        assert f"anysat_jax: {tmp_path} is in use by another run (process {holder.pid}" in second.stderr
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # also before its parent has reaped it
        assert str(holder.pid) in (tmp_path / LOCK_FILE).read_text()
        with lock_workdir(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    finally:
        holder.kill()
        holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_want_a_folder_one_gets_it(tmp_path):
    together, over, locked = threading.Barrier(8), threading.Barrier(8), []

    def want() -> None:
        together.wait()
        try:
            with lock_workdir(tmp_path):
                locked.append(True)
                over.wait()
        except StorageError:
            over.wait()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert locked == [True] and list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The file is opened, and removed by the run that ends, before it can be locked."""
    flock, calls = fcntl.flock, []

    def flock_after_removal(file, how):
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / LOCK_FILE).unlink()
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    with lock_workdir(tmp_path):
        assert len(calls) == 2
        refused(tmp_path, "in use by another run")


def test_a_file_system_without_locks_is_refused_unless_accepted(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    refused(tmp_path, rf"has no file locks \(Function not implemented\).* give a --workdir .* or set {WITHOUT_LOCKS}=1")
    monkeypatch.setenv(WITHOUT_LOCKS, "1")
    with lock_workdir(tmp_path):
        assert "nothing keeps a second run from writing there" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_writable_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for workdir, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        refused(workdir, rf"the workdir {workdir} cannot be written \({reason}\); give another --workdir")


@pytest.mark.skipif(not UNWRITABLE.is_dir(), reason="no folder here that is never writable")
def test_a_folder_that_cannot_be_written_is_refused():
    refused(UNWRITABLE, r"cannot be written \((Operation not permitted|Permission denied|Read-only file system)\)")


def test_a_disk_that_is_full_leaves_no_lock(tmp_path, monkeypatch):
    take = workdir_module._take

    def take_when_full(path):
        return mock.Mock(
            wraps=take(path), write=mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        )

    monkeypatch.setattr(workdir_module, "_take", take_when_full)
    refused(tmp_path, r"cannot be written \(No space left on device\); give another --workdir")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_later_on_ends_the_run_in_one_sentence(tmp_path):
    def write():
        with lock_workdir(tmp_path):
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


def test_two_processes_lock_one_folder_or_are_both_refused_and_stop_together(tmp_path):
    shared, taken, far, near = (tmp_path / name for name in ("shared", "taken", "far", "near"))
    with lock_workdir(taken):
        processes = start_processes(TWO_PROCESSES, 2, shared, taken, far, near, devices=1)
        (first, second) = (process.communicate(timeout=300)[0].splitlines() for process in processes)
    assert first[0] == second[0] == "locked" and not shared.exists()
    assert f"{taken} is in use by another run" in first[1] and f"{taken} is in use by another run" in second[1]
    for answer in (first[2], second[2]):
        assert "run.lock" in answer and answer.endswith("give a --workdir on a file system that all machines share")
    stopped = "asked to stop while a program was compiled"
    assert second[3].startswith(f"Preempted {stopped}")
    assert first[3].startswith("Preempted process 1 (") and stopped in first[3]


def test_outside_the_step_loop_a_signal_to_one_of_two_processes_ends_both(capfd):
    processes = start_processes(STOPPED_OUTSIDE, 2, devices=1)
    try:
        assert [process.wait(timeout=120) for process in processes] == [75, 75]
    finally:
        for process in processes:
            process.kill()
    assert capfd.readouterr().err.count(f"anysat_jax: {workdir_module.INTERRUPTED}\n") == 2


@pytest.fixture
def received():
    """The signals that reach the handlers of before."""
    found = []
    before = {
        number: signal.signal(number, lambda *_: found.append(True)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("enabled", [True, False])  # False: of several processes, JAX's coordinator handles it
def test_the_signal_only_sets_a_flag_and_the_old_handler_comes_back(received, enabled, number):
    with StopRequest(enabled) as stop:
        os.kill(os.getpid(), number)
        assert stop.requested == enabled and bool(received) != enabled and StopRequest.active is stop
    assert received  # what came in the last step ends what comes after the loop
    received.clear()
    os.kill(os.getpid(), number)
    assert received and stop.requested == enabled and StopRequest.active is None


def test_a_second_interrupt_is_one(received):
    def be_asked_twice():
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        be_asked_twice()
    assert not received and not StopRequest.answered


def test_a_run_that_saves_ends_by_itself():
    with pytest.raises(Preempted), StopRequest():
        raise Preempted("saved step 3")
    assert StopRequest.answered
    with StopRequest():
        pass
    assert not StopRequest.answered
