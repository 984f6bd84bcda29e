"""Whole runs of the command line on fake data, in processes of their own: straight, killed, stopped, spoiled."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from anysat_jax.errors import RunError
from anysat_jax.pretrain.train import pretrain
from anysat_jax.train.compile import StepPrograms
from tests import forked
from tests.conftest import ONE_DEVICE
from tests.train import fake_run

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tests" / "train" / "fake_run.py"
ONE_PROGRAM = "--config.data.datasets.fake_run.patch_sizes=(20,)"  # the README's commands have several
EXACT = ("step", "dataset", "patch_size", "loss", "loss_predictive", "loss_contrastive", "learning_rate", "ema")


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs the command line; all runs share data and compiled programs."""
    shared = tmp_path_factory.mktemp("shared")

    def launch(workdir, *flags, **accidents):
        environment = {
            **os.environ,
            "XLA_FLAGS": ONE_DEVICE,
            "XDG_CACHE_HOME": str(shared / "cache"),
            "FAKE_ROOT": str(shared),
            **{f"FAKE_{name.upper()}": str(value) for name, value in accidents.items()},
        }
        words = [f"--config={SCRIPT}", f"--workdir={workdir}", ONE_PROGRAM, *flags]
        return forked.run(SCRIPT, words, environment, shared)

    launch.root = shared
    return launch


@pytest.fixture(scope="module")
def straight(launch, tmp_path_factory):
    """A run of twenty steps that nothing happened to; three of them are profiled."""
    workdir = tmp_path_factory.mktemp("straight")
    result = launch(workdir, "--config.profile.steps=(15,17)")
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


def assert_refused(launch, workdir, name, value, message):
    """In this process: that such an error becomes a sentence and an exit code is tested with those of processes."""
    fake_run.register()
    config = fake_run.get_config()
    config.data.root, config.mesh.data = str(launch.root), 1
    config.update_from_flattened_dict({name: value})
    with pytest.raises(RunError, match=re.escape(message)):
        pretrain(config, workdir)


def assert_same_end(workdir, other):
    assert rows(workdir) == rows(other)
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(other))


def test_a_run_leaves_its_results(straight):
    found = summary(straight)
    assert found["provenance"].keys() >= {"commit", "date", "seconds", "versions"}
    assert found["steps"] == 20 and found["resumed_from"] is None
    assert found["compiled_programs"] == len({row["patch_size"] for row in rows(straight)}) == 1
    assert found["tiles_per_second"] > 0 and found["peak_memory_mb"] > 100
    for loss in ("predictive", "contrastive"):
        assert found["loss"][loss]["last"] < found["loss"][loss]["first"]
    assert [int(row["step"]) for row in rows(straight)] == list(range(1, 21))
    assert steps_kept(straight) == [10, 20] and list((straight / "tensorboard").iterdir())
    statistics = json.loads((straight / "statistics.json").read_text())
    assert statistics and all("@" in name and {"mean", "std"} == set(one) for name, one in statistics.items())


def test_its_status_and_its_profile_stay(straight):
    found = json.loads((straight / "status.json").read_text())
    assert (found["state"], found["step"], found["total_steps"], found["error"]) == ("done", 20, 20, None)
    assert found["last_checkpoint"] == 20 and found["tiles_per_second"] > 0 and 0 <= found["input_wait_share"] <= 1
    for loss in ("predictive", "contrastive"):
        assert found["losses"][loss] == summary(straight)["loss"][loss]["last"]
    profile = (straight / "profile" / "summary.txt").read_text()
    assert profile.startswith("3 steps on 1 devices") and "compute" in profile


def test_asked_to_stop_it_saves_and_goes_on_later(launch, straight, tmp_path):
    """To the numbers of a run without a stop, and finished it is not trained again; test_kills has runs that die."""
    stopped = launch(tmp_path, signal=f"{signal.SIGTERM:d}@6")
    assert stopped.returncode == 75 and "saved step 7" in stopped.stderr and steps_kept(tmp_path) == [7]
    assert_refused(launch, tmp_path, "model.dim", 64, "model.dim: 32 there, 64 now")
    assert launch(tmp_path).returncode == 0
    again = launch(tmp_path)
    assert again.returncode == 0 and "already trained for 20 steps" in again.stderr
    assert summary(tmp_path)["loss"] == summary(straight)["loss"] and summary(tmp_path)["resumed_from"] == 7
    assert_same_end(tmp_path, straight)


