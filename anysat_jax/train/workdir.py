"""The folder of a run: writable, locked against other runs, released when the run ends; SIGTERM and Ctrl-C."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any, ClassVar, Self

import jax
from absl import logging

from anysat_jax.errors import StorageError
from anysat_jax.status import LOCK_FILE
from anysat_jax.train import distributed
from anysat_jax.train.checkpoints import explained

WITHOUT_LOCKS = "ANYSAT_WITHOUT_LOCKS"  # environment variable: run on a file system that has no locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # answers of file systems without locks
ATTEMPTS, PAUSE_SECONDS = 3, 0.1  # `anysat_jax.status` holds a shared lock for an instant to see whether a run lives


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes the folder of a run and keeps other runs out of it; removes it at the end if nothing was written.

    All processes of a run give the same workdir, on a file system that they share; the first one locks it.

    Raises:
      StorageError: the folder cannot be made or written, now or later; another run holds it; its file system has no
        locks.
      ConfigError: the processes do not see the same folder.
    """
    # flock, not a file with a process id: the kernel releases it, and a pid may be another process by then.
    is_new, path, lock = not workdir.exists(), workdir / LOCK_FILE, None
    try:
        lock = distributed.agree(lambda: _lock(path) if jax.process_index() == 0 else None)
        distributed.check_same(
            lambda: {f"the content of {path}": _content(path)},
            "give a --workdir on a file system that all machines share",
        )
        with explained(workdir):
            yield workdir
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):  # a disk that went away
                path.unlink()  # while it is locked: see `_take`
            lock.close()  # releases the lock, as the kernel does when the process dies, however it dies
        if is_new:
            with contextlib.suppress(OSError):  # something was written, or another process was first
                workdir.rmdir()


def _lock(path: pathlib.Path) -> IO[bytes]:
    """Locks a file and writes host and process into it, for the messages of other runs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _take(path)
        try:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            file.truncate(0)  # a killed run leaves its name
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
        except OSError:
            path.unlink()
            file.close()
            raise
    except OSError as error:
        raise StorageError(
            f"the workdir {path.parent} cannot be written ({error.strerror or error}); give another --workdir"
        ) from error
    return file


def _take(path: pathlib.Path) -> IO[bytes]:
    """Opens and locks a file; raises StorageError if another process holds it."""
    for _ in range(ATTEMPTS):
        file = path.open("ab", buffering=0)
        # A process that ended in between has removed the file: its lock would be one of a file without a name, and the
        # next run would lock another.
        if _flock(file) and path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
        time.sleep(PAUSE_SECONDS)
    holder = _content(path) or "a process that has not written its name"
    raise StorageError(
        f"{path.parent} is in use by another run ({holder}); wait for its end, stop it, or give another --workdir"
    )


def _flock(file: IO[bytes]) -> bool:
    """Returns whether the file is locked now; without locks in the file system, whether that is accepted."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        problem = f"the file system of {file.name} has no file locks ({error.strerror})"
        if not os.environ.get(WITHOUT_LOCKS):
            raise StorageError(
                f"{problem}, so that two runs could write there at once; give a --workdir on another file system "
                f"(Lustre has them if mounted with -o flock), or set {WITHOUT_LOCKS}=1 if no other run uses this one"
            ) from error
        logging.warning("%s: nothing keeps a second run from writing there", problem)
    return True


def _content(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


class StopRequest:
    """Within this context SIGTERM and Ctrl-C only set `requested`; the loop then saves and ends by itself.

    A second Ctrl-C interrupts. With several processes SIGTERM is handled elsewhere, and Ctrl-C becomes SIGTERM.

    Attributes:
      active: the request of the innermost context; None outside.
    """

    active: ClassVar[Self | None] = None

    def __init__(self, enabled: bool = True):
        handlers: dict[int, Any] = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        if enabled:
            handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._request)
        # Python sets handlers in the main thread only; a notebook or a test may train in another.
        self._handlers = handlers if threading.current_thread() is threading.main_thread() else {}
        self.requested = False

    def _request(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}
        self._outer, StopRequest.active = StopRequest.active, self
        return self

    def __exit__(self, *_: Any) -> None:
        StopRequest.active = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)
