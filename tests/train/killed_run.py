"""A pretraining on a fake dataset, in a process of its own that is killed at a moment of choice."""

import itertools
import os
import pathlib
import signal
import threading
from typing import NamedTuple

from ml_collections import ConfigDict

from anysat_jax.pretrain.train import pretrain
from anysat_jax.train import checkpoints
from anysat_jax.train import workdir as workdir_module
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.compile import StepPrograms
from anysat_jax.train.input import DeviceFeed
from anysat_jax.train.metrics_log import MetricsLog
from anysat_jax.train.workdir import lock_workdir
from tests.train import fake_run

MOMENTS = {
    "lock": (workdir_module, "_take"),
    "restore": (Checkpoints, "restore"),
    "data": (DeviceFeed, "next"),
    "compile": (StepPrograms, "_compile"),
    "step": (StepPrograms, "run"),
    "log": (MetricsLog, "write"),
    "save": (Checkpoints, "save"),
    "checksums": (checkpoints, "write_checksums"),
    "close": (Checkpoints, "close"),
}
"""What is being done when the process is killed: an owner and the name of its function."""


class Kill(NamedTuple):
    """When the process is killed: some seconds after a function of `MOMENTS` was called for the n-th time, from 1."""

    moment: str
    call: int
    delay: float


def killed_config(shared: pathlib.Path, steps: int, every: int) -> ConfigDict:
    """Steps of one program on one device, with a checkpoint after `every` of them; data are prepared in `shared`."""
    config = fake_run.get_config()
    config.total_steps, config.checkpoint_every = steps, every
    config.data.root = str(shared)
    config.data.datasets.fake_run.patch_sizes = (20,)
    config.mesh.data = 1
    return config


def run(workdir: pathlib.Path, shared: pathlib.Path, steps: int, every: int, kill: Kill | None) -> None:
    """Pretrains in a workdir, or goes on there, until it is done or killed."""
    fake_run.register()
    if kill is not None:
        arrange(kill)
    with lock_workdir(workdir):
        pretrain(killed_config(shared, steps, every), workdir)


def arrange(kill: Kill) -> None:
    """Has this process killed."""
    owner, name = MOMENTS[kill.moment]
    before, calls = getattr(owner, name), itertools.count(1)

    def with_kill(*args, **kwargs):
        if next(calls) == kill.call:
            threading.Timer(kill.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return before(*args, **kwargs)

    setattr(owner, name, with_kill)
