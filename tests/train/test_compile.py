"""Counting of programs, and compiling them ahead."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.errors import Preempted
from anysat_jax.train.compile import Compiled, StepPrograms
from anysat_jax.train.input import StepInput
from anysat_jax.train.workdir import StopRequest
from tests.train.toys import toy_masks


def step_input(dataset="fake", patch_size=10.0, targets=2, num_dates=0):
    sensors = ("spot", "s2") if num_dates else ("spot",)
    batch = fake_batch(
        sensors, batch_size=2, extent=20.0, patch_size=patch_size, dataset=dataset, num_dates=num_dates or 1
    )
    masks = toy_masks(2).replace(target_mask=np.ones(targets, bool))
    return StepInput((jax.tree.map(jnp.asarray, batch), jax.tree.map(jnp.asarray, masks)), {})


def test_programs_are_counted_by_dataset_patch_size_and_shapes(caplog):
    with StepPrograms(Compiling(), jnp.int32(0)) as programs:
        for one in (step_input(), step_input(), step_input(patch_size=20.0), step_input(targets=3)):
            programs.prepare(one)
        assert len(programs) == 3 and "compiled programs" not in caplog.text
        for targets in range(4, 8):
            programs.prepare(step_input(targets=targets))
        assert "fake at 10 m has more than 4 compiled programs" in caplog.text


def test_more_than_are_expected_are_warned_of(caplog):
    with StepPrograms(Compiling(), jnp.int32(0), expected={("fake", 10.0): 8}) as programs:
        for targets in range(2, 10):
            programs.prepare(step_input(targets=targets))
        assert len(programs) == 8 and "compiled programs" not in caplog.text
        programs.prepare(step_input(targets=10))
        assert "fake at 10 m has more than 8 compiled programs" in caplog.text


class Compiling:
    """Stands for a jitted step; it compiles once it is released."""

    def __init__(self, released=True):
        self.released = threading.Event()
        if released:
            self.released.set()

    def lower(self, *arguments):
        return self

    def compile(self):
        self.released.wait()
        return lambda state, *inputs: (state, {})


def test_waiting_for_a_program_is_reported_at_once_with_how_many_of_how_many():
    step, reports = Compiling(released=False), []

    def on_wait(progress):
        reports.append(progress)
        if len(reports) == 2:
            step.released.set()

    with StepPrograms(step, jnp.int32(0), expected={("fake", 10.0): 3, ("fake", 20.0): 2}, on_wait=on_wait) as programs:
        for one in (step_input(), step_input(patch_size=20.0)):
            programs.prepare(one)
        programs.run(jnp.int32(0), step_input())
        programs.run(jnp.int32(0), step_input())  # nothing is left to wait for
    assert len(reports) >= 2 and all(one.startswith("compiling 2 of 5 programs, ") for one in reports)


@pytest.mark.parametrize("compiled", ["ahead", "when called"])
def test_a_stop_request_is_not_kept_waiting_by_a_program(compiled):
    step = Compiling(released=False)
    with StopRequest() as stop, StepPrograms(step, jnp.int32(0)) as programs:
        programs.prepare(step_input())
        stop.requested = True
        with pytest.raises(Preempted, match="asked to stop while a program was compiled"):
            programs.run(jnp.int32(0), step_input()) if compiled == "ahead" else Compiled(step)(jnp.int32(0))
        step.released.set()


def test_batches_of_other_lengths_are_compiled_side_by_side():
    def step(state, batch, masks):
        return state + batch.observations["s2"].date_mask.sum(), {}

    state = jnp.int32(0)
    with StepPrograms(jax.jit(step), state) as programs:
        for num_dates in (4, 8, 4):
            programs.prepare(step_input(num_dates=num_dates))
        for num_dates in (4, 8, 4):
            state, _ = programs.run(state, step_input(num_dates=num_dates))
        assert int(state) == 2 * 16 and len(programs) == 2


def test_programs_are_compiled_once_and_give_what_the_step_gives():
    traced = []

    def step(state, batch, masks):
        traced.append(batch.dataset)
        return state + batch.observations["spot"].values.sum(), {"targets": masks.target_mask.sum()}

    state = jnp.float32(1.0)
    with StepPrograms(jax.jit(step), state) as programs:
        for one in (step_input(), step_input("other"), step_input()):
            programs.prepare(one)
        for one in (step_input(), step_input("other"), step_input()):
            expected = step(state, *one.inputs)
            state, metrics = programs.run(state, one)
            assert float(state) == float(expected[0]) and int(metrics["targets"]) == 2
        assert not programs.compiling
        assert len(programs) == 2
    assert sorted(traced) == ["fake"] * 3 + ["other"] * 2  # two compilations, three calls for comparison


def test_an_error_of_compiling_reaches_the_caller():
    def step(state, batch, masks):
        raise ValueError("no such thing")

    with StepPrograms(jax.jit(step), jnp.float32(0)) as programs:
        programs.prepare(step_input())
        with pytest.raises(ValueError, match="no such thing"):
            programs.run(jnp.float32(0), step_input())


def test_constants_are_between_the_state_and_the_inputs():
    def step(state, factor, batch, masks):
        return state * factor["by"] + batch.batch_size, {}

    with StepPrograms(jax.jit(step), jnp.int32(1), constants=({"by": jnp.int32(10)},)) as programs:
        programs.prepare(step_input())
        assert int(programs.run(jnp.int32(3), step_input())[0]) == 32


def test_it_is_compiled_once_for_each_kind_of_arguments():
    traced = []

    def double(tree):
        traced.append(tree["x"].shape)
        return 2 * tree["x"]

    program = Compiled(jax.jit(double))
    for length in (2, 3, 2, 3):
        found = program({"x": np.arange(length, dtype=np.float32)})
        np.testing.assert_array_equal(found, 2 * np.arange(length))
    assert traced == [(2,), (3,)] and len(program) == 2
    program({"x": np.arange(2)})
    program({"x": np.arange(2), "y": np.zeros(1)})
    assert len(program) == 4  # another dtype, another structure


def test_it_tells_that_it_compiles():
    told = []

    def look(x):
        time.sleep(0.1)  # until the thread that started this one has noted it
        told.append(program.compiling)
        return jnp.sin(x)

    program = Compiled(jax.jit(look))
    program(np.ones(2))
    program(np.ones(2))
    assert told == [True] and not program.compiling


def test_a_mistake_while_compiling_is_not_taken_for_compiling():
    def broken(x):
        raise ValueError("shapes do not fit")

    program = Compiled(jax.jit(broken))
    for _ in range(2):
        with pytest.raises(ValueError, match="shapes do not fit"):
            program(np.ones(2))
    assert not program.compiling


def test_programs_that_wait_for_a_thread_are_dropped_at_the_end():
    step = Compiling(released=False)
    with StepPrograms(step, jnp.int32(0)) as programs:
        for targets in range(2, 6):
            programs.prepare(step_input(targets=targets))
    step.released.set()
    assert sum(program.cancelled() for program in programs._programs.values()) >= 2
