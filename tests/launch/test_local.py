"""A small cluster on this machine: what its processes are told, how it ends, and that signals reach all of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local

SCRIPT = """
import os, signal, sys, time
index = int(os.environ["ANYSAT_PROCESSES"].split(",")[2])
def stop(number, frame):
    print("asked", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
def sleep_until_asked():
    open(os.path.join(os.path.dirname(__file__), f"here-{index}"), "w").close()
    time.sleep(600)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes the program that the cluster's processes run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "member.py").write_text(SCRIPT + text)
        return "member"

    return write


def wait_for_all(cluster, folder):
    """Returns when all processes sleep until they are asked. What they print must not be read before they have ended:
    pytest empties its file of what was printed so far, and what is written meanwhile would be lost.
    """
    while not all((folder / f"here-{index}").exists() for index in range(len(cluster.members))):
        assert all(member.poll() is None for member in cluster.members)
        time.sleep(0.02)


def test_each_process_knows_its_place_and_its_devices(module, monkeypatch, capfd):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_other=1")
    text = 'print(os.environ["ANYSAT_PROCESSES"], os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"], *sys.argv[1:])'
    assert local.Cluster(2, 3, ["--flag=1"], module(text)).wait() == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] "]
    for index, line in enumerate(lines):
        _, place, *xla, platform, flag = line.split()
        assert place.startswith("127.0.0.1:") and place.endswith(f",2,{index}")
        assert (platform, flag) == ("cpu", "--flag=1")
        assert [one for one in xla if "device_count" in one] == ["--xla_force_host_platform_device_count=3"]
        assert "--xla_other=1" in xla


def test_a_line_is_written_anew_by_a_progress_bar(module, capfd):
    assert local.Cluster(1, 1, [], module(r'print("a 1\ra 2\n\nlast", end="")')).wait() == 0
    assert capfd.readouterr().out.splitlines() == ["[0] a 1", "[0] a 2", "[0] last"]


def test_where_one_fails_the_others_are_ended(module, monkeypatch):
    monkeypatch.setattr(local, "GRACE", 0.2)
    cluster = local.Cluster(3, 1, [], module("sys.exit(3) if index == 1 else time.sleep(600)"))
    assert cluster.wait() == 3
    assert [member.returncode for member in cluster.members] == [-signal.SIGKILL, 3, -signal.SIGKILL]


def test_the_others_may_end_by_themselves(module, monkeypatch, capfd):
    monkeypatch.setattr(local, "GRACE", 600.0)  # a loaded machine may need more than 20 s to start one
    text = "sys.exit(3) if index == 1 else time.sleep(1) or print('done')"
    assert local.Cluster(2, 1, [], module(text)).wait() == 3
    assert "[0] done" in capfd.readouterr().out


def test_asked_to_stop_all_are_asked(module, tmp_path, capfd):
    cluster = local.Cluster(2, 1, [], module("sleep_until_asked()"))
    wait_for_all(cluster, tmp_path)
    cluster.stop()
    assert cluster.wait() == 75
    assert capfd.readouterr().out.count("asked") == 2


def test_asked_twice_they_are_killed(module, tmp_path):
    cluster = local.Cluster(2, 1, [], module("signal.signal(signal.SIGTERM, signal.SIG_IGN); sleep_until_asked()"))
    wait_for_all(cluster, tmp_path)
    cluster.stop()
    cluster.stop()
    assert cluster.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([0, 75], 75), ([75, 1, 0], 1), ([0, -9, 1], 137), ([0, -6, 75], 134)]
)
def test_the_first_failure_decides_the_exit_code(codes, expected):
    assert local.exit_code(codes) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_passes_flags_and_signals_on(module, number):
    text = 'print("here", *sys.argv[1:], flush=True); time.sleep(600)'
    code = f"import sys; from launch import local; local.MODULE = {module(text)!r}; sys.exit(local.main(sys.argv[1:]))"
    folders = os.pathsep.join([os.environ["PYTHONPATH"], *sys.path])
    command = [sys.executable, "-c", code, "--processes", "2", "--devices", "1", "--", "--config=x"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": folders}, stdout=subprocess.PIPE, text=True) as run:
        lines = [run.stdout.readline() for _ in range(2)]
        run.send_signal(number)
        rest, _ = run.communicate(timeout=120)
    assert sorted(lines) == ["[0] here --config=x\n", "[1] here --config=x\n"]
    assert rest.count("asked") == 2 and run.returncode == 75


@pytest.mark.parametrize("flags", [["--processes", "0"], ["--devices", "many"], ["--gpus", "1"]])
def test_what_cannot_be_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        local.main(flags)
    assert ended.value.code == 2 and flags[0].strip("-") in capsys.readouterr().err
