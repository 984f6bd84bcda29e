"""The bookkeeping of a run's steps: throughput, finite values, the record and the logs."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from anysat_jax.train.errors import NonFiniteError
from anysat_jax.train.log import RunLog
from anysat_jax.train.programs import Fed
from anysat_jax.train.summary import RunRecord


class Throughput:
    """Seconds and tiles of the steps during which nothing was compiled."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._compiled = False
        self.latest = float("nan")  # tiles per second of the last lap

    def compiled(self) -> None:
        """Tells that the present lap holds a compilation, and does not count."""
        self._compiled = True

    def restart(self) -> None:
        """Begins the present lap anew: what it held until now was no training."""
        self._since = time.monotonic()

    def lap(self, tiles: int) -> tuple[int, float]:
        """Ends a lap. Returns its tiles and seconds, or zeros if it does not count."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.latest = tiles / max(seconds, 1e-9)
        counted = (0, 0.0) if self._compiled else (tiles, seconds)
        self._compiled = False
        return counted


@dataclasses.dataclass(frozen=True)
class Pending:
    """A step that was dispatched and whose metrics were not fetched yet."""

    step: int
    fed: Fed
    metrics: dict[str, jax.Array]


class Ledger:
    """Takes each step's metrics once the next step was dispatched, so that the devices never wait for the host."""

    def __init__(self, record: RunRecord, log: RunLog, leaf_names: list[str]):
        self.record = record
        self._log, self._leaf_names = log, leaf_names
        self._throughput = Throughput()
        self._pending: Pending | None = None

    def before_step(self, programs: int, compiling: bool) -> None:
        """To be called before a step is dispatched.

        Args:
          programs: how many programs the step has been compiled into so far.
          compiling: whether a program is being compiled meanwhile; the step then says nothing about speed.
        """
        self.record.programs = programs
        if compiling:
            self._throughput.compiled()

    def rested(self) -> None:
        """Tells that since the last step was finished something else was done, such as an evaluation."""
        self._throughput.restart()

    def after_step(self, step: int, fed: Fed, metrics: dict[str, jax.Array]) -> None:
        """Takes note of the step that led to `step` updates, and finishes the one before it.

        Raises:
          NonFiniteError: that one met a value that is not finite.
        """
        self.finish()
        self._pending = Pending(step, fed, metrics)

    def finish(self) -> None:
        """Fetches and writes what is pending.

        Raises:
          NonFiniteError: a loss or a gradient is not finite.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        metrics = jax.device_get(pending.metrics)
        batch = pending.fed.batch
        if not metrics["finite"]:
            raise NonFiniteError(self.complaint(pending, metrics))
        self.record.add_step(self.losses(metrics), f"{batch.dataset} {batch.patch_size:g} m")
        tiles, seconds = self._throughput.lap(batch.batch_size)
        self.record.tiles += tiles
        self.record.seconds += seconds
        metrics["tiles_per_second"] = self._throughput.latest
        self._log.write(pending.step, batch.dataset, batch.patch_size, metrics)

    def losses(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What the record remembers of a step."""
        return {name: float(metrics[f"loss_{name}"]) for name in self.record.losses}

    def complaint(self, pending: Pending, metrics: Mapping[str, Any]) -> str:
        """What is said of a step whose values are not finite."""
        bad = zip(self._leaf_names, metrics["nonfinite_leaves"], strict=True)
        batch = pending.fed.batch
        return (
            f"step {pending.step} on dataset {batch.dataset!r} with patches of {batch.patch_size:g} m gave infinite "
            f"values or NaN in: {first_names([name for name, is_bad in bad if is_bad])}. Its update was not applied. "
            "Look for such values in that dataset; else lower optimizer.learning_rate or set optimizer.clip_norm, and "
            "start again from the last checkpoint"
        )


def first_names(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
