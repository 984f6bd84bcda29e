"""The folder of a run: writable, locked against other runs, released when the run ends; SIGTERM and Ctrl-C."""

import _thread
import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, ClassVar, Self

import jax
from absl import logging

from anysat_jax import EXIT_INTERRUPTED
from anysat_jax.errors import Preempted, RunError, StorageError, complain, printable
from anysat_jax.status import LOCK_FILE
from anysat_jax.train import distributed
from anysat_jax.train.checkpoints import explained

WITHOUT_LOCKS = "ANYSAT_WITHOUT_LOCKS"  # environment variable: run on a file system that has no locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # answers of file systems without locks
ATTEMPTS, PAUSE_SECONDS = 3, 0.1  # `anysat_jax.status` holds a shared lock for an instant to see whether a run lives
EXIT_STOPPED = 75  # EX_TEMPFAIL: try again
INTERRUPTED = "interrupted; what is saved is kept: start the same command again, with the same --workdir if it has one"
PATIENCE = 3.0  # seconds from a signal to the end of a process whose main thread is in a long call of C
POLL_SECONDS = 1.0  # between two looks for a signal to another process


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

    A second Ctrl-C interrupts. Of several processes, JAX's coordinator receives the signals.

    Attributes:
      active: the request of the innermost context; None outside.
      answered: whether the last context ended by Preempted, so that the process saves and ends by itself.
    """

    active: ClassVar[Self | None] = None
    answered: ClassVar[bool] = False

    def __init__(self, enabled: bool = True):
        # Python sets handlers in the main thread only; a notebook or a test may train in another.
        enabled = enabled and threading.current_thread() is threading.main_thread()
        self._handled = (signal.SIGTERM, signal.SIGINT) if enabled else ()
        self.requested = False

    def _request(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._request) for number in self._handled}
        self._outer, StopRequest.active = StopRequest.active, self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        StopRequest.answered = kind is not None and issubclass(kind, Preempted)
        StopRequest.active = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested and kind is None:  # in the last step: ends what comes after the loop
            _thread.interrupt_main(signal.SIGTERM)


def end_soon_on_interrupt() -> None:
    """Lets SIGTERM and Ctrl-C raise KeyboardInterrupt(number), and ends the process if a long call of C delays that.

    Not while a `StopRequest` is active, which has handlers of its own: then there is something to save. Of several
    processes, all end: JAX's coordinator receives SIGTERM, which Ctrl-C becomes, and a thread in each looks for that.
    """
    raised, (reading, writing) = threading.Event(), os.pipe()

    def interrupt(number: int, frame: Any) -> None:
        if number == signal.SIGTERM or not distributed.CONNECTED.is_set():
            raised.set()
            raise KeyboardInterrupt(number)

    def watch() -> None:
        while True:
            number = os.read(reading, 1)[0] if select.select([reading], [], [], POLL_SECONDS)[0] else 0
            saving = StopRequest.active is not None or StopRequest.answered
            if not raised.is_set() and distributed.others_end(saving):
                number = signal.SIGTERM
                _thread.interrupt_main(number)  # the signal itself would go to JAX
                os.kill(os.getpid(), signal.SIGINT)  # ends the main thread's sleep or wait
            if number == signal.SIGINT and distributed.CONNECTED.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
            elif number and signal.getsignal(number) is interrupt and not raised.wait(PATIENCE):
                os._exit(answer_signal(number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to by C, whatever the main thread does
    threading.Thread(target=watch, name="interrupts", daemon=True).start()


def answer_signal(number: int = signal.SIGINT) -> int:
    """Prints that a signal ended the command, and returns the exit code; one of several processes ends here."""
    complain(INTERRUPTED)
    return distributed.shutdown(EXIT_STOPPED if number == signal.SIGTERM else EXIT_INTERRUPTED, stopped=True)


def run_command(action: Callable[[], str], program: str) -> int:
    """Prints what an action returns, or its error in one sentence; returns the exit code of the command."""
    try:
        print(printable(action()))
    except Preempted as stop:
        complain(stop, program)
        return EXIT_STOPPED
    except (RunError, ValueError, ImportError, OSError) as error:
        return complain(error, program)
    except KeyboardInterrupt as stop:
        return answer_signal(*stop.args)
    return 0
