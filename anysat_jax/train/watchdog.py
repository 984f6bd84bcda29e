"""Ends a run that hangs, so that a scheduler can start it again, and writes down what every thread was doing."""

import contextlib
import datetime
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TextIO

import jax
from absl import logging

EXIT_CODE = 75  # as after SIGTERM: start again
GRACE_SECONDS = 30.0  # for the last messages: the disk may be what hangs


class Watchdog:
    """Within this context some step, or batch of an evaluation, must finish now and then.

    If none does for `seconds`, the stacks of all threads go to stderr and to `<workdir>/stacks-<process>.txt`, and
    the process ends with exit code 75. If the watchdog's own thread cannot run, since some call never releases Python's
    lock, `faulthandler` prints the stacks and ends the process with exit code 1. Clocks that jump do not matter. Of
    several processes each watches itself: when one of them hangs, the others wait for it, and all end.
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
          seconds: without a finished step; 0 turns the watchdog off.
          workdir: of the run.
          what: must finish, for the message.
          busy: whether something runs that may take its time, such as compiling.
          on_hang: called with the message before the end.
          end: ends the process with an exit code.
        """
        self._seconds, self._path = seconds, workdir / f"stacks-{jax.process_index()}.txt"
        self._what, self._busy, self._on_hang, self._end = what, busy, on_hang, end
        self._paused = False
        self._since = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()  # so that it does not set faulthandler's timer again
            faulthandler.cancel_dump_traceback_later()

    def __call__(self, finished: Any = None) -> None:
        """Starts the time anew: a hook of the monitor, called after every step."""
        self._since = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context no step is expected: something else runs, which has its own watchdog."""
        self._paused = True
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._paused = False

    def _watch(self) -> None:
        interval = min(5.0, self._seconds / 4)
        while not self._over.wait(interval):
            # Set anew at every look, it fires only if this thread no longer runs.
            faulthandler.dump_traceback_later(self._seconds + interval + GRACE_SECONDS, exit=True, file=sys.__stderr__)
            if self._paused or self._busy():
                self._since = time.monotonic()
            elif time.monotonic() - self._since > self._seconds:
                self._end_run()
                return

    def _end_run(self) -> None:
        message = f"no {self._what} finished for {self._seconds:g} s (config.watchdog_seconds)"
        logging.error("%s: the run hangs and is ended; the stacks are below and in %s", message, self._path)
        dump_stacks(sys.__stderr__)
        # In a thread of its own, since a disk that hangs must not keep the process from ending.
        last_words = threading.Thread(target=self._leave_message, args=(message,), daemon=True)
        last_words.start()
        last_words.join(GRACE_SECONDS)
        self._end(EXIT_CODE)

    def _leave_message(self, message: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC, {message}\n")
                dump_stacks(file)
        except OSError as error:
            logging.error("%s cannot be written: %s", self._path, error)
        self._on_hang(f"{message}; stacks are in {self._path}")


def dump_stacks(file: TextIO) -> None:
    """Writes the calls of every thread, innermost first."""
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
    file.flush()
