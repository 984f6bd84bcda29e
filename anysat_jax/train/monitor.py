"""The bookkeeping of a run's steps: finite values, the record, the logs, and who looks on."""

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.errors import NonFiniteError
from anysat_jax.flops import peak_flops, step_flops
from anysat_jax.model.config import ModelConfig
from anysat_jax.train.compile import Signature, signature_of
from anysat_jax.train.metrics_log import RunLog
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import batch_parts

WINDOW = 50  # steps that the latest speed is a mean over


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
class Lap:
    """One step.

    Attributes:
      tiles, flops: of all devices.
      seconds: that it took.
      waited: of these, the host's waiting for a batch.
    """

    tiles: int
    flops: float
    seconds: float
    waited: float


class Meter:
    """The latest speed of a run; a watcher of its ledger."""

    def __init__(self, count_flops: Callable[[Any], float] = lambda fed: 0.0, peak: float | None = None):
        """Begins without a step.

        Args:
          count_flops: FLOPs of the step on what it is fed with; without it, give no peak either.
          peak: FLOP/s of all devices together; None where that, or the FLOPs, are not known.
        """
        self._count_flops, self._peak = count_flops, peak
        self._known: dict[Signature, float] = {}
        self._laps: collections.deque[Lap] = collections.deque(maxlen=WINDOW)

    def __call__(self, finished: Any) -> None:
        """Takes note of a finished step; not of one beside which a program was compiled."""
        if finished.seconds > 0:
            fed = finished.fed
            self.add(fed.batch.batch_size, self._flops(fed), finished.seconds, fed.waited)

    def add(self, tiles: int, flops: float, seconds: float, waited: float) -> None:
        """Takes note of what was computed on some tiles, see `Lap`."""
        self._laps.append(Lap(tiles, flops, seconds, waited))

    def values(self) -> dict[str, float | None]:
        """Over the latest steps; None before the first.

        "mfu" is the share of the devices' published rate that the step's FLOPs on paper make up. "input_wait_share" is
        the share of the time that the host waited for the next batch, which bounds the time that devices stood idle
        for it.
        """
        seconds = sum(lap.seconds for lap in self._laps)
        if not seconds:
            return dict.fromkeys(("tiles_per_second", "mfu", "input_wait_share"))
        return {
            "tiles_per_second": sum(lap.tiles for lap in self._laps) / seconds,
            "mfu": sum(lap.flops for lap in self._laps) / seconds / self._peak if self._peak else None,
            "input_wait_share": min(1.0, sum(lap.waited for lap in self._laps) / seconds),
        }

    def _flops(self, fed: Any) -> float:
        signature = signature_of(fed)
        if signature not in self._known:
            self._known[signature] = self._count_flops(fed)
        return self._known[signature]


