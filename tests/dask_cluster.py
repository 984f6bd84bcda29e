"""A Dask scheduler and two workers on this machine."""

import contextlib
import json
import os
import subprocess
import sys
import time

from tests.conftest import ONE_DEVICE, REPOSITORY


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def count_workers(address):
    import distributed

    with distributed.Client(address, timeout=30, set_as_default=False) as client:
        return len(client.scheduler_info()["workers"])


@contextlib.contextmanager
def start_cluster(folder):
    """Starts a scheduler and two workers; gives the address and the workers, which end with the context."""
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
    worker = ["dask_worker", *common, "--no-nanny", "--nthreads", "1", "--local-directory", str(file.parent)]
    # A worker that is fetching data from one that is killed tries for so long, else 30 s.
    environment = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s", "XLA_FLAGS": ONE_DEVICE}
    processes = []
    try:
        for arguments in (["dask_scheduler", *common, "--port", "0"], worker, worker):
            command = [sys.executable, "-m", f"distributed.cli.{arguments[0]}", *arguments[1:]]
            processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL))
            wait_until(lambda: file.exists() and file.stat().st_size)  # it is made before it is written
        yield json.loads(file.read_text())["address"], processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait(30)
