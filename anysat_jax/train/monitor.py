"""Metrics of a run's steps: fetched one step late, checked for NaN and infinity, logged, and passed to hooks."""

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from anysat_jax.errors import NonFiniteError
from anysat_jax.peak import peak_flops
from anysat_jax.train.compile import Signature, signature_of
from anysat_jax.train.input import StepInput
from anysat_jax.train.metrics_log import MetricsLog, StepColumns
from anysat_jax.train.optimizer import leaf_names
from anysat_jax.train.record import RunRecord

WINDOW = 50  # steps that the latest speed is a mean over


class Throughput:
    """Seconds and tiles of the steps during which nothing was compiled."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._compiled = False
        self.latest = float("nan")  # tiles per second of the last lap

    def compiled(self) -> None:
        """Excludes the present lap, in which a program was compiled."""
        self._compiled = True

    def reset_timer(self) -> None:
        """Starts the present lap anew: the time until now was not training."""
        self._since = time.monotonic()

    def lap(self, tiles: int) -> tuple[int, float]:
        """Ends a lap; returns its tiles and seconds, or zeros if it is excluded."""
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
      waited: seconds of these in which the host waited for a batch.
    """

    tiles: int
    flops: float
    seconds: float
    waited: float


@dataclasses.dataclass(frozen=True)
class Finished:
    """A step whose metrics are known.

    Attributes:
      step: updates made, this one included.
      inputs: of the step.
      metrics: numbers and arrays, on the host; "tiles_per_second" among them.
      seconds: since the step before it; 0 where a program was compiled meanwhile.
    """

    step: int
    inputs: StepInput
    metrics: Mapping[str, Any]
    seconds: float

    @property
    def kind(self) -> str:
        """Dataset and patch size of its batch."""
        return f"{self.inputs.batch.dataset} {self.inputs.batch.patch_size:g} m"


Hook = Callable[[Finished], None]


class Meter:
    """The latest speed of a run; a hook of its monitor."""

    def __init__(self, count_flops: Callable[[StepInput], float] | None = None, peak: float | None = None):
        """Begins without a step.

        Args:
          count_flops: analytic FLOPs of a step; None: unknown, and there is no MFU.
          peak: FLOP/s of all devices together; None: unknown.
        """
        self._count_flops, self._peak = count_flops or (lambda inputs: 0.0), peak if count_flops else None
        self._known: dict[Signature, float] = {}
        self._laps: collections.deque[Lap] = collections.deque(maxlen=WINDOW)

    def __call__(self, finished: Finished) -> None:
        """Adds a finished step, unless a program was compiled beside it."""
        if finished.seconds > 0:
            inputs = finished.inputs
            signature = signature_of(inputs)
            if signature not in self._known:
                self._known[signature] = self._count_flops(inputs)
            self.add(inputs.batch.batch_size, self._known[signature], finished.seconds, inputs.waited)

    def add(self, tiles: int, flops: float, seconds: float, waited: float) -> None:
        """Adds what was computed on some tiles, see `Lap`."""
        self._laps.append(Lap(tiles, flops, seconds, waited))

    def values(self) -> dict[str, float | None]:
        """Returns means over the latest steps; None before the first.

        "mfu" is the fraction of the devices' published rate that the step's analytic FLOPs are. "input_wait_share" is
        the fraction of the time in which the host waited for a batch: an upper bound of the time in which devices were
        idle for it.
        """
        seconds = sum(lap.seconds for lap in self._laps)
        if not seconds:
            return dict.fromkeys(("tiles_per_second", "mfu", "input_wait_share"))
        return {
            "tiles_per_second": sum(lap.tiles for lap in self._laps) / seconds,
            "mfu": sum(lap.flops for lap in self._laps) / seconds / self._peak if self._peak else None,
            "input_wait_share": min(1.0, sum(lap.waited for lap in self._laps) / seconds),
        }


def mesh_peak(mesh: Mesh) -> float | None:
    """Returns the published FLOP/s of all devices together; None where they are unknown."""
    one = peak_flops(mesh.devices.flat[0].device_kind)
    return one * mesh.size if one else None


