"""A clock that jumps, forwards and backwards by days, changes nothing of what is kept and what is read."""

import time

import pytest

from anysat_jax.train.checkpoints import Checkpoints
from tests.train.test_checkpoints import CONFIG, at_step, mesh_of, restore
from tests.train.toys import assert_same, toy_state

OFFSETS = [0.0, 3 * 3600.0, -2 * 86400.0, 365 * 86400.0]  # seconds that the clock is wrong by, one after the other


@pytest.fixture
def wild_clock(monkeypatch):
    """The time of the day jumps every few milliseconds, forwards and backwards, also while a checkpoint is written."""
    now, now_ns = time.time, time.time_ns

    def offset() -> float:
        return OFFSETS[int(time.monotonic() / 0.01) % len(OFFSETS)]

    monkeypatch.setattr(time, "time", lambda: now() + offset())
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(offset() * 1e9))


def test_the_newest_checkpoint_is_that_of_the_last_step(tmp_path, wild_clock):
    state = toy_state(mesh_of())
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(at_step(state, step), {"next_step": step}, {"step": step, "config": CONFIG, "record": {}})
            checkpoints.wait()
        assert checkpoints.steps == [5, 6]
    restored = restore(tmp_path)
    assert_same(restored.state, at_step(state, 6))
    assert restored.data == {"next_step": 6}
