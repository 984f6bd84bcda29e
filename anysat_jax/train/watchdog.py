"""Ends a run that hangs, so that a scheduler can start it again; what every thread was at is written down first."""

import contextlib
import datetime
import faulthandler
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

EXIT_CODE = 75  # as after SIGTERM: start again
GRACE_SECONDS = 30.0  # for the last words: the disk may be what hangs


class Watchdog:
    """Within this context some step, or batch of an evaluation, must finish now and then.

    Where none did for `seconds`, the stacks of all threads go to stderr and to `<workdir>/stacks-<process>.txt`, and
    the process ends with exit code 75. Clocks that jump do not matter. With several processes each watches itself: when
    one of them hangs, the others hang with it, and all end.
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
          workdir: where the stacks go.
          what: must finish, for the message.
          busy: whether something is done that may take its time, such as compiling.
          on_hang: is told in a sentence, before the end.
          end: ends the process.
        """
        self._seconds, self._path = seconds, workdir / f"stacks-{jax.process_index()}.txt"
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
        last_resort = threading.Timer(GRACE_SECONDS, self._end, (EXIT_CODE,))
        last_resort.daemon = True
        last_resort.start()
        message = f"no {self._what} finished for {self._seconds:g} s (config.watchdog_seconds)"
        logging.error("%s: the run hangs and is ended; what it was at is below and in %s", message, self._path)
        dump_stacks(sys.__stderr__)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC, {message}\n")
                dump_stacks(file)
        except OSError as error:
            logging.error("%s cannot be written: %s", self._path, error)
        self._on_hang(f"{message}; stacks are in {self._path}")
        last_resort.cancel()
        self._end(EXIT_CODE)


def dump_stacks(file: TextIO) -> None:
    """What every thread is at, innermost call first."""
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
    file.flush()
