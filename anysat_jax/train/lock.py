"""The lock of a run's folder: a file that says whose it is, and whose time of change says that its owner lives.

No two clocks are compared. Whether an owner on another machine lives is seen by watching the file for a while; whether
one on this machine does, by asking for its process.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import threading
import time

from absl import logging

from anysat_jax.train.errors import StorageError
from anysat_jax.train.owner import Owner

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
