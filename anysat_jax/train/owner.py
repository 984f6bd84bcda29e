"""Who holds a run's folder, and whether that process still lives."""

import dataclasses
import datetime
import os
import pathlib
import secrets
import socket
from typing import Self


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a folder.

    Attributes:
      host: the machine's name.
      pid: the process.
      since: when it began, for people.
      place: what tells one set of process numbers from another: a boot of a machine, and a container on it.
      born: when the process began, by its machine's own count; tells it from a later one of the same number.
      token: unlike that of any other.
    """

    host: str
    pid: int
    since: str
    place: str
    born: str
    token: str

    @classmethod
    def this_process(cls) -> Self:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        born = _stat_of(os.getpid())[1]
        return cls(socket.gethostname(), os.getpid(), now, _place(), born, secrets.token_hex(16))

    @property
    def is_here(self) -> bool:
        """Whether its process number means something to this process."""
        return self.place == _place()

    @property
    def lives(self) -> bool:
        """Whether its process runs; only to be asked of one that is here."""
        state, born = _stat_of(self.pid)
        return state not in ("", "Z", "X") and born == self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _place() -> str:
    """One boot of a machine, and a set of process numbers in it; the machine's name where that cannot be told."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _stat_of(pid: int) -> tuple[str, str]:
    """State and time of birth of a process; both empty where there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except OSError:
        return _signalled(pid), ""


def _signalled(pid: int) -> str:
    """The state of a process of a system without /proc."""
    if pathlib.Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "R"
