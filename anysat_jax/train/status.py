"""status.json of a job, its watchdogs, and the tiles that its evaluations left out."""

import collections
import contextlib
import datetime
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import jax
from absl import logging

from anysat_jax.errors import Preempted
from anysat_jax.status import FILE_NAME
from anysat_jax.train.compile import Compiled
from anysat_jax.train.monitor import Finished, Meter, Throughput
from anysat_jax.train.record import RunRecord, write_json
from anysat_jax.train.watchdog import Watchdog

EVERY_SECONDS = 5.0  # between two writes of the file, unless the state changes


class JobStatus:
    """Keeps status.json of a job from its start to its end, and hands out its watchdogs.

    Within this context the state is "starting", then what `set_state` is given, and at the end "done", "stopped" or
    "failed". Only the first process writes. A disk that is full or gone costs the status, not the run. Without a
    workdir nothing is written and nothing is watched, but tiles and batches are counted all the same.

    Attributes:
      batches: that went through a network in evaluations and extractions of features.
    """

    def __init__(
        self, workdir: pathlib.Path | None = None, name: str = "", total_steps: int = 0, watchdog_seconds: float = 0.0
    ):
        self.batches = 0
        self._workdir, self._seconds = workdir or pathlib.Path(), watchdog_seconds if workdir else 0.0
        self._enabled = workdir is not None and jax.process_index() == 0
        self._read: Callable[[], dict[str, Any]] = dict
        self._written = -float("inf")
        self._meter = Meter()
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
        if error is None:
            self.set_state("done")
        else:
            self.set_state("stopped" if isinstance(error, Preempted | KeyboardInterrupt) else "failed", error)

    # ---------------------------------------------------------------- the file

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
        """Writes at once what the job does now, or why it ends.

        Args:
          state: starting, running, saving, extracting (features), evaluating, reporting, done, stopped or failed.
          error: what went wrong.
          **values: of other fields.
        """
        self._values |= {"state": state, "error": None if error is None else str(error) or type(error).__name__}
        self._values |= values
        self._write()

    @contextlib.contextmanager
    def during(self, state: str) -> Iterator[None]:
        """Within this context the job is in another state; an error is left to `__exit__`."""
        before = self._values["state"]
        self.set_state(state)
        yield
        self.set_state(before)

    def _write(self) -> None:
        if not self._enabled:
            return
        updated = {"updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        try:
            write_json(self._workdir / FILE_NAME, self._values | self._read() | updated)
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._workdir / FILE_NAME, error)
        self._written = time.monotonic()

    # ---------------------------------------------------------------- loops

    def watchdog(self, what: str, busy: Callable[[], bool]) -> Watchdog:
        """Returns the watchdog of a loop in which some `what` must finish now and then; see `Watchdog`."""
        return Watchdog(
            self._seconds,
            self._workdir,
            what=what,
            busy=busy,
            on_hang=lambda message: self.set_state("failed", message),
        )

    @contextlib.contextmanager
    def over_split(self, state: str, title: str, total: int, program: Compiled) -> Iterator["SplitProgress"]:
        """Within this context a split goes through a network, batch by batch, under a watchdog.

        Args:
          state: "evaluating" or "extracting".
          title: of the split, such as "val".
          total: its samples.
          program: computes each batch; the time in which it compiles does not count.
        """
        with (
            self.during(state),
            self.watchdog(f"batch of {title}", lambda: program.compiling) as watchdog,
        ):
            yield SplitProgress(self, watchdog, title, total, program)
            self.update(progress=None)

    def add_batch(self, samples: int, seconds: float, waited: float, progress: dict[str, Any]) -> None:
        """Counts a batch of a split; its speed only if `seconds` is above 0."""
        self.batches += 1
        if seconds:
            self._meter.add(samples, 0.0, seconds, waited)
        self.update(progress=progress)

    def evaluation_fields(self) -> dict[str, Any]:
        """Returns the fields of a job that evaluates: the speed is that of evaluations, without MFU."""
        memory = device_memory(jax.local_devices())
        return {**self._meter.values(), "device_memory": memory, "left_out_tiles": self.left_out_tiles}

    # ---------------------------------------------------------------- tiles that cannot be read

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

    def __init__(self, status: JobStatus, watchdog: Watchdog, title: str, total: int, program: Compiled):
        self._status, self._watchdog, self._title, self._total = status, watchdog, title, total
        self._program, self._programs = program, len(program)
        self._throughput, self._waited, self._samples = Throughput(), 0.0, 0

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
        if len(self._program) != self._programs:
            self._programs = len(self._program)
            self._throughput.compiled()
        _, seconds = self._throughput.lap(samples)
        self._samples += samples
        progress = {"of": self._title, "samples": self._samples, "total": self._total}
        self._status.add_batch(samples, seconds, self._waited, progress)
        self._waited = 0.0


def training_fields(record: RunRecord, meter: Meter, checkpoint_steps: Sequence[int]) -> dict[str, Any]:
    """Returns the fields of a job that trains. Losses are means over the last few steps; None: not known (yet).

    Args:
      record, meter: of the run.
      checkpoint_steps: of the whole checkpoints, oldest first.
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
