"""What is fitted, and what comes of it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from anysat_jax.adapt.losses import LossConfig
from anysat_jax.adapt.step import Forward
from anysat_jax.adapt.tasks import Task

Params = dict[str, Any]


class Batches(Iterator[Any], Protocol):
    """Training batches without end, numpy: each has `labels`, `batch_size`, `dataset` and `patch_size`.

    Of the labels, the task's level and "index" (B,) are read, and "valid" (B,) bool where it is there.
    """

    def get_state(self) -> dict[str, Any]:
        """Where it stands, JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""

    def close(self) -> None:
        """Stops what runs in the background."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be fitted, to what, and how it is judged.

    Attributes:
      task: what the labels are; `task.metric` chooses the best parameters.
      forward: (whole parameters, batch, rng or None) -> logits float32, traceable.
      trainable: the parameters that train, float32, nested dicts.
      frozen: those that do not; they take no memory of the optimizer.
      loss: class weights and label smoothing.
      batches: makes the endless training batches of this process.
      steps_per_epoch: batches of an epoch.
      validate: scores of the whole parameters (on the devices) on the validation split: finite floats or nan, the same
        on every process, always the same keys: "loss" and the task's metrics. It has a watchdog of its own.
      sample_ids: names of samples by their label "index", for messages.
      fingerprint: JSON values that must not differ between a start and a resume: dataset, model, head, task, the
        weights' digest.
      count_flops: of a step on what it is fed with (see `FitFed`), for the MFU; None: not known, and no MFU is told.
      multipliers: of the learning rate, by leaf of `trainable`, scalars or arrays that can be broadcast to it; None: 1.
    """

    task: Task
    forward: Forward
    trainable: Params
    frozen: Params
    loss: LossConfig
    batches: Callable[[], Batches]
    steps_per_epoch: int
    validate: Callable[[Params], Mapping[str, float]]
    sample_ids: Callable[[Sequence[int]], list[str]]
    fingerprint: dict[str, Any]
    count_flops: Callable[[Any], float] | None = None
    multipliers: Any | None = None


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What fitting has found.

    Attributes:
      params: the whole parameters of the best evaluation, numpy on every process.
      best: its epoch (from 1) and its value of the task's metric.
      record: JSON values: "steps", "epochs", "stopped_early", "best" {"epoch", "step", "metric", "value"},
        "evaluations" (count), "seconds" of training, "tiles_per_second", "programs", "resumed_from", "peak_memory_mb".
    """

    params: dict[str, Any]
    best: tuple[int, float]
    record: dict[str, Any]
