"""Whole runs of the command line on fake data, in processes of their own: straight, killed, stopped, spoiled."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tests" / "train" / "fake_run.py"
EXACT = ("step", "dataset", "patch_size", "loss", "loss_predictive", "loss_contrastive", "learning_rate", "ema")


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs the command line; all runs share data and compiled programs."""
    shared = tmp_path_factory.mktemp("shared")

    def launch(workdir, *flags, **accidents):
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "XLA_FLAGS": "",
            "XDG_CACHE_HOME": str(shared / "cache"),
            "FAKE_ROOT": str(shared),
            **{f"FAKE_{name.upper()}": str(value) for name, value in accidents.items()},
        }
        command = [sys.executable, str(SCRIPT), f"--config={SCRIPT}", f"--workdir={workdir}", *flags]
        return subprocess.run(command, env=environment, cwd=shared, capture_output=True, text=True, timeout=900)

    return launch


@pytest.fixture(scope="module")
def straight(launch, tmp_path_factory):
    """A run of twenty steps that nothing happened to."""
    workdir = tmp_path_factory.mktemp("straight")
    result = launch(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in EXACT} for row in csv.DictReader(file)]


def final_state(workdir, step=20):
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        return manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]


def steps_kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_end(workdir, other):
    assert rows(workdir) == rows(other)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(other))


def test_a_run_leaves_its_results(straight):
    found = summary(straight)
    assert found["steps"] == 20 and found["resumed_from"] is None
    assert found["compiled_programs"] == len({row["patch_size"] for row in rows(straight)}) == 2
    assert found["tiles_per_second"] > 0 and found["peak_memory_mb"] > 100
    for loss in ("predictive", "contrastive"):
        assert found["loss"][loss]["last"] < found["loss"][loss]["first"]
    assert [int(row["step"]) for row in rows(straight)] == list(range(1, 21))
    assert steps_kept(straight) == [10, 20] and list((straight / "tensorboard").iterdir())


def test_killed_and_started_again_it_ends_in_the_same_numbers(launch, straight, tmp_path):
    killed = launch(tmp_path, signal=f"{signal.SIGKILL:d}@13", **{"await": tmp_path / "checkpoints" / "10"})
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "summary.json").exists()
    assert launch(tmp_path).returncode == 0
    assert summary(tmp_path)["resumed_from"] == 10 and summary(tmp_path)["loss"] == summary(straight)["loss"]
    assert_same_end(tmp_path, straight)
    again = launch(tmp_path)
    assert again.returncode == 0 and "already trained for 20 steps" in again.stderr
    assert summary(tmp_path)["loss"] == summary(straight)["loss"] and summary(tmp_path)["resumed_from"] == 10
    assert_same_end(tmp_path, straight)


def test_asked_to_stop_it_saves_and_goes_on_later(launch, straight, tmp_path):
    stopped = launch(tmp_path, signal=f"{signal.SIGTERM:d}@6")
    assert stopped.returncode == 75 and "saved step 7" in stopped.stderr and steps_kept(tmp_path) == [7]
    wider = launch(tmp_path, "--config.model.dim=64")
    assert wider.returncode == 1 and "model.dim: 32 there, 64 now" in wider.stderr
    assert launch(tmp_path).returncode == 0
    assert_same_end(tmp_path, straight)


def test_a_value_that_is_not_finite_stops_the_run(launch, straight, tmp_path):
    spoiled = launch(tmp_path, nan=13)
    assert spoiled.returncode == 1 and "Traceback" not in spoiled.stderr
    for part in ("step 13 on dataset 'fake_run'", "gradient of encoder/", "Its update was not applied"):
        assert part in spoiled.stderr
    assert steps_kept(tmp_path) == [10] and [int(row["step"]) for row in rows(tmp_path)] == list(range(1, 13))
    assert launch(tmp_path).returncode == 0
    assert_same_end(tmp_path, straight)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.mesh.data=3", "mesh.data = 3 times mesh.fsdp = 1 needs 3 devices, and there are 1"),
        ("--config.model.sensors=('spot',)", "dataset 'fake_run' has sensors that model.sensors lacks: s2"),
        ("--config.data.datasets.fake_run.patch_sizes=(15,)", "the usual sizes are 10, 20 m"),
        ("--config.init=nowhere", "nowhere is not the workdir of a run"),
        ("--config.init=nowhere.pth", "nowhere.pth"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(launch, tmp_path, flag, message):
    refused = launch(tmp_path, flag)
    assert refused.returncode == 1 and message in refused.stderr
    assert "compiling" not in refused.stderr and "Traceback" not in refused.stderr
