"""Metrics of a run's steps: fetched one step late, checked for NaN and infinity, logged, and passed to hooks."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from anysat_jax.errors import NonFiniteError
from anysat_jax.train.compile import signature_of
from anysat_jax.train.input import StepInput
from anysat_jax.train.metrics_log import MetricsLog, StepColumns
from anysat_jax.train.optimizer import leaf_names
from anysat_jax.train.record import RunRecord

WINDOW = 50  # steps that the latest speed is a mean over


class Meter:
    """Speed of the latest steps of a run, or batches of an evaluation; a lap is the time from one to the next."""

    def __init__(self, peak: float | None = None):
        """Begins the first lap. `peak` is the FLOP/s of all devices together; None: unknown, as then is the MFU."""
        self.latest = math.nan  # tiles per second of the last lap, whether or not it counts
        self._peak, self._excluded = peak, False
        self._laps: collections.deque[tuple[float, ...]] = collections.deque(maxlen=WINDOW)
        self.reset_timer()

    def reset_timer(self) -> None:
        """Begins the present lap anew: the time until now was not training."""
        self._since = time.monotonic()

    def exclude(self) -> None:
        """Excludes the present lap, in which a program is compiled or a trace begins or ends."""
        self._excluded = True

    def lap(self, tiles: int, waited: float = 0.0, flops: float = 0.0) -> float:
        """Ends a lap; returns its seconds, or 0 if it is excluded.

        Args:
          tiles, flops: of all devices.
          waited: seconds in which the host waited for a batch.
        """
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.latest = tiles / max(seconds, 1e-9)
        if self._excluded:
            self._excluded = False
            return 0.0
        self._laps.append((tiles, seconds, waited, flops))
        return seconds

    def values(self) -> dict[str, float | None]:
        """Returns means over the latest laps; None before the first.

        "mfu" is the fraction of the devices' published rate that the step's analytic FLOPs are. "input_wait_share" is
        the fraction of the time in which the host waited for a batch: an upper bound of the time in which devices were
        idle for it.
        """
        # Sums before the division: a mean of rates would give short laps the weight of long ones.
        tiles, seconds, waited, flops = map(sum, zip(*self._laps, strict=True)) if self._laps else (0.0,) * 4
        if not seconds:
            return dict.fromkeys(("tiles_per_second", "mfu", "input_wait_share"))
        return {
            "tiles_per_second": tiles / seconds,
            "mfu": flops / seconds / self._peak if self._peak else None,
            "input_wait_share": min(1.0, waited / seconds),
        }


@dataclasses.dataclass(frozen=True)
class Finished:
    """A step whose metrics are known."""

    step: int  # updates made, this one included
    inputs: StepInput  # of the step
    metrics: Mapping[str, Any]  # numbers and arrays, on the host; "tiles_per_second" among them

    @property
    def kind(self) -> str:
        """Dataset and patch size of its batch."""
        return f"{self.inputs.batch.dataset} {self.inputs.batch.patch_size:g} m"


Hook = Callable[[Finished], None]


@dataclasses.dataclass(repr=False, eq=False)
class StepMonitor:
    """Fetches each step's metrics after the next step was dispatched, so that the devices never wait for the host."""

    record: RunRecord
    log: MetricsLog
    columns: StepColumns
    params: dataclasses.InitVar[Any]  # those that train, for the names of the entries of metrics["nonfinite_leaves"]
    meter: Meter
    _: dataclasses.KW_ONLY
    count_flops: Callable[[StepInput], float] | None = None  # analytic FLOPs of a step; None: unknown
    max_nonfinite: int = 1  # number of steps in a row with values that are not finite that ends the run
    # Names the samples of such a step by its inputs and metrics.
    describe_samples: Callable[[StepInput, Mapping[str, Any]], str] | None = None
    hooks: Sequence[Hook] = ()  # are called with each finished step

    def __post_init__(self, params: Any) -> None:
        self._leaf_names, self._nonfinite = leaf_names(self.columns.checked, params), 0
        self._flops: dict[Any, float] = {}  # by the signature of the inputs
        self._pending: tuple[int, StepInput, dict[str, jax.Array]] | None = None

    def after_step(self, step: int, inputs: StepInput, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of update `step`, and finishes the step before it; raises as `flush`."""
        self.flush()
        self._pending = step, inputs, metrics

    def flush(self) -> None:
        """Fetches and writes the pending metrics.

        Raises:
          NonFiniteError: a loss or a gradient is not finite in too many steps in a row.
        """
        if self._pending is None:
            return
        (step, inputs, on_devices), self._pending = self._pending, None
        # Waits for the step. All is copied at once: each copy of a single number would wait for the devices again.
        metrics = jax.device_get(on_devices)
        # Before anything is written: a run that ends here is resumed from a checkpoint, and makes this step again.
        self._check_finite(step, inputs, metrics)
        record, batch, finished = self.record, inputs.batch, Finished(step, inputs, metrics)
        signature = signature_of(inputs)
        if signature not in self._flops:
            self._flops[signature] = self.count_flops(inputs) if self.count_flops else 0.0
        seconds = self.meter.lap(batch.batch_size, inputs.waited, self._flops[signature])
        metrics["tiles_per_second"] = self.meter.latest
        losses = {name: float(metrics[metric]) for name, metric in self.columns.losses.items()}
        record.add_step(losses if metrics["finite"] else None, finished.kind)
        if inputs.skipped:
            record.skipped[batch.dataset] = record.skipped.get(batch.dataset, 0) + inputs.skipped
        record.tiles += batch.batch_size if seconds else 0
        record.seconds += seconds
        self.log.write(step, batch.dataset, batch.patch_size, metrics)
        for hook in self.hooks:
            hook(finished)

    def _check_finite(self, step: int, inputs: StepInput, metrics: Mapping[str, Any]) -> None:
        """Counts steps that are not finite, and ends the run at too many in a row."""
        self._nonfinite = 0 if metrics["finite"] else self._nonfinite + 1
        if self._nonfinite == 0:
            return
        ends = self._nonfinite >= self.max_nonfinite
        bad = zip(self._leaf_names, metrics["nonfinite_leaves"], strict=True)
        samples = f"; {self.describe_samples(inputs, metrics)}" if self.describe_samples else ""
        advice = (
            "Look for such values in that dataset; else lower optimizer.learning_rate or set optimizer.clip_norm, and "
            "start again from the last checkpoint"
            if ends
            else f"The run continues, until there are {self.max_nonfinite} in a row (max_nonfinite_steps)"
        )
        message = (
            f"step {step} on dataset {inputs.batch.dataset!r} with patches of {inputs.batch.patch_size:g} m gave "
            f"infinite values or NaN in: {first_names([name for name, is_bad in bad if is_bad])}. Its update was not "
            f"applied. {advice}{samples}"
        )
        if ends:
            raise NonFiniteError(message)
        logging.warning("%s", message)


def first_names(names: Sequence[str]) -> str:
    """Returns the first few of many names, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
