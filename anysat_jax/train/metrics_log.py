"""Logs of a run: a progress bar, a CSV table and TensorBoard."""

import csv
import dataclasses
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

FLUSH_SECONDS = 30.0  # between two flushes of TensorBoard's file
QUIET_SECONDS = 15.0  # between two lines of the bar where it is written to a file


@dataclasses.dataclass(frozen=True)
class StepColumns:
    """Columns of the log of each step."""

    metrics: tuple[str, ...]  # names of numbers, the last columns of metrics.csv
    bar: Callable[[Mapping[str, float]], str]  # the text behind the progress bar, from the metrics
    losses: Mapping[str, str]  # for each loss of the run's record the metric that it is
    checked: tuple[str, ...]  # losses that must be finite; beside them, all gradients must
    per_dataset: tuple[str, ...] = ()  # metrics that TensorBoard shows for each dataset too
    steps_per_epoch: int | None = None  # for the column "epoch"; None: without that column

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of metrics.csv."""
        return ("step", *(("epoch",) if self.steps_per_epoch else ()), "dataset", "patch_size", *self.metrics)


def open_csv(path: pathlib.Path, step: int, columns: Sequence[str]) -> TextIO:
    """Opens a table, or creates it with a header, for the rows after `step`, 0 for a new run.

    Rows of later steps, which a killed run left, are dropped. Rows with fewer columns, of an earlier version, are kept
    with nothing in the new ones. One of the columns is "step".
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    header, *rows = list(csv.reader(lines)) or [[]]
    # A line that a kill cut short has another number of cells than the header.
    found = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    kept = [row for row in found if row.get("step", "").isdigit() and int(row["step"]) <= step]
    # Written beside the table and renamed: a kill in between must not lose the rows.
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *([row.get(name, "") for name in columns] for row in kept)])
    os.replace(part, path)
    return path.open("a", newline="", encoding="utf-8")


class MetricsLog:
    """Writes the metrics of a run below its workdir; in every process but the first it does nothing."""

    def __init__(
        self,
        workdir: pathlib.Path,
        columns: StepColumns,
        *,
        step: int,
        total_steps: int,
        log_every: int,
        enabled: bool = True,
    ):
        self._columns, self._log_every, self._total, self._enabled = columns, log_every, total_steps, enabled
        if not enabled:
            return
        self._file = open_csv(workdir / "metrics.csv", step, columns.names)
        self._csv = csv.writer(self._file)
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # tensorboardX's own SummaryWriter works in the background: on a full disk its thread dies, and the next number
        # waits for ever. This one writes in the caller's thread, and raises. TensorBoard reads files by name: that of a
        # later step comes later, even if the clock was set back.
        self._board, self._flushed = EventsWriter(str(folder / f"events.{step + 1:09d}"), f".{os.getpid()}"), 0.0
        # TensorBoard drops what earlier files have of this step and later ones.
        self._add_event(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._interval = 0.5 if sys.stderr.isatty() else QUIET_SECONDS
        self._shown = -math.inf
        self._bar = tqdm(total=total_steps, initial=step, unit="step", mininterval=self._interval, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._enabled:
            self._bar.close()
            self._board.close()
            self._file.close()

    def write(self, step: int, dataset: str, patch_size: float, metrics: Mapping[str, Any]) -> None:
        """Shows the metrics of update `step`, a number for each of the columns' metrics.

        Every `log_every` steps, and the last, also go to the files.
        """
        if not self._enabled:
            return
        values = {name: float(metrics[name]) for name in self._columns.metrics}
        self._bar.set_description(f"{dataset} {patch_size:g} m", refresh=False)
        self._bar.set_postfix_str(self._columns.bar(values), refresh=False)
        self._bar.update()
        if step % self._log_every == 0 or step == self._total:
            row = {"step": step, "dataset": dataset, "patch_size": f"{patch_size:g}"}
            row["epoch"] = math.ceil(step / (self._columns.steps_per_epoch or 1))
            # repr, so that a number read back is the same to the last bit: runs are compared by their tables.
            row |= {name: repr(value) for name, value in values.items()}
            self._csv.writerow([row[name] for name in self._columns.names])
            self._file.flush()  # a row is on disk before the checkpoint of its step
            self.write_scalars(step, values)
            self.write_scalars(step, {f"{name}/{dataset}": values[name] for name in self._columns.per_dataset})

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers to TensorBoard, which has no place for those that are not finite: they are in the table."""
        for name, value in values.items():
            if self._enabled and math.isfinite(value):
                self._add_event(step, summary=scalar(name, value))

    def _add_event(self, step: int, **content: Any) -> None:
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._board.flush()
            self._flushed = time.monotonic()

    def show_waiting(self, what: str) -> None:
        """Shows behind the bar what the run waits for, at once and then every half second, or 15 s in a file."""
        if self._enabled and time.monotonic() - self._shown >= self._interval:
            self._shown = time.monotonic()
            self._bar.set_postfix_str(what)  # draws the bar