def test_a_value_that_is_not_finite_stops_the_run(launch, straight, tmp_path):
    spoiled = launch(tmp_path, nan=13)
    assert spoiled.returncode == 1 and "Traceback" not in spoiled.stderr
    for part in ("step 13 on dataset 'fake_run'", "gradient of decoder/", "Its update was not applied"):
        assert part in spoiled.stderr
    assert re.search(r"samples with such values in them: train\d$", spoiled.stderr.strip())
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "step 13 on dataset 'fake_run'" in status["error"]
    assert steps_kept(tmp_path) == [10] and rows(tmp_path) == rows(straight)[:12]
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path, 10), final_state(straight, 10))


def test_a_step_that_hangs_ends_the_run_to_be_started_again(launch, tmp_path):
    hung = launch(tmp_path, "--config.watchdog_seconds=10", hang=12)
    assert hung.returncode == 75 and "no step finished for 10 s" in hung.stderr
    assert "in write_and_hang" in (tmp_path / "stacks-0.txt").read_text()
    assert "no step finished for 10 s" in json.loads((tmp_path / "status.json").read_text())["error"]
    assert steps_kept(tmp_path) == [10]


@pytest.fixture
def damaged(straight, launch, tmp_path):
    """The data, with one training tile whose record was changed on disk."""
    (prepared,) = launch.root.glob("fake_run-*")  # what is generated lies in a folder of its own version
    root = shutil.copytree(prepared, tmp_path / "data" / prepared.name).parent
    (path,) = root.glob("fake_run-*/fake_run/*/*-train*")
    content = bytearray(path.read_bytes())
    content[16_000] ^= 1
    path.write_bytes(content)
    return root


def test_a_corrupt_record_ends_the_run_in_one_sentence(launch, damaged, tmp_path):
    refused = launch(tmp_path / "run", root=damaged)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert re.search(r"dataset 'fake_run': tile \d of split 'train' cannot be read .* prepare it again", refused.stderr)


def test_what_is_set_aside_is_counted_and_the_run_goes_on(launch, damaged, tmp_path):
    """A record that is corrupt, and two steps in a row that are not finite."""
    flags = ("--config.data.skip_corrupt", "--config.max_nonfinite_steps=3")
    done = launch(tmp_path / "run", *flags, root=damaged, nan="7,8")
    assert done.returncode == 0, done.stderr
    assert "tiles of fake_run cannot be read and are left out" in done.stderr
    assert "The run continues, until there are 3 in a row (max_nonfinite_steps)" in done.stderr
    found = summary(tmp_path / "run")
    # Twenty batches of four tiles are eleven epochs of seven, and three tiles more.
    assert found["steps"] == 20 and found["nonfinite_steps"] == 2 and found["skipped_records"]["fake_run"] in (11, 12)
    assert [row["step"] for row in rows(tmp_path / "run") if row["loss"] == "nan"] == ["7", "8"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mesh.data", 16, "mesh.data = 16 times mesh.fsdp = 1 needs 16 devices, and there are 8"),
        ("model.sensors", ("spot",), "dataset 'fake_run' has sensors that model.sensors lacks: s2"),
        ("data.datasets.fake_run.patch_sizes", (15,), "the usual sizes are 10, 20 m"),
        ("evaluate.datasets", ("mini_pastis",), "unknown dataset 'mini_pastis'"),
        ("init", "nowhere", "no nowhere; expected a published .pth file, or the workdir of a run"),
        ("init", "nowhere.pth", "nowhere.pth"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(launch, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setattr(StepPrograms, "prepare", lambda *_: pytest.fail("it compiles"))
    assert_refused(launch, tmp_path, name, value, message)
