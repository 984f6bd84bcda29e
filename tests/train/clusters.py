"""Runs of the command line in several real processes on this machine."""

import csv
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from launch import local

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LOSSES = ("loss", "loss_predictive", "loss_contrastive")
LONG = 3600  # seconds: such runs share the machine with other tests


class Cluster:
    """Processes under way, each with what it said."""

    def __init__(self, flags, devices, **environment):
        """Starts a process for each list of flags, each with so many fake devices; a lone one knows of no others."""
        address, count = f"127.0.0.1:{local.free_port()}", len(flags)
        places = [f"{address},{count},{index}" if count > 1 else "" for index in range(count)]
        self._said = [tempfile.TemporaryFile("w+") for _ in flags]  # noqa: SIM115
        self.members = [
            subprocess.Popen(
                [sys.executable, "-m", "anysat_jax.main", *own],
                env={**local.environment(place, devices), "PYTHONPATH": str(REPOSITORY), **environment},
                cwd=REPOSITORY,
                stderr=said,
            )
            for place, own, said in zip(places, flags, self._said, strict=True)
        ]

    def end(self):
        """Exit codes, and what was said, of each."""
        codes = [member.wait(timeout=LONG) for member in self.members]
        for file in self._said:
            file.seek(0)
        return codes, [file.read() for file in self._said]

    def wait_for_step(self, workdir, step):
        """Returns once a step was logged."""
        until = time.monotonic() + LONG
        while not (workdir / "metrics.csv").exists() or len(rows(workdir)) < step:
            assert time.monotonic() < until and all(member.poll() is None for member in self.members), self.end()
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
