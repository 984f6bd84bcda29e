"""The lock of a folder: one owner at a time, and none that is dead."""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from anysat_jax.errors import StorageError
from anysat_jax.train import workdir as lock_module
from anysat_jax.train.workdir import FILE, Lock, Owner, token_in

HOLDER = """
import pathlib, sys, time
from anysat_jax.train import lock
lock.BEAT = 0.05
lock.Lock(pathlib.Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Watches a lock for half a second instead of most of a minute."""
    monkeypatch.setattr(lock_module, "BEAT", 0.05)
    monkeypatch.setattr(lock_module, "PATIENCE", 0.5)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"taken\n"
    yield process
    process.kill()
    process.communicate()


def write_owner(folder, **changes) -> Owner:
    owner = dataclasses.replace(Owner.this_process(), **changes)
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def test_a_second_run_is_refused_and_told_who_was_first(tmp_path, holder):
    with pytest.raises(
        StorageError,
        match=rf"{tmp_path} is in use by another run \(process {holder.pid} on {socket.gethostname()}, since "
        r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\); wait for its end, stop it, or give another --workdir",
    ):
        Lock(tmp_path).take()
    assert token_in(tmp_path) is not None


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder, caplog, reaped):
    holder.send_signal(signal.SIGKILL)
    # Without a parent that asks for its end, a dead process stays in the table of processes.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    lock = Lock(tmp_path)
    lock.take()
    assert f"the run of process {holder.pid} on" in caplog.text and "watching" not in caplog.text
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_what_was_released_can_be_taken(tmp_path):
    for _ in range(2):
        lock = Lock(tmp_path)
        lock.take()
        assert token_in(tmp_path) is not None
        lock.release()
        lock.release()
        assert token_in(tmp_path) is None


def test_a_number_that_another_process_got_is_not_mistaken(tmp_path):
    write_owner(tmp_path, born="1")
    Lock(tmp_path).take()


@pytest.mark.parametrize("clock", [0, 1, 4_000_000_000])
def test_a_silent_owner_elsewhere_is_dead_whatever_the_clock_says(tmp_path, caplog, clock):
    write_owner(tmp_path, place="elsewhere", host="far")
    os.utime(tmp_path / FILE, (clock, clock))
    Lock(tmp_path).take()
    assert "far" in caplog.text and "for a sign of life" in caplog.text


@pytest.mark.parametrize("direction", [1, -1])
def test_an_owner_elsewhere_that_gives_signs_of_life_is_left_alone(tmp_path, direction):
    owner, over = write_owner(tmp_path, place="elsewhere", host="far"), threading.Event()

    def live():
        moment = 2_000_000_000
        while not over.wait(0.02):
            moment += direction  # its clock may go backwards
            os.utime(tmp_path / FILE, (moment, moment))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(StorageError, match="process .* on far, since"):
        Lock(tmp_path).take()
    over.set()
    thread.join()
    assert token_in(tmp_path) == owner.token


@pytest.mark.parametrize("content", ["", '{"host": "a', "[]", '{"host": 1}'])
def test_a_lock_that_was_cut_short_is_watched_and_taken(tmp_path, caplog, content):
    (tmp_path / FILE).write_text(content)
    Lock(tmp_path).take()
    assert "held by a process that did not write its name" in caplog.text


def test_of_many_that_want_a_dead_owners_folder_one_gets_it(tmp_path):
    write_owner(tmp_path, born="1")
    together = threading.Barrier(8)

    def want(lock: Lock) -> bool:
        together.wait()
        try:
            lock.take()
        except StorageError:
            return False
        return True

    locks = [Lock(tmp_path) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(want, locks)) == 1
    for lock in locks:
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_who_was_slow_to_take_over_does_not_take_it_from_who_was_faster(tmp_path, monkeypatch):
    """The lock changes hands after the dead owner was seen, and before the claim to it is there."""
    write_owner(tmp_path, born="1")
    slow, faster = Lock(tmp_path), Lock(tmp_path)
    wait_for_death = lock_module._wait_for_death

    def wait_and_dally(path, content):
        wait_for_death(path, content)
        monkeypatch.setattr(lock_module, "_wait_for_death", wait_for_death)
        faster.take()

    monkeypatch.setattr(lock_module, "_wait_for_death", wait_and_dally)
    with pytest.raises(StorageError, match="in use by another run"):
        slow.take()
    assert token_in(tmp_path) == faster._owner.token
    faster.release()
    assert list(tmp_path.iterdir()) == []


def test_who_died_while_taking_over_is_no_obstacle(tmp_path):
    write_owner(tmp_path, born="1")
    content = (tmp_path / FILE).read_bytes()
    dead = dataclasses.replace(Owner.this_process(), born="2")
    claim = tmp_path / f"{FILE}.{hashlib.sha256(content).hexdigest()[:8]}"
    claim.write_text(json.dumps(dataclasses.asdict(dead)))
    lock = Lock(tmp_path)
    lock.take()
    assert token_in(tmp_path) == lock._owner.token
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_folder_was_taken_ends_at_once(tmp_path, holder):
    other = write_owner(tmp_path, host="thief")
    _, error = holder.communicate(timeout=30)
    assert holder.returncode == 1
    assert f"{tmp_path} was taken by process {os.getpid()} on thief" in error.decode()
    assert token_in(tmp_path) == other.token


def test_another_runs_lock_is_not_removed(tmp_path):
    lock = Lock(tmp_path)
    lock._released = threading.Event()  # as if taken, without the thread that would end this process
    other = write_owner(tmp_path, host="thief")
    lock.release()
    assert token_in(tmp_path) == other.token


def test_a_full_disk_leaves_no_empty_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        Lock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []
