"""What a run shows while it goes: a progress bar, a table for spreadsheets (CSV), and TensorBoard."""

import csv
import math
import os
import pathlib
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any, Self, TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from anysat_jax.pretrain.objective import LOSSES, MEASURES

FLUSH_SECONDS = 30.0  # between two moments in which what was written is brought to the disk


class Board:
    """Writes numbers in the caller's thread.

    tensorboardX's own writer works in the background: on a full disk it dies there, and whoever hands it another number
    waits for ever.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Begins a file; TensorBoard then forgets what earlier files say of this step and of later ones.

        Args:
          folder: of all files of the run; made where it is not there.
          step: the first that is written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files by name: that of a later step comes later, whatever the clock says.
        self._writer = EventsWriter(str(folder / f"events.{step:09d}"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))
        self._flushed = time.monotonic()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one number.

        Raises:
          OSError: the disk takes no more.
        """
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Brings everything to the disk."""
        self._writer.close()


HEALTH = tuple(f"feature_{name}" for name in MEASURES)
METRICS = (*LOSSES, "learning_rate", "ema", "grad_norm", "tiles_per_second", *HEALTH)
COLUMNS = ("step", "dataset", "patch_size", *METRICS)
PER_DATASET = (*LOSSES, *HEALTH)
QUIET_SECONDS = 15.0  # between two lines of the bar where it is written to a file


def open_csv(path: pathlib.Path, step: int, columns: Sequence[str] = COLUMNS) -> TextIO:
    """The table, ready for the rows after `step`: rows of later steps, which a killed run left, are dropped.

    Rows that were written with fewer columns, by an earlier version, are kept and have nothing in the new ones.

    Args:
      path: the file; made with a header where it is not there.
      step: the step of the checkpoint from which the run goes on, 0 for a new run.
      columns: their names; one is "step".
    """
    kept = [row for row in _whole_rows(path) if row.get("step", "").isdigit() and int(row["step"]) <= step]
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *([row.get(name, "") for name in columns] for row in kept)])
    os.replace(part, path)
    return path.open("a", newline="", encoding="utf-8")


def _whole_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows below the table's header, without a line that was cut short."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


class RunLog:
    """Writes the metrics of a run below its workdir; in every process but the first it does nothing.

    A subclass may write other columns, each in its own way.
    """

    metrics: tuple[str, ...] = METRICS
    columns: tuple[str, ...] = COLUMNS
    per_dataset: tuple[str, ...] = PER_DATASET

    def __init__(self, workdir: pathlib.Path, *, step: int, total_steps: int, log_every: int, enabled: bool = True):
        self._log_every, self._total, self._enabled = log_every, total_steps, enabled
        if not enabled:
            return
        self._file = open_csv(workdir / "metrics.csv", step, self.columns)
        self._csv = csv.writer(self._file)
        self._board = Board(workdir / "tensorboard", step + 1)
        interval = 0.5 if sys.stderr.isatty() else QUIET_SECONDS
        self._bar = tqdm(total=total_steps, initial=step, unit="step", mininterval=interval, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._enabled:
            self._bar.close()
            self._board.close()
            self._file.close()

    def write(self, step: int, dataset: str, patch_size: float, metrics: Mapping[str, Any]) -> None:
        """Shows a step; every `log_every` steps, and the last, also go to the files.

        Args:
          step: how many updates were made.
          metrics: a number for each of `self.metrics`.
        """
        if not self._enabled:
            return
        values = {name: float(metrics[name]) for name in self.metrics}
        self._show(dataset, patch_size, values)
        if step % self._log_every == 0 or step == self._total:
            place = {"step": step, "dataset": dataset, "patch_size": f"{patch_size:g}"}
            self._csv.writerow(self.row(place, values))
            self._file.flush()  # a row is on disk before the checkpoint of its step
            self._write_board(step, dataset, values)

    def row(self, place: Mapping[str, Any], values: Mapping[str, float]) -> list[Any]:
        """What is written for a step, in the order of `columns`."""
        return [place[name] if name in place else repr(values[name]) for name in self.columns]

    def status(self, values: Mapping[str, float]) -> str:
        """What stands after the bar."""
        return (
            f"predictive {values['loss_predictive']:.4f}, contrastive {values['loss_contrastive']:.3f}, "
            f"lr {values['learning_rate']:.1e}, EMA {values['ema']:.4f}, {values['tiles_per_second']:.1f} tiles/s"
        )

    def _show(self, dataset: str, patch_size: float, values: Mapping[str, float]) -> None:
        self._bar.set_description(f"{dataset} {patch_size:g} m", refresh=False)
        self._bar.set_postfix_str(self.status(values), refresh=False)
        self._bar.update()

    def _write_board(self, step: int, dataset: str, values: Mapping[str, float]) -> None:
        """Writes what is finite: TensorBoard has no place for the rest, which is in the table."""
        shown = {name: values[name] for name in self.metrics}
        shown |= {f"{name}/{dataset}": values[name] for name in self.per_dataset}
        for name, value in shown.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)
