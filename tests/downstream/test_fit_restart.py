"""Fitting that is killed, stopped and started again ends exactly as if nothing had happened."""

import concurrent.futures
import csv
import itertools
import json
import os
import pathlib
import signal

import numpy as np
import pytest

from anysat_jax.errors import ConfigError, Preempted
from anysat_jax.train import compile
from anysat_jax.train.checkpoints import Checkpoints
from tests import forked
from tests.downstream.fit_toys import (
    FitResult,
    arrange_signal,
    fit,
    fit_and_hang,
    fit_with_accident,
    one_device,
    toy_config,
    toy_problem,
)
from tests.train.toys import assert_same


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[pathlib.Path, FitResult]:
    """A run of twenty steps that nothing happened to; its evaluations after steps 4, 8 and 16 are the best so far."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, fit(toy_problem(), toy_config(), one_device(), workdir)


def with_accident(*args, accident=fit_with_accident) -> int | None:
    """The exit code of a process in which an accident happens."""
    return forked.call(accident, *args)


def rows(workdir: pathlib.Path) -> list[dict[str, str]]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "tiles_per_second"} for row in csv.DictReader(file)
        ]


def assert_same_end(workdir: pathlib.Path, found: FitResult, straight: tuple[pathlib.Path, FitResult]) -> None:
    other, expected = straight
    assert rows(workdir) == rows(other) and [row["step"] for row in rows(other)] == [str(i) for i in range(1, 21)]
    assert (workdir / "evaluation.csv").read_bytes() == (other / "evaluation.csv").read_bytes()
    assert found.record["best"] == expected.record["best"]
    assert found.record["loss"] == expected.record["loss"] and found.record["batches"] == expected.record["batches"]
    assert_same(found.params, expected.params)


def test_the_run_is_long_enough_to_be_interrupted(straight):
    workdir, found = straight
    assert found.record["best"]["epoch"] == 4 and found.record["steps"] == 20 and found.record["resumed_from"] is None
    with Checkpoints(workdir / "best") as best:
        assert best.steps == [8, 16]


@pytest.mark.parametrize(
    "accidents",
    [
        # Before the first checkpoint, during an epoch, right after an evaluation, between best and checkpoint.
        [("logged", 2), ("logged", 6), ("evaluated", 8), ("best", 16)],
        # The first best has no checkpoint that tells of it; a checkpoint is the last thing; a worse evaluation.
        [("best", 4), ("saved", 9), ("evaluated", 12), ("logged", 19)],
    ],
    ids=["early", "late"],
)
def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(straight, tmp_path, accidents):
    for moment, step in accidents:
        assert with_accident(tmp_path, moment, step) == -signal.SIGKILL
        if moment == "best":  # what is newer than any checkpoint is there, and is dropped by the next start
            with Checkpoints(tmp_path / "best") as best, Checkpoints(tmp_path / "checkpoints") as checkpoints:
                assert best.steps[-1] == step > checkpoints.steps[-1]
    found = fit(toy_problem(), toy_config(), one_device(), tmp_path)
    assert found.record["resumed_from"] > 10
    assert_same_end(tmp_path, found, straight)


@pytest.mark.parametrize(
    ("moment", "step", "saved", "evaluations"),
    # When step 7 is logged, step 8 runs, after which an evaluation is due: it is made by the next start.
    [("logged", 7, 8, 1), ("evaluated", 8, 9, 2), ("evaluated", 20, 20, 5)],
)
def test_asked_to_stop_it_saves_and_goes_on_later(straight, tmp_path, moment, step, saved, evaluations):
    number = signal.SIGINT if moment == "logged" else signal.SIGTERM
    with pytest.MonkeyPatch.context() as patch:
        arrange_signal(patch.setattr, number, moment, step)
        with pytest.raises(Preempted, match=f"stop: saved step {saved}; the same command continues from there"):
            fit(toy_problem(), toy_config(), one_device(), tmp_path)
    assert len((tmp_path / "evaluation.csv").read_text().splitlines()) == 1 + evaluations
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps[-1] == saved
    found = fit(toy_problem(), toy_config(), one_device(), tmp_path)
    assert found.record["resumed_from"] == (None if saved == 20 else saved)
    assert_same_end(tmp_path, found, straight)


@pytest.mark.parametrize(
    "requests",
    # Of whole numbers the gradients, of halves the update; step 8 is saved before the request.
    [
        [(1, None, "here"), (7, 6, "here")],
        [(1.5, None, "here"), (7.5, 6, "here")],
        [(7, 6, "elsewhere"), (9, 8, "here")],
    ],
    ids=["gradients", "update", "elsewhere"],
)
def test_asked_to_stop_while_a_program_is_compiled_it_saves_the_step_before(straight, tmp_path, requests):
    wait_for, start = compile.wait_for, None
    for step, saved, asked in requests:
        waits, due = itertools.count(1), 2 * (step - (start or 0)) - 1

        def interrupted(program, *args, waits=waits, due=due, asked=asked):
            if next(waits) == due:
                if asked == "elsewhere":  # as `agree` raises where another process received the signal
                    raise Preempted("process 1 of 2 cannot go on: asked to stop while a program was compiled")
                os.kill(os.getpid(), signal.SIGINT)
                program = concurrent.futures.Future()
            return wait_for(program, *args)

        message = "while a program was compiled" if saved is None else f"saved step {saved}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compile, "wait_for", interrupted)
            with pytest.raises(Preempted, match=f"asked to stop.* {message}"):
                fit(toy_problem(), toy_config(), one_device(), tmp_path)
        start = saved
    found = fit(toy_problem(), toy_config(), one_device(), tmp_path)
    assert found.record["resumed_from"] == saved
    assert_same_end(tmp_path, found, straight)


def test_asked_to_stop_while_the_program_of_an_evaluation_is_compiled_it_saves(straight, tmp_path):
    def stop(params):
        raise Preempted("asked to stop while a program was compiled")

    with pytest.raises(Preempted, match="asked to stop: saved step 4; the same command"):
        fit(toy_problem(validate=stop), toy_config(), one_device(), tmp_path)
    assert_same_end(tmp_path, fit(toy_problem(), toy_config(), one_device(), tmp_path), straight)


@pytest.mark.parametrize(("where", "what"), [("step", "step"), ("validation", "batch of val")])
def test_one_that_hangs_ends_to_be_started_again(straight, tmp_path, where, what):
    assert with_accident(tmp_path, where, accident=fit_and_hang) == 75
    message = f"no {what} finished for 5 s (config.watchdog_seconds)"
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert message in stacks and "in hang" in stacks
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and message in status["error"] and status["total_steps"] == 20
    assert_same_end(tmp_path, fit(toy_problem(), toy_config(), one_device(), tmp_path), straight)


def test_the_average_of_the_weights_goes_on_too(tmp_path):
    config = toy_config(average_decay=0.7, epochs=3)
    expected = fit(toy_problem(), config, one_device(), tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch:
        arrange_signal(patch.setattr, signal.SIGTERM, "logged", 5)
        with pytest.raises(Preempted):
            fit(toy_problem(), config, one_device(), tmp_path / "stopped")
    found = fit(toy_problem(), config, one_device(), tmp_path / "stopped")
    assert found.record["resumed_from"] == 6
    assert_same(found.params, expected.params)
    plain = fit(toy_problem(), toy_config(epochs=3), one_device(), tmp_path / "plain")
    assert not np.array_equal(plain.params["head"]["out"]["bias"], found.params["head"]["out"]["bias"])
    with pytest.raises(ConfigError, match=r"of another problem \(average_decay: 0.7 there, None now\)"):
        fit(toy_problem(), toy_config(epochs=4), one_device(), tmp_path / "stopped")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(straight, tmp_path):
    fit(toy_problem(), toy_config(), one_device(), tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        newest = checkpoints.folder / str(checkpoints.steps[-1])
    for file in (newest / "state").rglob("d/*"):
        file.write_bytes(b"")
    found = fit(toy_problem(), toy_config(), one_device(), tmp_path)
    assert found.record["resumed_from"] == 18
    assert_same_end(tmp_path, found, straight)


def test_a_finished_run_is_left_as_it_is(straight, tmp_path):
    def never(*_):
        raise AssertionError("nothing is left to do")

    workdir, expected = straight
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    found = fit(toy_problem(batches=never, validate=never), toy_config(), one_device(), workdir)
    assert found.record["best"] == expected.record["best"] and found.record["steps"] == 20
    assert_same(found.params, expected.params)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before
    np.testing.assert_array_equal(
        found.params["encoder"]["mix"]["kernel"], toy_problem().frozen["encoder"]["mix"]["kernel"]
    )
