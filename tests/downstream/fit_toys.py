"""A problem of a few numbers, so that fitting is tested without a network and without data."""

import dataclasses
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from anysat_jax.downstream import fit as fit_module
from anysat_jax.downstream.config import DownstreamConfig, DownstreamOptimizerConfig
from anysat_jax.downstream.fit import EvaluationLog, Problem
from anysat_jax.downstream.selection import FitStore
from anysat_jax.downstream.task import LossConfig, Task
from anysat_jax.train.compile import Compiled
from anysat_jax.train.config import MeshConfig, PlateauConfig
from anysat_jax.train.metrics_log import MetricsLog
from anysat_jax.train.sharding import make_mesh
from anysat_jax.train.status import JobStatus

WIDE = 128  # of the frozen matrix: just enough to be cut over the devices
INPUTS, CLASSES, BATCH = 6, 3, 16
TASK = Task("toy", "Toy", "tile", "class", ("a", "b", "c"), metric="accuracy")


class FitResult(NamedTuple):
    """What a fit returns."""

    params: dict
    record: dict


@flax.struct.dataclass
class ToyBatch:
    """Stands for a Batch."""

    values: np.ndarray
    labels: dict
    dataset: str = flax.struct.field(pytree_node=False, default="toy")
    patch_size: float = flax.struct.field(pytree_node=False, default=10.0)

    @property
    def batch_size(self) -> int:
        return self.values.shape[0]


