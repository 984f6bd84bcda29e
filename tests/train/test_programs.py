"""Counting of programs, and compiling them ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.train.compile import ProgramCount, StepPrograms, signature_of
from anysat_jax.train.input import Fed
from tests.train.toys import toy_masks


def fed(dataset="fake", patch_size=10.0, targets=2):
    batch = fake_batch(("spot",), batch_size=2, extent=20.0, patch_size=patch_size, dataset=dataset)
    masks = toy_masks(2).replace(target_mask=np.ones(targets, bool))
    return Fed(jax.tree.map(jnp.asarray, batch), jax.tree.map(jnp.asarray, masks), {})


def test_programs_are_counted_by_dataset_patch_size_and_shapes(caplog):
    count = ProgramCount()
    for one, new in [(fed(), True), (fed(), False), (fed(patch_size=20.0), True), (fed(targets=3), True)]:
        assert count.add(signature_of(one)) == new
    assert count.total == 3 and len(count.shapes["fake", 10.0]) == 2
    for targets in range(4, 8):
        count.add(signature_of(fed(targets=targets)))
    assert "fake at 10 m has more than 4 compiled programs" in caplog.text


def test_buckets_of_dates_are_programs_of_their_own(caplog):
    count = ProgramCount({"fake": 2})
    for targets in range(2, 10):
        count.add(signature_of(fed(targets=targets)))
    assert count.total == 8 and "compiled programs" not in caplog.text
    count.add(signature_of(fed(targets=10)))
    assert "fake at 10 m has more than 8 compiled programs" in caplog.text


def test_batches_of_other_lengths_are_compiled_side_by_side():
    def feed_of(num_dates):
        batch = fake_batch(("spot", "s2"), extent=20.0, num_dates=num_dates)
        return Fed(*(jax.tree.map(jnp.asarray, one) for one in (batch, toy_masks(2))), {})

    def step(state, batch, masks):
        return state + batch.observations["s2"].date_mask.sum(), {}

    state = jnp.int32(0)
    with StepPrograms(jax.jit(step), state, date_buckets={"fake": 2}) as programs:
        for num_dates in (4, 8, 4):
            programs.prepare(feed_of(num_dates))
        for num_dates in (4, 8, 4):
            state, _ = programs.run(state, feed_of(num_dates))
        assert int(state) == 2 * 16 and programs.count.total == 2


def test_programs_are_compiled_once_and_give_what_the_step_gives():
    traced = []

    def step(state, batch, masks):
        traced.append(batch.dataset)
        return state + batch.observations["spot"].values.sum(), {"targets": masks.target_mask.sum()}

    state = jnp.float32(1.0)
    with StepPrograms(jax.jit(step), state) as programs:
        for one in (fed(), fed("other"), fed()):
            programs.prepare(one)
        for one in (fed(), fed("other"), fed()):
            expected = step(state, one.batch, one.masks)
            state, metrics = programs.run(state, one)
            assert float(state) == float(expected[0]) and int(metrics["targets"]) == 2
        assert not programs.compiling
        assert programs.count.total == 2
    assert sorted(traced) == ["fake"] * 3 + ["other"] * 2  # two compilations, three calls for comparison


def test_an_error_of_compiling_reaches_the_caller():
    def step(state, batch, masks):
        raise ValueError("no such thing")

    with StepPrograms(jax.jit(step), jnp.float32(0)) as programs:
        programs.prepare(fed())
        with pytest.raises(ValueError, match="no such thing"):
            programs.run(jnp.float32(0), fed())


def test_constants_stand_between_the_state_and_what_a_step_is_fed_with():
    def step(state, factor, batch, masks):
        return state * factor["by"] + batch.batch_size, {}

    with StepPrograms(jax.jit(step), jnp.int32(1), constants=({"by": jnp.int32(10)},)) as programs:
        programs.prepare(fed())
        assert int(programs.run(jnp.int32(3), fed())[0]) == 32
