"""status.json: how a run is, in one small file that is always whole. `python -m anysat_jax.status RUN` prints it."""

import collections
import contextlib
import dataclasses
import datetime
import pathlib
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, Self

import jax
from absl import logging

from anysat_jax.errors import Preempted
from anysat_jax.status import FILE_NAME
from anysat_jax.train.compile import Compiled
from anysat_jax.train.monitor import Finished, Meter, Throughput
from anysat_jax.train.record import RunRecord, write_json
from anysat_jax.train.watchdog import Watchdog
from anysat_jax.train.workdir import Owner

EVERY_SECONDS = 5.0  # at most so often, besides when the state changes


class Kept(Protocol):
    """Checkpoints."""

    @property
    def steps(self) -> list[int]:
        """Of the whole ones, oldest first."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the numbers come from while a run trains.

    Attributes:
      record, meter, checkpoints: of the run.
      more: further fields, JSON values.
    """

    record: RunRecord
    meter: Meter
    checkpoints: Kept
    more: Callable[[], dict[str, Any]] = dict

    def values(self) -> dict[str, Any]:
        """Losses are means over the last few steps; None stands for what is not known (yet)."""
        record, steps = self.record, self.checkpoints.steps
        return {
            "losses": {name: edges.means()["last"] for name, edges in record.losses.items()},
            **self.meter.values(),
            "last_checkpoint": steps[-1] if steps else None,
            "device_memory": device_memory(jax.local_devices()),
            "nonfinite_steps": record.nonfinite_steps,
            "skipped_records": sum(record.skipped.values()),
            "health_warnings": record.warnings,
            **self.more(),
        }


def device_memory(devices: list[jax.Device]) -> dict[str, int] | None:
    """Bytes of the fullest device: in use at most so far, and what there is; None where devices do not tell (CPUs)."""
    told = [stats for device in devices if (stats := device.memory_stats())]
    if not told:
        return None
    fullest = max(told, key=lambda stats: stats.get("peak_bytes_in_use", 0))
    return {"peak_bytes": fullest.get("peak_bytes_in_use", 0), "limit_bytes": fullest.get("bytes_limit", 0)}


