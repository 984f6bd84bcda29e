"""What a job of adaptation tells of itself while it runs, and what ends it where it hangs."""

import collections
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from anysat_jax.train.compiled import Compiled
from anysat_jax.train.meter import Meter, Throughput
from anysat_jax.train.status import StatusFile, device_memory
from anysat_jax.train.watchdog import Watchdog


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
