"""A run's folder: found writable, held by one run at a time, and given back when the run ends."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import secrets
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Self

import jax
from absl import logging

from anysat_jax.errors import StorageError
from anysat_jax.train import distributed
from anysat_jax.train.checkpoints import explained


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


FILE = "run.lock"
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 90.0
"""Seconds without a sign of life after which an owner on another machine counts as dead. Network file systems and
mounted buckets may show a file as it was up to a minute ago."""
EXIT_LOST = 1  # of a run whose folder was taken: it must end without writing anything


class Lock:
    """Holds a folder for this process from `take` to `release`."""

    def __init__(self, folder: pathlib.Path):
        self._path = folder / FILE
        self._owner = Owner.this_process()
        self._released: threading.Event | None = None

    def take(self) -> None:
        """Makes the folder this process', unless another run holds it; a dead run's lock is taken over.

        Raises:
          StorageError: another run holds it.
          OSError: the folder cannot be written.
        """
        self._hold(self._path)
        self._released = threading.Event()
        threading.Thread(target=self._beat, args=(self._released,), name="run.lock", daemon=True).start()

    def release(self) -> None:
        """Lets others have the folder, if this process has it."""
        if self._released is None:
            return
        self._released.set()
        if _owner_of(self._path) == self._owner:
            with contextlib.suppress(OSError):  # a disk that went away; the lock is that of a dead process
                self._path.unlink()
        self._released = None

    def _hold(self, path: pathlib.Path) -> None:
        """Makes a lock this process', by creating it or by taking it over.

        Of those who find the same dead owner, one gets the claim to its lock, a lock itself. Only who holds that claim
        may write over the lock, and only while it still is that owner's; the lock is there at every moment.

        Raises:
          StorageError: a living process holds it.
        """
        while not self._create(path):
            content = _content(path)
            if content is None:
                continue
            _wait_for_death(path, content)
            claim = path.with_name(f"{path.name}.{hashlib.sha256(content).hexdigest()[:8]}")
            self._hold(claim)
            try:
                if _content(path) == content:
                    self._write_over(path)
                    return
            finally:
                claim.unlink(missing_ok=True)

    def _create(self, path: pathlib.Path) -> bool:
        """Whether the file was not there, and now is."""
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                json.dump(dataclasses.asdict(self._owner), file)
        except OSError:
            path.unlink()
            raise
        return True

    def _write_over(self, path: pathlib.Path) -> None:
        """Puts this process in the place of a dead owner, in one step."""
        part = path.with_name(f"{path.name}.{self._owner.token}.part")
        try:
            part.write_text(json.dumps(dataclasses.asdict(self._owner)), encoding="utf-8")
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _beat(self, released: threading.Event) -> None:
        """Gives signs of life, and ends this process at once if another has taken the folder nevertheless."""
        while not released.wait(BEAT):
            owner = _owner_of(self._path)
            if owner is not None and owner != self._owner and not released.is_set():
                folder = self._path.parent
                print(f"anysat_jax: {folder} was taken by {owner}: this run ends and saves nothing", file=sys.stderr)
                os._exit(EXIT_LOST)
            try:
                os.utime(self._path)
            except OSError as error:  # a file system that is away for a moment
                logging.warning("no sign of life could be left in %s: %s", self._path, error)


def token_in(folder: pathlib.Path) -> str | None:
    """The token of the run that holds a folder; None where none does."""
    owner = _owner_of(folder / FILE)
    return owner and owner.token


def _owner_of(path: pathlib.Path) -> Owner | None:
    """What the file says; None where there is none, or one cut short."""
    try:
        return _owner_in(path.read_bytes())
    except OSError:
        return None


def _owner_in(content: bytes) -> Owner | None:
    """Whom a lock names; None where it was cut short."""
    try:
        return Owner(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _content(path: pathlib.Path) -> bytes | None:
    """What the file says; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _wait_for_death(path: pathlib.Path, content: bytes) -> None:
    """Comes back once it is clear that the run which a lock names is over.

    Raises:
      StorageError: that run lives.
    """
    owner = _owner_in(content)
    who = owner or "a process that did not write its name"
    if owner.lives if owner is not None and owner.is_here else _changes(path, str(who)):
        raise StorageError(
            f"{path.parent} is in use by another run ({who}); wait for its end, stop it, or give another --workdir"
        )
    logging.warning("the run of %s has ended without a word: taking over %s", who, path.parent)


def _changes(path: pathlib.Path, who: str) -> bool:
    """Whether the file changes while it is watched, which takes a while."""
    logging.warning("%s is held by %s: watching it for %.0f s for a sign of life", path.parent, who, PATIENCE)
    before, end = _seen(path), time.monotonic() + PATIENCE
    while before is not None and time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        if (now := _seen(path)) != before:
            return now is not None
    return False


def _seen(path: pathlib.Path) -> tuple[int, bytes] | None:
    """Time of change and content. Opening the file makes most network file systems ask their server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a run's folder and keeps every other run out of it; one in which nothing was written goes again.

    Args:
      workdir: the same for all processes of the run, on a file system that they share.

    Raises:
      StorageError: the folder cannot be made or written, at once or later on, or another run holds it.
      ConfigError: the processes do not see the same folder.
    """
    made, lock = not workdir.exists(), Lock(workdir)
    try:
        distributed.on_all(lambda: _take(workdir, lock))
        distributed.check_same(
            lambda: {f"the name in {workdir / FILE}": token_in(workdir)},
            "give a --workdir on a file system that all machines share",
        )
        with explained(workdir):
            yield workdir
    finally:
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # something was written, or another process was first
                workdir.rmdir()


def _take(workdir: pathlib.Path, lock: Lock) -> None:
    """The first process takes the folder for all."""
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        raise StorageError(
            f"the workdir {workdir} cannot be written ({error.strerror or error}); give another --workdir"
        ) from error


class StopRequest:
    """Within this context SIGTERM only sets `requested`; the loop then saves and ends by itself."""

    def __init__(self, enabled: bool = True):
        # With several processes JAX's coordinator listens to the signal, so that all of them stop after the same step.
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self.requested = False

    def __enter__(self) -> Self:
        if self._enabled:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._enabled:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
