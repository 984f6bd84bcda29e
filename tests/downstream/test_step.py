"""The step of adaptation: what it changes, what it leaves alone, and the same numbers on eight devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.downstream.fit import make_inputs
from anysat_jax.downstream.step import (
    LOSSES,
    average_decay,
    initial_state,
    make_train_step,
    with_rate_scale,
)
from anysat_jax.downstream.task import LossConfig
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import DeviceFeed
from anysat_jax.train.optimizer import leaf_names, make_optimizer
from anysat_jax.train.sharding import initialised, make_mesh, put_params, replicated
from tests.downstream.fit_toys import BATCH, TASK, WIDE, ToyBatches, forward, toy_config, toy_problem
from tests.train.toys import assert_same

PROBLEM = toy_problem()
OPTIMIZER = make_optimizer(toy_config().optimizer, warmup_steps=0, total_steps=20)
STEP = jax.jit(make_train_step(TASK, LossConfig(), forward, OPTIMIZER))
SEED = jnp.uint32(0)


def batch_of(step, bad_rows=()):
    batches = ToyBatches(bad_at=step if bad_rows else 0, bad_rows=bad_rows)
    batches.set_state({"next_step": step - 1})
    batch = next(batches)
    return batch.replace(labels={name: batch.labels[name].astype(np.int32) for name in ("tile", "index")})


@pytest.fixture(scope="module")
def start():
    return initial_state(jax.tree.map(jnp.asarray, PROBLEM.trainable), OPTIMIZER)


def test_the_optimizer_remembers_what_trains_and_nothing_else(start):
    trained = sum(leaf.size for leaf in jax.tree.leaves(PROBLEM.trainable))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim)
    assert numbers == 2 * trained
    assert not any(leaf.shape == (WIDE, WIDE) for leaf in jax.tree.leaves(start))
    names = leaf_names(LOSSES, PROBLEM.trainable)
    assert "gradient of encoder/projector_toy/kernel" in names and not any("mix" in name for name in names)


def test_a_step_moves_every_leaf_that_trains(start):
    state, metrics = STEP(start, PROBLEM.frozen, batch_of(1), SEED)
    assert all(bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (state.params, start.params)), strict=True))
    assert metrics["finite"] and int(state.step) == 1 and metrics["grad_norm"] > 0
    assert metrics["learning_rate"] == pytest.approx(3e-2)
    assert list(metrics["index"]) == list(range(BATCH)) and not metrics["nonfinite_samples"].any()


def test_the_rates_scale_scales_the_update_and_is_left_alone(start):
    whole, _ = STEP(start, PROBLEM.frozen, batch_of(1), SEED)
    half, metrics = STEP(with_rate_scale(start, 0.5), PROBLEM.frozen, batch_of(1), SEED)
    assert metrics["learning_rate"] == pytest.approx(1.5e-2) and half.rate_scale == 0.5
    before, full, found = (np.asarray(s.params["head"]["out"]["kernel"]) for s in (start, whole, half))
    np.testing.assert_allclose(found - before, (full - before) / 2, atol=1e-7)


def test_bad_samples_are_named_and_nothing_is_updated(start):
    state, metrics = STEP(start, PROBLEM.frozen, batch_of(3, bad_rows=(2, 5)), SEED)
    assert not metrics["finite"]
    assert np.flatnonzero(metrics["nonfinite_samples"]).tolist() == [2, 5]
    bad = np.array(leaf_names(LOSSES, PROBLEM.trainable))[np.asarray(metrics["nonfinite_leaves"])]
    assert "loss" in bad and "gradient of head/out/kernel" in bad
    assert_same(state.replace(step=0), start.replace(step=0))
    assert int(state.step) == 1


def test_a_padded_sample_counts_for_nothing(start):
    batch = batch_of(1)
    valid = np.arange(BATCH) < BATCH - 2
    lost = batch.replace(labels={**batch.labels, "tile": np.where(valid, batch.labels["tile"], -1).astype(np.int32)})
    masked = batch.replace(labels={**batch.labels, "valid": valid})
    expected, found = (STEP(start, PROBLEM.frozen, one, SEED) for one in (lost, masked))
    assert_same(found[0], expected[0])


def test_the_seed_decides_what_drops_and_is_no_part_of_the_program(start):
    program = STEP.lower(start, PROBLEM.frozen, batch_of(1), SEED)
    assert program.as_text() == STEP.lower(start, PROBLEM.frozen, batch_of(1), jnp.uint32(1)).as_text()
    losses = [float(STEP(start, PROBLEM.frozen, batch_of(1), jnp.uint32(seed))[1]["loss"]) for seed in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    later = start.replace(step=start.step + 1)
    assert float(STEP(later, PROBLEM.frozen, batch_of(1), SEED)[1]["loss"]) != losses[0]


def test_the_average_follows_the_parameters(start):
    step = jax.jit(make_train_step(TASK, LossConfig(), forward, OPTIMIZER, 0.5))
    state = initial_state(start.params, OPTIMIZER, averaged=True)
    expected, plain = start.params, start
    for number in range(1, 10):
        state, _ = step(state, PROBLEM.frozen, batch_of(number), SEED)
        plain, _ = STEP(plain, PROBLEM.frozen, batch_of(number), SEED)
        keep = min(0.5, number / (9 + number))
        expected = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, expected, plain.params)
    assert_same(state.params, plain.params)  # training itself does not change
    chex.assert_trees_all_close(state.eval_params, expected, atol=1e-6)
    assert plain.eval_params is plain.params
    bad, _ = step(state, PROBLEM.frozen, batch_of(3, bad_rows=(2,)), SEED)
    assert_same(bad.average, state.average)


def test_the_average_forgets_the_start_soon_and_is_slow_in_the_end():
    assert float(average_decay(jnp.int32(0), 0.99)) == pytest.approx(0.1)
    assert float(average_decay(jnp.int32(10_000), 0.99)) == pytest.approx(0.99)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_eight_devices_give_the_numbers_of_one(start, data, fsdp):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    state = initialised(lambda params: initial_state(params, OPTIMIZER), mesh, PROBLEM.trainable)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        make_train_step(TASK, LossConfig(), forward, OPTIMIZER),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    frozen = put_params(PROBLEM.frozen, mesh)
    assert frozen["encoder"]["mix"]["kernel"].addressable_shards[0].data.size == WIDE**2 // fsdp
    feed, single = DeviceFeed(ToyBatches(), make_inputs("tile", 0, mesh)), start
    for number in range(1, 4):
        state, found = step(state, frozen, *feed.next().inputs)
        single, expected = STEP(single, PROBLEM.frozen, batch_of(number), SEED)
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
        assert float(found["grad_norm"]) == pytest.approx(float(expected["grad_norm"]), rel=1e-5)
        np.testing.assert_array_equal(found["index"], expected["index"])
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(single.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
