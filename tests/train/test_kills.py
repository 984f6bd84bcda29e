"""Killed at random moments and started again each time, a run ends in the numbers of one that nothing happened to."""

import csv
import json
import pathlib
import random
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from anysat_jax.weights.checkpoint_files import find_damage, has_checksums
from tests import forked
from tests.train.killed_run import MOMENTS, Kill, run

EXACT = ("step", "dataset", "patch_size", "loss", "loss_predictive", "loss_contrastive", "learning_rate", "ema")
FEW = [Kill("compile", 1, 0.05), Kill("save", 3, 0.02)]
STEPS, EVERY = 20, 4  # 20 as in test_loop, whose program this test shares; and steps between checkpoints
MANY_STEPS, OFTEN = 48, 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> pathlib.Path:
    """Data of all runs."""
    return tmp_path_factory.mktemp("shared")


def start(workdir, shared, steps, every, kill=None) -> int | None:
    """The exit code of a run in a process of its own."""
    return forked.call(run, workdir, shared, steps, every, kill)


def rows(workdir) -> list[dict[str, str]]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in EXACT} for row in csv.DictReader(file)]


def final_state(workdir, step):
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        return manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]


def newest_step(workdir) -> int:
    """The newest checkpoint, which must be whole; of older ones a killed process may have deleted a part."""
    folders = [folder for folder in (workdir / "checkpoints").glob("*") if folder.name.isdigit()]
    if not folders:
        return 0
    newest = max(folders, key=lambda folder: int(folder.name))
    assert has_checksums(newest) and find_damage(newest) is None
    return int(newest.name)


def kill_again_and_again(kills, shared, workdir, straight, steps, every) -> None:
    """Kills a run at each moment in turn, lets it end, and compares it with one that nothing happened to."""
    newest = 0
    for kill in kills:
        assert start(workdir, shared, steps, every, kill) == -signal.SIGKILL, kill
        assert newest_step(workdir) >= newest, f"{kill} cost a checkpoint"
        newest = newest_step(workdir)
    assert start(workdir, shared, steps, every) == 0
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (workdir, straight))
    assert summary["loss"] == expected["loss"] and summary["steps"] == steps and summary["resumed_from"] > 0
    assert rows(workdir) == rows(straight) and len(rows(straight)) == steps
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir, steps), final_state(straight, steps))
    assert not (workdir / "run.lock").exists() and not (workdir / "checkpoints-damaged").exists()


def test_killed_twice_it_ends_in_the_same_numbers(shared, tmp_path):
    first, *rest = FEW
    assert start(tmp_path / "killed", shared, STEPS, EVERY, first) == -signal.SIGKILL
    assert start(tmp_path / "straight", shared, STEPS, EVERY) == 0
    kill_again_and_again(rest, shared, tmp_path / "killed", tmp_path / "straight", STEPS, EVERY)


def random_kills(seed: int) -> list[Kill]:
    """Twenty moments in any order, each kind at least twice; the last falls into the end of the run."""
    rng = random.Random(seed)
    kinds = [name for name in MOMENTS if name != "close"]
    drawn = [*kinds, *kinds, *rng.choices(("save", "checksums", "step"), k=3)]
    rng.shuffle(drawn)
    once = ("lock", "restore", "compile")  # these happen once in each process
    kills = [Kill(name, 1 if name in once else rng.randint(1, 4), rng.uniform(0.0, 0.15)) for name in drawn]
    return [*kills, Kill("close", 1, 0.0)]


@pytest.mark.slow
def test_killed_twenty_times_it_ends_in_the_same_numbers(shared, tmp_path):
    kills = random_kills(seed=0)
    assert len(kills) == 20 and {kill.moment for kill in kills} == set(MOMENTS)
    assert start(tmp_path / "straight", shared, MANY_STEPS, OFTEN) == 0
    kill_again_and_again(kills, shared, tmp_path / "killed", tmp_path / "straight", MANY_STEPS, OFTEN)
