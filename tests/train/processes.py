"""Several real processes as one run, on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def start_processes(script: str, count: int, *arguments: object, devices: int) -> list[subprocess.Popen[str]]:
    """Starts a script in several processes, whose output can be read.

    Args:
      script: Python; its arguments are the address of the first process, this one's index, and what follows.
      count: of processes.
      *arguments: the same for all.
      devices: fake CPU devices of each.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": flags}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, address, str(index), *map(str, arguments)],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
