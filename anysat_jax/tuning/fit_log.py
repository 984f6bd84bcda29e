"""What fitting shows and writes while it goes: metrics.csv, evaluation.csv, TensorBoard, and a bar."""

import csv
import math
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anysat_jax.adapt.tasks import METRICS, Task
from anysat_jax.train.ledger import Ledger, Pending, Watcher, first_names
from anysat_jax.train.log import RunLog, open_csv
from anysat_jax.train.summary import RunRecord


class FitLog(RunLog):
    """The logs of a run of fitting; in every process but the first it does nothing."""

    metrics = ("loss", "learning_rate", "grad_norm", "tiles_per_second")
    columns = ("step", "epoch", "dataset", "patch_size", *metrics)
    per_dataset = ()

    def __init__(
        self,
        workdir: pathlib.Path,
        task: Task,
        *,
        steps_per_epoch: int,
        evaluated_step: int,
        **run: Any,
    ):
        """Opens the files.

        Args:
          workdir: where they are.
          task: what is measured in evaluations.
          steps_per_epoch: to tell the epoch of a step.
          evaluated_step: step of the last evaluation that the run remembers; rows of later ones are dropped.
          run: as for `RunLog`.
        """
        super().__init__(workdir, **run)
        self._task, self._steps_per_epoch, self._validation = task, steps_per_epoch, ""
        self._scores = ("loss", *METRICS[task.kind])
        if self._enabled:
            columns = ("epoch", "step", *self._scores)
            self._evaluation = open_csv(workdir / "evaluation.csv", evaluated_step, columns)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._enabled:
            self._evaluation.close()

    def row(self, place: Mapping[str, Any], values: Mapping[str, float]) -> list[Any]:
        return super().row({**place, "epoch": math.ceil(place["step"] / self._steps_per_epoch)}, values)

    def status(self, values: Mapping[str, float]) -> str:
        rate, speed = values["learning_rate"], values["tiles_per_second"]
        return f"loss {values['loss']:.4f}, {self._validation}lr {rate:.1e}, {speed:.1f} tiles/s"

    def write_evaluation(self, epoch: int, step: int, scores: Mapping[str, float], best: float) -> None:
        """Writes the scores of an evaluation; the bar shows the task's metric from now on.

        Args:
          epoch, step: after which it was made.
          scores: "loss" and the task's metrics.
          best: the best value of the task's metric so far.
        """
        if not self._enabled:
            return
        metric = self._task.metric
        self._validation = f"validation {metric} {scores[metric]:.4f} (best {best:.4f}), "
        csv.writer(self._evaluation).writerow([epoch, step, *(repr(float(scores[name])) for name in self._scores)])
        self._evaluation.flush()  # a row is on disk before the checkpoint of its step
        for name in self._scores:
            self._board.add_scalar(f"validation/{name}", float(scores[name]), step)


class FitLedger(Ledger):
    """The bookkeeping of fitting: its complaints name samples."""

    def __init__(
        self,
        record: RunRecord,
        log: FitLog,
        leaf_names: list[str],
        sample_ids: Callable[[Sequence[int]], list[str]],
        *,
        max_nonfinite: int = 1,
        watchers: Sequence[Watcher] = (),
    ):
        """As `Ledger`; `sample_ids` names samples by their label "index"."""
        super().__init__(record, log, leaf_names, max_nonfinite=max_nonfinite, watchers=watchers)
        self._sample_ids = sample_ids

    def losses(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {"loss": float(metrics["loss"])}

    def complaint(self, pending: Pending, metrics: Mapping[str, Any]) -> str:
        bad = metrics["nonfinite_samples"]
        found = metrics["index"][bad] if bad.any() else metrics["index"]
        names = first_names(self._sample_ids(found.tolist()), most=10)
        samples = f"samples whose loss is not finite: {names}" if bad.any() else f"samples of the batch: {names}"
        return f"{super().complaint(pending, metrics)}; {samples}"