def samples(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and noisy labels of some samples of an endless set."""
    values = np.stack([np.random.default_rng((7, i)).standard_normal(INPUTS + 1) for i in index]).astype(np.float32)
    scores = values[:, :CLASSES] + 0.5 * values[:, INPUTS:]
    return values[:, :INPUTS], scores.argmax(axis=1)


class ToyBatches:
    """Batches without end: the k-th depends on k alone."""

    def __init__(self, bad_at: int = 0, bad_rows: tuple[int, ...] = ()):
        self.step, self.closed = 0, False
        self._bad_at, self._bad_rows = bad_at, list(bad_rows)

    def __next__(self) -> ToyBatch:
        index = np.arange(BATCH) + BATCH * (self.step % 8)
        self.step += 1
        values, labels = samples(index)
        if self.step == self._bad_at:
            values[self._bad_rows] = np.nan
        labels = {"tile": labels, "index": index, "other": np.array(["not a number"] * BATCH)}
        return ToyBatch(values, labels)

    def get_state(self) -> dict:
        return {"next_step": self.step}

    def set_state(self, state: dict) -> None:
        self.step = state["next_step"]

    def close(self) -> None:
        self.closed = True


def toy_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return 0.1 * rng.standard_normal(shape, dtype=np.float32)

    encoder = {"projector_toy": {"kernel": draw(INPUTS, WIDE)}, "mix": {"kernel": draw(WIDE, WIDE)}}
    return {"encoder": encoder, "head": {"out": {"kernel": draw(WIDE, CLASSES), "bias": np.zeros(CLASSES, np.float32)}}}


def forward(params: dict, batch: ToyBatch, rng: jax.Array | None) -> jax.Array:
    hidden = jnp.tanh(batch.values @ params["encoder"]["projector_toy"]["kernel"])
    hidden = hidden + jnp.tanh(hidden @ params["encoder"]["mix"]["kernel"])
    if rng is not None:
        hidden = hidden * jax.random.bernoulli(rng, 0.8, hidden.shape) / 0.8
    return hidden @ params["head"]["out"]["kernel"] + params["head"]["out"]["bias"][None]


def validate(params: dict) -> dict:
    """Scores of samples that training does not see; all but one of the task's scores are the same number."""
    values, labels = samples(np.arange(1000, 1100))
    logits = forward(jax.device_get(params), ToyBatch(values, {}), None)
    score = float((logits.argmax(axis=1) == jnp.asarray(labels)).mean())
    loss = float(-jax.nn.log_softmax(logits)[np.arange(100), labels].mean())
    return {"loss": loss, "accuracy": score} | dict.fromkeys(("macro_f1", "weighted_f1", "micro_f1", "mean_iou"), 0.5)


def toy_problem(**changes) -> Problem:
    params = toy_params()
    fields = dict(
        task=TASK,
        forward=forward,
        trainable={"encoder": {"projector_toy": params["encoder"]["projector_toy"]}, "head": params["head"]},
        frozen={"encoder": {"mix": params["encoder"]["mix"]}},
        loss=LossConfig(),
        batches=ToyBatches,
        steps_per_epoch=4,
        validate=validate,
        sample_ids=lambda index: [f"sample-{i}" for i in index],
        fingerprint={"dataset": "toy", "init": "abc"},
    )
    return Problem(**{**fields, **changes})


def toy_config(**changes) -> DownstreamConfig:
    """The config of a short run; `optimizer__clip_norm=2.0` changes a value of a section."""
    config = DownstreamConfig(
        job="finetune",
        init="none",
        epochs=5,
        checkpoint_every=3,
        optimizer=DownstreamOptimizerConfig(
            learning_rate=3e-2,
            weight_decay=0.01,
            clip_norm=1.0,
            warmup_epochs=0.5,
            plateau=PlateauConfig(factor=0.5, patience=1),
        ),
    )
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        change = {section: dataclasses.replace(getattr(config, section), **{key: value})} if section else {key: value}
        config = dataclasses.replace(config, **change)
    return config


def fit(
    problem: Problem, config: DownstreamConfig, mesh: Mesh, workdir: pathlib.Path, status: JobStatus | None = None
) -> FitResult:
    """Fits with the config stored as its own JSON values."""
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    return FitResult(*fit_module.fit(problem, config, mesh, workdir, stored, status))


def one_device():
    return make_mesh(MeshConfig(data=1, fsdp=1))


def fit_with_accident(workdir: pathlib.Path, moment: str, step: int) -> None:
    """Fits in a process of its own, which is killed before the run ends.

    Args:
      workdir: of the run.
      moment: when a step was "logged", when its evaluation was written ("evaluated"), when its best parameters were on
        disk ("best"), or when its checkpoint was ("saved").
      step: which.
    """
    arrange_signal(setattr, signal.SIGKILL, moment, step)
    fit(toy_problem(), toy_config(), one_device(), workdir)


def fit_and_hang(workdir: pathlib.Path, where: str) -> None:
    """Fits in a process of its own, which hangs: in the log of its first step, or in its first validation."""

    def hang(*_):
        time.sleep(600)

    def validate_and_hang(params: dict) -> dict:
        with status.over_split("evaluating", "val", 100, Compiled(jax.jit(forward))):
            return hang()

    problem = toy_problem()
    if where == "validation":
        problem = toy_problem(validate=validate_and_hang)
    else:
        MetricsLog.write = hang
    with JobStatus(workdir, "toy", watchdog_seconds=5.0) as status:
        fit(problem, toy_config(), one_device(), workdir, status)


def arrange_signal(set_attribute: Callable, number: int, moment: str, step: int) -> None:
    """Has this process send itself a signal at a moment, see `fit_with_accident`."""
    owner, name, step_of = {
        "logged": (MetricsLog, "write", lambda self, step, *_: step),
        "evaluated": (EvaluationLog, "write", lambda self, epoch, step, *_: step),
        "best": (FitStore, "save_best", lambda self, params, step: step),
        "saved": (FitStore, "save", lambda self, *_: self.checkpoints.wait() or self.checkpoints.steps[-1]),
    }[moment]
    before = getattr(owner, name)

    def with_signal(self, *args):
        before(self, *args)
        if step_of(self, *args) == step:
            os.kill(os.getpid(), number)

    set_attribute(owner, name, with_signal)
