"""A small cluster on this machine: several processes with fake CPU devices, each like a host with accelerators.

  python -m launch.local --processes 2 --devices 4 -- --config=configs/pretrain.py --workdir=runs/two

Arguments after -- are passed to `python -m anysat_jax.main` in every process; each line of output is prefixed with the
number of its process. If one fails, the others are killed after 20 s. SIGTERM or Ctrl-C makes all save and stop; a
second one kills them. The exit code is that of the first failure, 75 if they were stopped, else 0.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import Any

STOPPED = 75
GRACE = 20.0  # seconds for the others to end by themselves after a failure
POLL = 0.05  # seconds
MODULE = "anysat_jax.main"
DEVICE_FLAG = "--xla_force_host_platform_device_count"
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"  # fake devices may wait long for a core


class Cluster:
    """Processes of one run on this machine."""

    def __init__(self, processes: int, devices: int, flags: Sequence[str], module: str | None = None):
        """Starts the processes, each with `devices` fake devices; `flags` are for the module, by default `MODULE`."""
        address, command = f"127.0.0.1:{free_port()}", [sys.executable, "-m", module or MODULE, *flags]
        self.members = [
            # In a session of its own, so that Ctrl-C in a terminal reaches this process only, which stops them all.
            subprocess.Popen(
                command,
                env=environment(f"{address},{processes},{index}", devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for index in range(processes)
        ]
        self._readers = [
            threading.Thread(target=relay, args=(member.stdout, f"[{index}] "), daemon=True)
            for index, member in enumerate(self.members)
        ]
        for reader in self._readers:
            reader.start()
        self._stopping = False

    def stop(self, number: int = signal.SIGTERM, frame: types.FrameType | None = None) -> None:
        """Handles a signal: sends SIGTERM to all, the second time SIGKILL."""
        self._send(signal.SIGKILL if self._stopping else signal.SIGTERM)
        self._stopping = True

    def wait(self) -> int:
        """Waits for all, kills the others after a failure, and returns the exit code."""
        first, deadline = 0, float("inf")
        while None in (codes := [member.poll() for member in self.members]):  # polls every one
            if first == 0 and (failures := [code for code in codes if code not in (None, 0, STOPPED)]):
                first, deadline = failures[0], time.monotonic() + GRACE
            if time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(POLL)
        for reader in self._readers:
            reader.join()
        return exit_code([first, *(member.returncode for member in self.members)])

    def _send(self, number: int) -> None:
        for member in self.members:
            if member.poll() is None:
                member.send_signal(number)


def exit_code(codes: Sequence[int]) -> int:
    """Returns that of the first failure, as a shell would; 75 if some were stopped and none failed; else 0."""
    failures = [code for code in codes if code not in (0, STOPPED)]
    if failures:
        return failures[0] if failures[0] > 0 else 128 - failures[0]
    return max(codes)


def environment(processes: str, devices: int) -> dict[str, str]:
    """Returns the environment of a process: its index and its fake devices."""
    xla = re.sub(rf"{DEVICE_FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {
        **os.environ,
        "ANYSAT_PROCESSES": processes,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{PATIENT} {xla} {DEVICE_FLAG}={devices}",
        "PYTHONUNBUFFERED": "1",
    }


def relay(lines: Any, prefix: str) -> None:
    """Copies a process' output line by line, each with the prefix."""
    for line in lines:
        for part in line.decode(errors="replace").rstrip("\r\n").split("\r"):  # a progress bar rewrites its line
            if part.strip():
                sys.stdout.write(f"{prefix}{part}\n")
        sys.stdout.flush()


def free_port() -> int:
    """Returns an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m launch.local", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=int, default=4, help="fake devices of each (default: 4)")
    parser.add_argument("flags", nargs="*", help="-- and the flags of anysat_jax.main, but --processes")
    args = parser.parse_args(argv)
    if min(args.processes, args.devices) < 1:
        parser.error(f"--processes {args.processes} --devices {args.devices}: both must be 1 or more")
    cluster = Cluster(args.processes, args.devices, args.flags)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, cluster.stop)
    return cluster.wait()


if __name__ == "__main__":
    sys.exit(main())
