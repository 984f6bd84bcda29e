"""Runs of the command line in several real processes on this machine."""

import csv
import pathlib
import tempfile
import time

import numpy as np

from anysat_jax import main
from launch import local
from tests import forked

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LOSSES = ("loss", "loss_predictive", "loss_contrastive")
LONG = 3600  # seconds: such runs share the machine with other tests


class Cluster:
    """Processes under way, each with what it said."""

    def __init__(self, flags, devices, **environment):
        """Starts a process for each list of flags, each with so many fake devices; a lone one knows of no others."""
        address, count = f"127.0.0.1:{local.free_port()}", len(flags)
        self._folder = tempfile.TemporaryDirectory()
        self._said = [pathlib.Path(self._folder.name) / f"said-{index}" for index in range(count)]
        self.members = []
        for index, own in enumerate(flags):
            others = [f"--processes={address},{count},{index}"] if count > 1 else []
            own_environment = {**local.environment("", devices), **environment}
            words = ["anysat_jax.main", *others, *own]
            files = [self._said[index]] * 2
            self.members.append(forked.start(forked.command_line, main.run, words, own_environment, REPOSITORY, files))

    def end(self):
        """Exit codes, and what was said, of each."""
        for member in self.members:
            member.join(timeout=LONG)
        return [member.exitcode for member in self.members], [file.read_text() for file in self._said]

    def wait_for_step(self, workdir, step):
        """Returns once a step was logged."""
        until = time.monotonic() + LONG
        while not (workdir / "metrics.csv").exists() or len(rows(workdir)) < step:
            assert time.monotonic() < until and all(member.exitcode is None for member in self.members), self.end()
            time.sleep(0.05)


def run(processes, devices, flags, **environment):
    """A run to its end."""
    codes, said = Cluster([flags] * processes, devices, **environment).end()
    assert codes == [0] * processes, "\n".join(said)


def tiny_mini(name, root, workdir, *flags):
    """Flags of a run of `tiny_mini`."""
    script = REPOSITORY / "tests" / "train" / "tiny_mini.py"
    return [f"--config={script}:{name}", f"--config.data.root={root}", f"--workdir={workdir}", *flags]


def rows(workdir):
    """What metrics.csv has of each step."""
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_losses(workdir, other, rtol=1e-4):
    """The same batches in the same order, and the same losses but for rounding."""
    found, expected = rows(workdir), rows(other)
    for name in ("step", "dataset", "patch_size"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    for name in LOSSES:
        values = [[float(row[name]) for row in table] for table in (found, expected)]
        np.testing.assert_allclose(*values, rtol=rtol, err_msg=name)