def make_meter(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> Meter:
    """The meter of a pretraining run on a mesh."""
    # Each part of a batch keeps to its own negatives.
    parts = config.accumulate * (batch_parts(mesh) if config.pretrain.negatives == "device" else 1)

    def count(fed: Any) -> float:
        return step_flops(model, fed.batch, fed.masks, mask_dates=config.pretrain.mask_dates, negative_parts=parts)

    return Meter(count, mesh_peak(mesh))


def mesh_peak(mesh: Mesh) -> float | None:
    """Published FLOP/s of all devices together; None where they are not known."""
    one = peak_flops(mesh.devices.flat[0].device_kind)
    return one * mesh.size if one else None


@dataclasses.dataclass(frozen=True)
class Pending:
    """A step that was dispatched and whose metrics were not fetched yet."""

    step: int
    fed: Any
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A step whose metrics are known.

    Attributes:
      step: how many updates were made with it.
      fed: what it was fed with.
      metrics: numbers and arrays, on the host; "tiles_per_second" among them.
      seconds: from the step before it to this one; 0 where a program was compiled meanwhile.
    """

    step: int
    fed: Any
    metrics: Mapping[str, Any]
    seconds: float

    @property
    def kind(self) -> str:
        """Of its batch."""
        return f"{self.fed.batch.dataset} {self.fed.batch.patch_size:g} m"


Watcher = Callable[[Finished], None]


def count_skipped(record: RunRecord) -> Watcher:
    """Counts the tiles that could not be read and were left out."""
    return lambda finished: record.add_skipped(finished.fed.batch.dataset, finished.fed.skipped)


class Ledger:
    """Takes each step's metrics once the next step was dispatched, so that the devices never wait for the host."""

    def __init__(
        self,
        record: RunRecord,
        log: RunLog,
        leaf_names: list[str],
        *,
        max_nonfinite: int = 1,
        blame: Callable[[Any], str] | None = None,
        watchers: Sequence[Watcher] = (),
    ):
        """Opens the books.

        Args:
          record, log: what is written of each step.
          leaf_names: of the entries of metrics["nonfinite_leaves"].
          max_nonfinite: the run ends at so many steps in a row whose values are not finite.
          blame: names the samples that a step was fed with, for the message then.
          watchers: see each step once it is finished.
        """
        self.record = record
        self._log, self._leaf_names = log, leaf_names
        self._max_nonfinite, self._nonfinite = max_nonfinite, 0
        self._blame, self._watchers = blame, watchers
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

    def after_step(self, step: int, fed: Any, metrics: dict[str, jax.Array]) -> None:
        """Takes note of the step that led to `step` updates, and finishes the one before it.

        Raises:
          NonFiniteError: that one was not finite, and as many before it as the run may have in a row.
        """
        self.finish()
        self._pending = Pending(step, fed, metrics)

    def finish(self) -> None:
        """Fetches and writes what is pending.

        Raises:
          NonFiniteError: a loss or a gradient is not finite, for the last time that the run may have that in a row.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        metrics = jax.device_get(pending.metrics)
        self._check(pending, metrics)
        tiles, seconds = self._throughput.lap(pending.fed.batch.batch_size)
        metrics["tiles_per_second"] = self._throughput.latest
        finished = Finished(pending.step, pending.fed, metrics, seconds)
        self.record.add_step(self.losses(metrics) if metrics["finite"] else None, finished.kind)
        self.record.tiles += tiles
        self.record.seconds += seconds
        self._log.write(pending.step, pending.fed.batch.dataset, pending.fed.batch.patch_size, metrics)
        for watcher in self._watchers:
            watcher(finished)

    def losses(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What the record remembers of a step."""
        return {name: float(metrics[f"loss_{name}"]) for name in self.record.losses}

    def _check(self, pending: Pending, metrics: Mapping[str, Any]) -> None:
        """Counts steps that are not finite, and ends the run at too many in a row."""
        self._nonfinite = 0 if metrics["finite"] else self._nonfinite + 1
        if self._nonfinite == 0:
            return
        complaint = self.complaint(pending, metrics)
        if self._ends:
            raise NonFiniteError(complaint)
        logging.warning("%s", complaint)

    @property
    def _ends(self) -> bool:
        return self._nonfinite >= self._max_nonfinite

    def complaint(self, pending: Pending, metrics: Mapping[str, Any]) -> str:
        """What is said of a step whose values are not finite."""
        bad = zip(self._leaf_names, metrics["nonfinite_leaves"], strict=True)
        batch = pending.fed.batch
        samples = f"; {self._blame(pending.fed)}" if self._blame else ""
        return (
            f"step {pending.step} on dataset {batch.dataset!r} with patches of {batch.patch_size:g} m gave infinite "
            f"values or NaN in: {first_names([name for name, is_bad in bad if is_bad])}. Its update was not applied. "
            f"{self._advice()}{samples}"
        )

    def _advice(self) -> str:
        if not self._ends:
            return f"The run goes on, until there are {self._max_nonfinite} in a row (max_nonfinite_steps)"
        return (
            "Look for such values in that dataset; else lower optimizer.learning_rate or set optimizer.clip_norm, and "
            "start again from the last checkpoint"
        )


def first_names(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
