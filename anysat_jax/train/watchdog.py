"""Ends a run that hangs, so that a scheduler can start it again; what every thread was at is written down first."""

import contextlib
import dataclasses
import datetime
import faulthandler
import json
import os
import pathlib
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, Self, TextIO

import jax
from absl import logging

from anysat_jax.train.record import write_json

FILE = "hangs.json"
MOST = 3  # hangs in a row after which starting again is no use


@dataclasses.dataclass(frozen=True)
class Hangs:
    """Hangs in a row, over all starts of a run.

    Attributes:
      count: of those with no newer checkpoint between them.
      checkpoint: step of the newest whole checkpoint at the last of them; 0: there was none.
    """

    count: int = 0
    checkpoint: int = 0

    @classmethod
    def read(cls, workdir: pathlib.Path) -> Self:
        """What earlier starts left in the workdir; none where the file is not there, or cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads((workdir / FILE).read_bytes())
            return cls(int(values["count"]), int(values["checkpoint"]))
        return cls()

    def one_more(self, checkpoint: int) -> Self:
        """These and one more; the first again where a checkpoint came since.

        Args:
          checkpoint: step of the newest whole one now; 0: there is none.
        """
        return dataclasses.replace(
            self, count=1 if checkpoint > self.checkpoint else self.count + 1, checkpoint=checkpoint
        )

    @property
    def too_many(self) -> bool:
        """Whether a person should look before the next start."""
        return self.count >= MOST

    def write(self, workdir: pathlib.Path) -> None:
        """Leaves them for the next start.

        Raises:
          OSError: the workdir cannot be written.
        """
        write_json(workdir / FILE, dataclasses.asdict(self))


def newest_checkpoint(workdir: pathlib.Path) -> int:
    """Step of the newest whole checkpoint; 0 where there is none.

    It asks the disk alone, since whoever wrote checkpoints may be what hangs. One becomes whole by being renamed to its
    step.

    Raises:
      OSError: the folder cannot be read.
    """
    try:
        return max((int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


EXIT_CODE, EXIT_GIVE_UP = 75, 1  # as after SIGTERM: start again; as after an error: look first
GRACE_SECONDS = 30.0  # for the last words: the disk may be what hangs


class Watchdog:
    """Within this context some step, or batch of an evaluation, must finish now and then.

    Where none did for `seconds`, the stacks of all threads go to stderr and to `<workdir>/stacks-<process>.txt`, and
    the process ends with exit code 75: start again. From the third hang on with no newer checkpoint between them the
    exit code is 1: starting again is no use. Clocks that jump do not matter. Of several processes each watches itself:
    when one of them hangs, the others hang with it, and all end.
    """

    def __init__(
        self,
        seconds: float,
        workdir: pathlib.Path,
        *,
        what: str = "step",
        busy: Callable[[], bool] = lambda: False,
        on_hang: Callable[[str], None] = lambda message: None,
        end: Callable[[int], Any] = os._exit,
    ):
        """Does not watch yet.

        Args:
          seconds: without a finished step; 0: does nothing.
          workdir: where the stacks go, and the count of hangs; its folder "checkpoints" shows how far the run came.
          what: must finish, for the message.
          busy: whether something is done that may take its time, such as compiling.
          on_hang: is told in a sentence, before the end.
          end: ends the process.
        """
        self._seconds, self._workdir = seconds, workdir
        self._path = workdir / f"stacks-{jax.process_index()}.txt"
        # Read now and not at the end: then any of several processes may be the first to count the hang they share, and
        # those that come later count the same.
        self._earlier = Hangs.read(workdir)
        self._what, self._busy, self._on_hang, self._end = what, busy, on_hang, end
        self._rests = False
        self._since = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._over.set()

    def __call__(self, finished: Any = None) -> None:
        """Tells that something went on: a watcher of the ledger."""
        self._since = time.monotonic()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Within this context no step is expected: something else goes on, which is watched by itself."""
        self._rests = True
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._rests = False

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self._seconds / 4)):
            if self._rests or self._busy():
                self._since = time.monotonic()
            elif time.monotonic() - self._since > self._seconds:
                self._bite()
                return

    def _bite(self) -> None:
        last_resort = self._last_resort(EXIT_CODE)
        message = f"no {self._what} finished for {self._seconds:g} s (config.watchdog_seconds)"
        logging.error("%s: the run hangs and is ended; what it was at is below and in %s", message, self._path)
        dump_stacks(sys.__stderr__)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC, {message}\n")
                dump_stacks(file)
        except OSError as error:
            logging.error("%s cannot be written: %s", self._path, error)
        message, code = f"{message}; stacks are in {self._path}", EXIT_CODE
        if (found := self._count()).too_many:
            message, code = f"{message}; {too_often(found)}", EXIT_GIVE_UP
            logging.error("%s", message)
            last_resort.cancel()  # what is told next may hang, too, at every start
            last_resort = self._last_resort(code)
        self._on_hang(message)
        last_resort.cancel()
        self._end(code)

    def _last_resort(self, code: int) -> threading.Timer:
        """Ends the process after a while, unless cancelled."""
        timer = threading.Timer(GRACE_SECONDS, self._end, (code,))
        timer.daemon = True
        timer.start()
        return timer

    def _count(self) -> Hangs:
        """The hangs in a row with this one, which are also left for the next start."""
        found = self._earlier
        try:
            found = found.one_more(newest_checkpoint(self._workdir))
            found.write(self._workdir)
        except OSError as error:
            logging.error("the hang is not counted in %s: %s", self._workdir / FILE, error)
        return found


def too_often(found: Hangs) -> str:
    """Why the run should not be started again as it is."""
    since = f"since the checkpoint of step {found.checkpoint}" if found.checkpoint else "before the first checkpoint"
    return (
        f"it is hang {found.count} in a row {since}, so that starting again is no use (exit code {EXIT_GIVE_UP}): look "
        "at what the threads were at and mend it, then start the same command again"
    )


def dump_stacks(file: TextIO) -> None:
    """What every thread is at, innermost call first."""
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
    file.flush()