class StepMonitor:
    """Fetches each step's metrics after the next step was dispatched, so that the devices never wait for the host."""

    def __init__(
        self,
        record: RunRecord,
        log: MetricsLog,
        columns: StepColumns,
        params: Any,
        *,
        max_nonfinite: int = 1,
        describe_samples: Callable[[StepInput, Mapping[str, Any]], str] | None = None,
        hooks: Sequence[Hook] = (),
    ):
        """Begins before the first step.

        Args:
          record, log: where each step is written.
          columns: which metrics.
          params: the parameters that train, for the names of the entries of metrics["nonfinite_leaves"].
          max_nonfinite: number of steps in a row with values that are not finite that ends the run.
          describe_samples: names the samples of such a step by its inputs and metrics.
          hooks: are called with each finished step.
        """
        self.record = record
        self._log, self._losses, self._leaf_names = log, columns.losses, leaf_names(columns.checked, params)
        self._max_nonfinite, self._nonfinite = max_nonfinite, 0
        self._describe_samples, self._hooks = describe_samples, hooks
        self._throughput = Throughput()
        self._pending: tuple[int, StepInput, dict[str, jax.Array]] | None = None

    def before_step(self, programs: int, disturbed: bool) -> None:
        """Must be called before a step is dispatched, with the number of compiled programs so far.

        Args:
          disturbed: whether a program is being compiled or a trace begins or ends: the step's time is not its speed.
        """
        self.record.programs = programs
        if disturbed:
            self._throughput.compiled()

    def after_step(self, step: int, inputs: StepInput, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of update `step`, and finishes the step before it.

        Raises:
          NonFiniteError: as `flush`.
        """
        self.flush()
        self._pending = step, inputs, metrics

    def reset_timer(self) -> None:
        """Excludes the time since the last finished step from the throughput, such as that of an evaluation."""
        self._throughput.reset_timer()

    def flush(self) -> None:
        """Fetches and writes the pending metrics.

        Raises:
          NonFiniteError: a loss or a gradient is not finite in too many steps in a row.
        """
        if self._pending is None:
            return
        (step, inputs, on_devices), self._pending = self._pending, None
        metrics = jax.device_get(on_devices)
        self._check_finite(step, inputs, metrics)
        tiles, seconds = self._throughput.lap(inputs.batch.batch_size)
        metrics["tiles_per_second"] = self._throughput.latest
        finished = Finished(step, inputs, metrics, seconds)
        losses = {name: float(metrics[metric]) for name, metric in self._losses.items()}
        self.record.add_step(losses if metrics["finite"] else None, finished.kind)
        if inputs.skipped:
            skipped = self.record.skipped
            skipped[inputs.batch.dataset] = skipped.get(inputs.batch.dataset, 0) + inputs.skipped
        self.record.tiles += tiles
        self.record.seconds += seconds
        self._log.write(step, inputs.batch.dataset, inputs.batch.patch_size, metrics)
        for hook in self._hooks:
            hook(finished)

    def _check_finite(self, step: int, inputs: StepInput, metrics: Mapping[str, Any]) -> None:
        """Counts steps that are not finite, and ends the run at too many in a row."""
        self._nonfinite = 0 if metrics["finite"] else self._nonfinite + 1
        if self._nonfinite == 0:
            return
        ends = self._nonfinite >= self._max_nonfinite
        bad = zip(self._leaf_names, metrics["nonfinite_leaves"], strict=True)
        samples = f"; {self._describe_samples(inputs, metrics)}" if self._describe_samples else ""
        advice = (
            "Look for such values in that dataset; else lower optimizer.learning_rate or set optimizer.clip_norm, and "
            "start again from the last checkpoint"
            if ends
            else f"The run continues, until there are {self._max_nonfinite} in a row (max_nonfinite_steps)"
        )
        message = (
            f"step {step} on dataset {inputs.batch.dataset!r} with patches of {inputs.batch.patch_size:g} m gave "
            f"infinite values or NaN in: {first_names([name for name, is_bad in bad if is_bad])}. Its update was not "
            f"applied. {advice}{samples}"
        )
        if ends:
            raise NonFiniteError(message)
        logging.warning("%s", message)


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Returns the first few of many names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
