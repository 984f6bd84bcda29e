"""The lock of a run's folder: a file that says whose it is, and whose time of change says that its owner lives.

No two clocks are compared. Whether an owner on another machine lives is seen by watching the file for a while; whether
one on this machine does, by asking for its process.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
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
        while not self._create():
            self._wait_for_death()
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

    def _create(self) -> bool:
        """Whether the file was not there, and now is."""
        try:
            file = self._path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                json.dump(dataclasses.asdict(self._owner), file)
        except OSError:
            self._path.unlink()
            raise
        return True

    def _wait_for_death(self) -> None:
        """Removes the lock of a run that is over.

        Raises:
          StorageError: that run lives.
        """
        owner = _owner_of(self._path)
        who = owner or "a process that did not write its name"
        if owner.lives if owner is not None and owner.is_here else _changes(self._path, str(who)):
            raise StorageError(
                f"{self._path.parent} is in use by another run ({who}); wait for its end, stop it, or give another "
                "--workdir"
            )
        logging.warning("the run of %s has ended without a word: taking over %s", who, self._path.parent)
        _remove(self._path, owner)

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
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


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


def _remove(path: pathlib.Path, owner: Owner | None) -> None:
    """Removes a dead owner's file, and not that of one who was faster."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _owner_of(aside) == owner:
        aside.unlink()
    else:
        aside.rename(path)