class StatusFile:
    """Keeps the file of a run, from its first line of code to its last; in every process but the first does nothing.

    Within this context the file says "starting", then what `state` is told, and in the end "done", "stopped" or
    "failed". A disk that is full or gone costs the status, not the run.
    """

    def __init__(self, workdir: pathlib.Path, name: str, total_steps: int):
        self._path, self._enabled = workdir / FILE_NAME, jax.process_index() == 0
        self._measure: Callable[[], dict[str, Any]] = dict
        self._written = -float("inf")
        owner = Owner.this_process()
        self._values: dict[str, Any] = {
            "state": "starting",
            "name": name,
            "step": 0,
            "total_steps": total_steps,
            "error": None,
            "host": owner.host,
            "pid": owner.pid,
            "owner": {name: value for name, value in dataclasses.asdict(owner).items() if name != "token"},
            "processes": jax.process_count(),
            "devices": jax.device_count(),
        }

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if error is None:
            self.state("done")
        else:
            self.state("stopped" if isinstance(error, Preempted | KeyboardInterrupt) else "failed", error)

    def follow(self, measure: Callable[[], dict[str, Any]], **values: Any) -> None:
        """Asks for the numbers here from now on, such as `Sources.values`, and takes note of values."""
        self._measure = measure
        self._values |= values
        self._write()

    def __call__(self, finished: Finished) -> None:
        """Takes note of a finished step: a watcher of the ledger."""
        self.tell(step=finished.step)

    def tell(self, **values: Any) -> None:
        """Takes note of values, and writes them now and then."""
        self._values |= values
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self._write()

    def state(self, state: str, error: BaseException | str | None = None, **values: Any) -> None:
        """Says at once what the run does now, and why it ends.

        Args:
          state: starting, running, saving, extracting (features), evaluating, reporting, done, stopped or failed.
          error: what went wrong.
          **values: of other fields.
        """
        self._values |= {"state": state, "error": None if error is None else str(error) or type(error).__name__}
        self._values |= values
        self._write()

    def failed(self, message: str) -> None:
        """Says why the run is about to end."""
        self.state("failed", message)

    @contextlib.contextmanager
    def during(self, state: str) -> Iterator[None]:
        """Within this context the run does something else; what fails there is told by `__exit__`."""
        before = self._values["state"]
        self.state(state)
        yield
        self.state(before)

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the state is copied for a checkpoint; it is written while the run goes on."""
        return self.during("saving")

    def _write(self) -> None:
        if not self._enabled:
            return
        updated = {"updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        try:
            write_json(self._path, self._values | self._measure() | updated)
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._path, error)
        self._written = time.monotonic()


class Vitals:
    """Of one job: its status, its watchdogs, and the tiles that its evaluations left out.

    Without arguments nothing is written and nothing is watched, but tiles are counted all the same.

    Attributes:
      batches: that went through a network in evaluations and extractions of features.
    """

    def __init__(self, workdir: pathlib.Path | None = None, seconds: float = 0.0, status: StatusFile | None = None):
        """Takes charge of a job.

        Args:
          workdir: where a watchdog writes the stacks; None: no watchdogs.
          seconds: `config.watchdog_seconds`.
          status: of the job; None: it has none.
        """
        self.batches = 0
        self._workdir, self._seconds, self._status = workdir, seconds, status
        self._meter = Meter()
        self._left_out: dict[str, set[int]] = collections.defaultdict(set)

    def values(self) -> dict[str, Any]:
        """Fields of the status of a job that measures: the speed is that of evaluations, and MFU is not counted."""
        memory = device_memory(jax.local_devices())
        return {**self._meter.values(), "device_memory": memory, "left_out_tiles": self.left_out_tiles}

    # ---------------------------------------------------------------- tiles that cannot be read

    def leave_out(self, split: str, tiles: Iterable[int]) -> None:
        """Takes note of tiles that an evaluation, or the features of a split, do without."""
        self._left_out[split].update(int(tile) for tile in tiles)

    @property
    def left_out(self) -> dict[str, list[int]]:
        """Positions of the tiles that were left out, by split, of those splits that have any."""
        return {split: sorted(tiles) for split, tiles in sorted(self._left_out.items()) if tiles}

    @property
    def left_out_tiles(self) -> int:
        """How many they are."""
        return sum(len(tiles) for tiles in self._left_out.values())

    # ---------------------------------------------------------------- status

    def follow(self, measure: Callable[[], dict[str, Any]], **values: Any) -> None:
        """As `StatusFile.follow`."""
        if self._status is not None:
            self._status.follow(measure, **values)

    def state(self, state: str, **values: Any) -> None:
        """As `StatusFile.state`."""
        if self._status is not None:
            self._status.state(state, **values)

    def during(self, state: str) -> contextlib.AbstractContextManager[None]:
        """As `StatusFile.during`."""
        return contextlib.nullcontext() if self._status is None else self._status.during(state)

    def tell(self, **values: Any) -> None:
        """As `StatusFile.tell`."""
        if self._status is not None:
            self._status.tell(**values)

    # ---------------------------------------------------------------- loops

    def watchdog(self, what: str, busy: Callable[[], bool]) -> Watchdog:
        """Of a loop, in which some `what` must finish now and then; see `Watchdog`."""
        place, seconds = (pathlib.Path(), 0.0) if self._workdir is None else (self._workdir, self._seconds)
        return Watchdog(
            seconds, place, what=what, busy=busy, on_hang=lambda message: self.state("failed", error=message)
        )

    @contextlib.contextmanager
    def passing(self, state: str, title: str, total: int, program: Compiled) -> Iterator["Pass"]:
        """Within this context a split goes through a network, batch by batch.

        Args:
          state: what the status says meanwhile: "evaluating" or "extracting".
          title: what goes through, such as "val".
          total: samples of it.
          program: what computes; it may take its time to compile.
        """
        with (
            self.during(state),
            self.watchdog(f"batch of {title}", lambda: program.compiling) as watchdog,
        ):
            yield Pass(self, watchdog, title, total, program)
            self.tell(progress=None)

    def passed(self, samples: int, seconds: float, waited: float, progress: dict[str, Any]) -> None:
        """Takes note of a batch that went through; of its speed unless `seconds` is 0."""
        self.batches += 1
        if seconds:
            self._meter.add(samples, 0.0, seconds, waited)
        self.tell(progress=progress)


class Pass:
    """A split on its way through a network, see `Vitals.passing`."""

    def __init__(self, vitals: Vitals, watchdog: Watchdog, title: str, total: int, program: Compiled):
        self._vitals, self._watchdog, self._title, self._total = vitals, watchdog, title, total
        self._program, self._programs = program, len(program)
        self._throughput, self._waited, self._samples = Throughput(), 0.0, 0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; waiting for them is waiting for input."""
        began = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def done(self, samples: int) -> None:
        """Tells that a batch is through, and how many of its samples count."""
        self._watchdog()
        if len(self._program) != self._programs:
            self._programs = len(self._program)
            self._throughput.compiled()
        _, seconds = self._throughput.lap(samples)
        self._samples += samples
        progress = {"of": self._title, "samples": self._samples, "total": self._total}
        self._vitals.passed(samples, seconds, self._waited, progress)
        self._waited = 0.0
