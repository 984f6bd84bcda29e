"""status.json: how a run is, in one small file that is always whole. `python -m anysat_jax.status RUN` prints it."""

import contextlib
import dataclasses
import datetime
import pathlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import jax
from absl import logging

from anysat_jax.status import FILE_NAME
from anysat_jax.train.errors import Preempted
from anysat_jax.train.ledger import Finished
from anysat_jax.train.meter import Meter
from anysat_jax.train.owner import Owner
from anysat_jax.train.summary import RunRecord, write_json

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
