"""status.json of a job, the watchdogs that end it if it hangs, and the tiles that its evaluations left out."""

import collections
import contextlib
import dataclasses
import datetime
import faulthandler
import functools
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TextIO

import jax
from absl import logging

from anysat_jax.errors import Preempted
from anysat_jax.status import FILE_NAME
from anysat_jax.train.compile import Compiled
from anysat_jax.train.monitor import Finished, Meter
from anysat_jax.train.record import RunRecord, write_json

EVERY_SECONDS = 5.0  # between two writes of the file, unless the state changes
EXIT_CODE = 75  # of a run that hangs, as after SIGTERM: start again
GRACE_SECONDS = 30.0  # for the last messages of a run that hangs: the disk may be what hangs


@dataclasses.dataclass(repr=False, eq=False)
class Watchdog:
    """Within this context some step, or batch of an evaluation, must finish now and then.

    If none does for `seconds`, the stacks of all threads go to stderr and to `<workdir>/stacks-<process>.txt`, and
    the process ends with exit code 75. Of several processes each watches itself: when one of them hangs, the others
    wait for it, and all end.
    """

    seconds: float  # without a finished `what`; 0 turns the watchdog off
    workdir: pathlib.Path
    _: dataclasses.KW_ONLY
    what: str = "step"
    busy: Callable[[], bool] = lambda: False  # whether something runs that may take its time, such as compiling
    on_hang: Callable[[str], None] = lambda message: None  # called with the message before the end
    end: Callable[[int], Any] = os._exit  # ends the process with an exit code

    def __post_init__(self) -> None:
        self._path = self.workdir / f"stacks-{jax.process_index()}.txt"
        self._paused, self._over = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self()

    def __call__(self, finished: Any = None) -> None:
        """Starts the time anew: a hook of the monitor, called after every step."""
        self._since = time.monotonic()  # not the wall clock, which may jump

    def __enter__(self) -> Self:
        self()
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self.seconds:
            self._thread.join()  # so that it does not set faulthandler's timer again
            faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context no step is expected: something else runs, which has its own watchdog."""
        self._paused = True
        try:
            yield
        finally:
            self()
            self._paused = False

    def _watch(self) -> None:
        interval = min(5.0, self.seconds / 4)
        while not self._over.wait(interval):
            # A call into C that never releases Python's lock stops this thread too. This timer needs no lock; set anew
            # at every look, it fires only if the thread no longer runs. Its exit code is 1.
            faulthandler.dump_traceback_later(self.seconds + interval + GRACE_SECONDS, exit=True, file=sys.__stderr__)
            if self._paused or self.busy():
                self()
            elif time.monotonic() - self._since > self.seconds:
                self._end_run()
                return

    def _end_run(self) -> None:
        message = f"no {self.what} finished for {self.seconds:g} s (config.watchdog_seconds)"
        logging.error("%s: the run hangs and is ended; the stacks are below and in %s", message, self._path)
        _dump_stacks(sys.__stderr__)
        # In a thread of its own, since a disk that hangs must not keep the process from ending.
        last_words = threading.Thread(target=self._leave_message, args=(message,), daemon=True)
        last_words.start()
        last_words.join(GRACE_SECONDS)
        self.end(EXIT_CODE)

    def _leave_message(self, message: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC, {message}\n")
                _dump_stacks(file)
        except OSError as error:
            logging.error("%s cannot be written: %s", self._path, error)
        self.on_hang(f"{message}; stacks are in {self._path}")


def _dump_stacks(file: TextIO) -> None:
    file.flush()  # faulthandler writes to the descriptor, past Python's buffer
    faulthandler.dump_traceback(file, all_threads=True)


class JobStatus:
    """Keeps status.json of a job from its start to its end, and hands out its watchdogs.

    Within this context the state is "starting", then what `set_state` is given, and at the end "done", "stopped" or
    "failed". Only the first process writes. A disk that is full or gone costs the status, not the run. Without a
    workdir nothing is written and nothing is watched, but tiles and batches are counted all the same.
    """

    def __init__(
        self, workdir: pathlib.Path | None = None, name: str = "", total_steps: int = 0, watchdog_seconds: float = 0.0
    ):
        self.batches = 0  # that went through a network in evaluations and extractions of features
        self._workdir, self._seconds = workdir or pathlib.Path(), watchdog_seconds if workdir else 0.0
        self._enabled = workdir is not None and jax.process_index() == 0
        self._read: Callable[[], dict[str, Any]] = dict
        self._written = -float("inf")
        self._meter = Meter()  # of evaluations; training has its own
        self._left_out: dict[str, set[int]] = collections.defaultdict(set)
        self._values: dict[str, Any] = {
            "state": "starting",
            "name": name,
            "step": 0,
            "total_steps": total_steps,
            "error": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "processes": jax.process_count(),
            "devices": jax.device_count(),
        }

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        ended = "stopped" if isinstance(error, Preempted | KeyboardInterrupt) else "failed"
        self.set_state("done" if error is None else ended, error)

    def follow(self, read: Callable[[], dict[str, Any]], **values: Any) -> None:
        """Calls `read` for fields at every write from now on, such as `training_fields`; sets other fields once."""
        self._read = read
        self._values |= values
        self._write()

    def update(self, **values: Any) -> None:
        """Sets fields; writes them if the last write is more than a few seconds ago."""
        self._values |= values
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self._write()

    def __call__(self, finished: Finished) -> None:
        """Sets the step: a hook of the monitor."""
        self.update(step=finished.step)

    def set_state(self, state: str, error: BaseException | str | None = None, **values: Any) -> None:
        """Writes at once what the job does now, or why it ends, and other fields.

        The states are starting, running, saving, extracting (features), evaluating, reporting, done, stopped, failed.
        """
        self._values |= {"state": state, "error": None if error is None else str(error) or type(error).__name__}
        self._values |= values
        self._write()

    @contextlib.contextmanager
    def during(self, state: str) -> Iterator[None]:
        """Within this context the job is in another state."""
        before = self._values["state"]
        self.set_state(state)
        yield  # without `finally`: what fails here must not be called by the state before
        self.set_state(before)

    def _write(self) -> None:
        if not self._enabled:
            return
        updated = {"updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        try:  # status is for people who look on: a full disk must not end the run here, but at its next checkpoint
            write_json(self._workdir / FILE_NAME, self._values | self._read() | updated)
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._workdir / FILE_NAME, error)
        self._written = time.monotonic()

    def watchdog(self, what: str, busy: Callable[[], bool]) -> Watchdog:
        """Returns the watchdog of a loop in which some `what` must finish now and then; see `Watchdog`."""
        on_hang = functools.partial(self.set_state, "failed")
        return Watchdog(self._seconds, self._workdir, what=what, busy=busy, on_hang=on_hang)

    @contextlib.contextmanager
    def over_split(self, state: str, title: str, total: int, program: Compiled) -> Iterator["SplitProgress"]:
        """Within this context a split of `total` samples goes through a network, batch by batch, under a watchdog.

        Args:
          state: "evaluating" or "extracting".
          title: of the split, such as "val".
          program: computes each batch; the time in which it compiles does not count.
        """
        with self.during(state), self.watchdog(f"batch of {title}", lambda: program.compiling) as watchdog:
            self._meter.reset_timer()
            yield SplitProgress(self, self._meter, watchdog, title, total, program)
            self.update(progress=None)

    def evaluation_fields(self) -> dict[str, Any]:
        """Returns the fields of a job that evaluates: the speed is that of evaluations, without MFU."""
        memory = device_memory(jax.local_devices())
        return {**self._meter.values(), "device_memory": memory, "left_out_tiles": self.left_out_tiles}

    def leave_out(self, split: str, tiles: Iterable[int]) -> None:
        """Counts tiles that an evaluation, or the features of a split, leave out; each tile once."""
        self._left_out[split].update(int(tile) for tile in tiles)

    @property
    def left_out(self) -> dict[str, list[int]]:
        """Positions of the tiles that were left out, by split, of the splits that have any."""
        return {split: sorted(tiles) for split, tiles in sorted(self._left_out.items()) if tiles}

    @property
    def left_out_tiles(self) -> int:
        """Number of tiles that were left out of all splits."""
        return sum(len(tiles) for tiles in self._left_out.values())


class SplitProgress:
    """Progress of a split through a network, see `JobStatus.over_split`."""

    def __init__(self, status: JobStatus, meter: Meter, watchdog: Watchdog, title: str, total: int, program: Compiled):
        self._status, self._meter, self._watchdog, self._title, self._total = status, meter, watchdog, title, total
        self._program, self._programs = program, len(program)
        self._waited, self._samples = 0.0, 0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches and measures the time spent waiting for them."""
        began = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def done(self, samples: int) -> None:
        """Counts a finished batch by those of its samples that are not padding."""
        self._watchdog()
        if len(self._program) != self._programs:  # this batch, or the next one, was the first of its shapes
            self._programs = len(self._program)
            self._meter.exclude()
        self._meter.lap(samples, self._waited)
        self._samples += samples
        self._status.batches += 1
        self._status.update(progress={"of": self._title, "samples": self._samples, "total": self._total})
        self._waited = 0.0


def training_fields(record: RunRecord, meter: Meter, checkpoint_steps: Sequence[int]) -> dict[str, Any]:
    """Returns the fields of a job that trains; of the whole checkpoints' steps the last is the newest.

    Losses are means over the last few steps; None: not known (yet).
    """
    return {
        "losses": {name: edges.means()["last"] for name, edges in record.losses.items()},
        **meter.values(),
        "last_checkpoint": checkpoint_steps[-1] if checkpoint_steps else None,
        "device_memory": device_memory(jax.local_devices()),
        "nonfinite_steps": record.nonfinite_steps,
        "skipped_records": sum(record.skipped.values()),
        "health_warnings": record.warnings,
    }


def device_memory(devices: Sequence[jax.Device]) -> dict[str, int] | None:
    """Returns peak and limit in bytes of the fullest device; None if devices do not report them (CPUs)."""
    found = [stats for device in devices if (stats := device.memory_stats())]
    if not found:
        return None
    fullest = max(found, key=lambda stats: stats.get("peak_bytes_in_use", 0))
    return {"peak_bytes": fullest.get("peak_bytes_in_use", 0), "limit_bytes": fullest.get("bytes_limit", 0)}
