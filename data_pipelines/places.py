"""Places on this machine: the cache, locks that die with their process, files that are whole once they are there."""

import contextlib
import fcntl
import os
import pathlib
import re
import socket
import sys
from collections.abc import Iterator
from typing import IO


def cache_folder() -> pathlib.Path:
    """Where prepared data go by default: `$XDG_CACHE_HOME/anysat_jax`, or `~/.cache/anysat_jax`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "anysat_jax"


def to_stderr(line: str) -> None:
    """Says something beside the progress bar."""
    print(line, file=sys.stderr, flush=True)


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address like "gs://bucket/folder" rather than a folder of this machine."""
    return isinstance(place, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", place) is not None


def temporary_name(name: str) -> str:
    """For a file that this process has not finished; it names the machine, too."""
    return f"{name}.{socket.gethostname()}-{os.getpid()}.tmp"


def remove_temporary_files(folder: pathlib.Path) -> None:
    """What killed processes of this machine left unfinished; other machines may share the folder."""
    for path in folder.glob(f"*.{socket.gethostname()}-*.tmp"):
        path.unlink(missing_ok=True)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there only when whole, also after a power cut."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(content)
        move_whole(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_whole(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Brings a finished file to the disk, then under its name."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: pathlib.Path, work: str) -> Iterator[None]:
    """Holds a lock that dies with its process; goes on without where the file system has no locks.

    Args:
      path: the lock's file; its folder must be there.
      work: what is done under the lock, for those who wait.
    """
    with path.open("w") as file:
        _take_lock(file, work)
        yield


def _take_lock(file: IO[str], work: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        to_stderr(f"another process is {work}; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return
