"""Where the time of a trace goes: on traces that are made up, and on one of this machine."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anysat_jax.train.profiling import (
    INPUT,
    STEP,
    SUMMARY,
    Profiler,
    describe,
    read_trace,
    time_fractions,
)

MS = 1e6  # nanoseconds


@dataclasses.dataclass
class Event:
    name: str
    start: float  # milliseconds
    end: float
    stats: tuple = ()

    @property
    def start_ns(self):
        return self.start * MS

    @property
    def duration_ns(self):
        return (self.end - self.start) * MS


@dataclasses.dataclass
class Named:
    """A plane or a line."""

    name: str
    lines: tuple = ()
    events: tuple = ()


@dataclasses.dataclass
class Profile:
    planes: tuple


def host(*waits, steps=((0, 10), (10, 20))):
    events = [Event(f"{STEP}#step_num={n}#", *step) for n, step in enumerate(steps)]
    return Named("/host:CPU", lines=(Named("python", events=(*events, *(Event(INPUT, *wait) for wait in waits))),))


def tpu(number, *operations):
    modules = Named("XLA Modules", events=(Event("jit_step", 0, 20),))
    return Named(f"/device:TPU:{number}", lines=(modules, Named("XLA Ops", events=operations)))


def test_each_moment_belongs_to_one_share():
    device = tpu(
        0,
        Event("%fusion.1 = f32[8]{0} fusion(...)", 0, 6),
        Event("%all-reduce.2 = f32[8]{0} all-reduce(...)", 4, 9),
        Event("%while.3 = (...) while(...)", 0, 20),  # holds the others
    )
    found = time_fractions(Profile((host((8, 12), (13, 15)), device)))
    assert (found.steps, found.devices, found.seconds) == (2, 1, pytest.approx(0.020))
    assert found.compute == pytest.approx(6 / 20)
    assert found.communication == pytest.approx(3 / 20)  # from 6 to 9
    assert found.hidden == pytest.approx(2 / 20)  # from 4 to 6
    assert found.input == pytest.approx(5 / 20)  # from 9 to 12 and from 13 to 15
    assert found.host == pytest.approx(6 / 20)
    assert found.operations == {"fusion.1": pytest.approx(6 / 11), "all-reduce.2": pytest.approx(5 / 11)}


def test_devices_are_averaged():
    found = time_fractions(Profile((host(), tpu(0, Event("dot", 0, 20)), tpu(1, Event("dot", 0, 10)))))
    assert found.devices == 2 and found.compute == pytest.approx(0.75) and found.host == pytest.approx(0.25)


def test_kernels_of_a_gpu_run_in_streams():
    gpu = Named(
        "/device:GPU:0",
        lines=(
            Named("Stream #14(Compute)", events=(Event("gemm_fusion_dot_3", 0, 8),)),
            Named("Stream #20(Collective)", events=(Event("ncclDevKernel_AllReduce_Sum_f32", 6, 12),)),
            Named("Source code", events=(Event("step.py:63", 0, 20),)),
        ),
    )
    found = time_fractions(Profile((host(), gpu)))
    assert found.compute == pytest.approx(8 / 20) and found.communication == pytest.approx(4 / 20)


def test_a_trace_without_steps_is_refused():
    with pytest.raises(ValueError, match="no step of training"):
        time_fractions(Profile((tpu(0, Event("dot", 0, 1)),)))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Steps 3 and 4 of six, on this machine."""
    workdir = tmp_path_factory.mktemp("run")
    advance = jax.jit(lambda state: jnp.sin(state @ state))
    state = advance(np.ones((256, 256), np.float32))
    with Profiler(workdir, (3, 4)) as profiler:
        assert [step for step in range(1, 7) if profiler.disturbs(step)] == [3, 5]
        for step in range(1, 7):
            with profiler.step(step, state):
                state = jax.block_until_ready(advance(state))
            with jax.profiler.TraceAnnotation(INPUT):
                sum(range(10_000))
    return workdir / "profile"


def test_a_range_of_steps_is_traced(profiled):
    (path,) = profiled.glob("plugins/profile/*/*.xplane.pb")
    found = read_trace(path)
    assert found.steps == 2 and found.devices == 1 and found.compute > 0 and found.input > 0
    assert found.compute + found.communication + found.input + found.host == pytest.approx(1.0)
    assert sum(found.operations.values()) <= 1.0 + 1e-6


def test_what_follows_the_last_step_is_not_in_the_trace(tmp_path):
    state = np.ones(2, np.float32)
    with Profiler(tmp_path, (1, 2)) as profiler:
        for step in (1, 2):
            with profiler.step(step, state):
                pass
            profiler.pause(step, state)
            assert (tmp_path / "profile" / SUMMARY).exists() == (step == 2)
        with jax.profiler.TraceAnnotation("behind_the_last_step"):  # nothing traces it
            pass
    (path,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert b"behind_the_last_step" not in path.read_bytes()


def test_the_page_says_where_the_time_goes(profiled):
    text = (profiled / SUMMARY).read_text()
    assert text.startswith("2 steps on 1 devices") and len(text.splitlines()) < 30
    for word in ("compute", "communication", "input", "host", "longest operations"):
        assert word in text


def test_a_run_that_ends_within_the_range_leaves_its_profile(tmp_path):
    state = jnp.ones(8)
    with Profiler(tmp_path, (2, 100)) as profiler:
        for step in (1, 2, 3):
            with profiler.step(step, state):
                state = state + 1
    assert (tmp_path / "profile" / SUMMARY).read_text().startswith("2 steps")


def test_without_steps_nothing_is_traced(tmp_path):
    for profiler in (Profiler(tmp_path, None), Profiler(tmp_path, (1, 2), enabled=False)):
        with profiler, profiler.step(1, jnp.ones(1)):
            pass
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_shares_are_described_in_milliseconds_of_a_step():
    text = describe(time_fractions(Profile((host(), tpu(0, Event("dot", 0, 5))))))
    assert "10.0 ms each" in text and "25.0%        2.5 ms a step" in text


intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), max_size=8)


def moments(found):
    return {moment for begin, end in found for moment in range(begin, end)}


@given(intervals, intervals, intervals)
def test_any_intervals_are_sets_of_moments(computes, communicates, waits):
    operations = [Event("dot", *one) for one in [(0, 0), *computes]]  # a device without an operation is not counted
    operations += [Event("all-reduce", *one) for one in communicates]
    found = time_fractions(Profile((host(*waits), tpu(0, *operations))))
    end = max([20, *(end for _, end in (*computes, *communicates))])
    compute, communication, waiting = moments(computes), moments(communicates), moments(waits) & set(range(end))
    assert found.seconds == pytest.approx(end / 1000)
    assert found.compute * end == pytest.approx(len(compute), abs=1e-6)
    assert found.communication * end == pytest.approx(len(communication - compute), abs=1e-6)
    assert found.hidden * end == pytest.approx(len(communication & compute), abs=1e-6)
    assert found.input * end == pytest.approx(len(waiting - compute - communication), abs=1e-6)
    assert found.compute + found.communication + found.input + found.host == pytest.approx(1.0)
