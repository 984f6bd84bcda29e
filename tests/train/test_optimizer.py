"""Schedules against their formulas, what decay, clipping and rates by leaf act on, and updates that are not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anysat_jax.train.config import PlateauConfig
from anysat_jax.train.optimizer import (
    clip_by_known_norm,
    decay_mask,
    leaf_names,
    learning_rate,
    make_optimizer,
    make_schedule,
    update_if_finite,
)
from tests.train.toys import toy_optimizer_config, toy_params

PARAMS = {"low": {"kernel": np.ones((2, 3), np.float32)}, "top": {"bias": np.ones(3, np.float32)}}
GRADS = {"low": {"kernel": np.full((2, 3), 0.5, np.float32)}, "top": {"bias": np.full(3, -2.0, np.float32)}}


def schedule(warmup_steps, total_steps, **changes):
    return make_schedule(toy_optimizer_config(**changes), warmup_steps=warmup_steps, total_steps=total_steps)


def optimizer(warmup_steps=0, total_steps=10, *, loss_plateau=None, window=1, multipliers=None, **changes):
    return make_optimizer(
        toy_optimizer_config(**changes),
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        loss_plateau=loss_plateau,
        window=window,
        multipliers=multipliers,
    )


def test_cosine_with_warm_up_follows_its_formula():
    rate = schedule(10, 50, learning_rate=0.4)
    for step in (0, 1, 9, 10, 11, 30, 49, 50, 60):
        after = min(max(step - 10, 0) / 40, 1.0)
        expected = 0.4 * step / 10 if step < 10 else 0.2 * (1 + np.cos(np.pi * after))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7)


def test_cosine_without_warm_up_starts_at_the_peak():
    rate = schedule(0, 50, learning_rate=0.4)
    assert float(rate(0)) == pytest.approx(0.4) and float(rate(50)) == pytest.approx(0.0, abs=1e-8)


def test_a_warm_up_longer_than_the_run_only_rises():
    assert float(schedule(30, 20, learning_rate=0.4)(15)) == pytest.approx(0.2)


def test_without_a_loss_plateau_the_rate_stays_after_the_warm_up():
    rate = schedule(2, 20, schedule="plateau", learning_rate=0.1)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 10, 19)], [0, 0.05, 0.1, 0.1, 0.1], atol=1e-8)


def rates(losses, plateau, window=1, warmup_steps=0):
    one = optimizer(
        warmup_steps,
        100,
        schedule="plateau",
        learning_rate=0.1,
        clip_norm=None,
        loss_plateau=PlateauConfig(0.1, plateau),
        window=window,
    )
    params = {"kernel": jnp.ones((2, 2))}
    state = one.init(params)
    update = jax.jit(lambda state, loss: one.update(params, state, params, value=loss)[1])
    found = []
    for loss in losses:
        state = update(state, jnp.float32(loss))
        found.append(float(learning_rate(state)))
    return found


def test_plateau_falls_after_patience_windows_without_progress():
    found = rates([3.0] * 3 + [2.0] * 3 + [2.0] * 12, 2, window=3)
    # Windows of three steps: 3, 2 (progress), 2, 2 (patience over: falls), 2, 2 (falls again).
    np.testing.assert_allclose(found, [0.1] * 11 + [0.01] * 6 + [0.001], rtol=1e-5)


def test_plateau_after_a_warm_up():
    found = rates([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 2, warmup_steps=4)
    np.testing.assert_allclose(found, [0.0, 0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-5, atol=1e-8)


def test_decay_acts_on_matrices_only():
    leaves = jax.tree_util.tree_leaves_with_path(decay_mask(toy_params()))
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/") for path, on in leaves if on}
    assert decayed == {
        "encoder/spatial/blocks/mlp/up/kernel",
        "encoder/projector_s2/key/kernel",
        "predictor/out/kernel",
    }


def test_decay_is_decoupled_and_scaled_by_the_rate():
    one = optimizer(weight_decay=0.5, clip_norm=None)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = one.update(nothing, one.init(params), params, value=jnp.float32(1.0))
    np.testing.assert_allclose(updates["kernel"], -0.01 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_clipping_bounds_what_adam_sees():
    for clip, norm in ((1.0, 0.1), (None, None)):
        one = optimizer(2, clip_norm=clip)
        _, state = one.update(GRADS, one.init(PARAMS), PARAMS, norm=optax.tree.norm(GRADS))
        moments = next(part.mu for part in state if hasattr(part, "mu"))
        assert float(optax.tree.norm(moments)) == pytest.approx(norm or 0.1 * float(optax.tree.norm(GRADS)), rel=1e-4)


@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
def test_clipping_by_a_known_norm_is_that_of_optax(limit):
    expected, _ = optax.clip_by_global_norm(limit).update(GRADS, optax.EmptyState())
    found, _ = clip_by_known_norm(limit).update(GRADS, optax.EmptyState(), norm=optax.tree.norm(GRADS))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_rates_by_leaf_scale_the_update_its_decay_included():
    by = {"low": {"kernel": np.float32([[0.25], [0.5]])}, "top": {"bias": np.float32(1)}}
    plain, scaled = (
        optimizer(learning_rate=0.1, weight_decay=0.3, clip_norm=None, multipliers=one) for one in (None, by)
    )
    expected, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
    found, _ = scaled.update(GRADS, scaled.init(PARAMS), PARAMS)
    np.testing.assert_allclose(found["low"]["kernel"], expected["low"]["kernel"] * by["low"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(found["top"]["bias"], expected["top"]["bias"])
    # Decay acts on the matrix alone: Adam's first update has the length of the rate.
    np.testing.assert_allclose(np.abs(expected["top"]["bias"]), 0.1, rtol=1e-5)
    np.testing.assert_allclose(expected["low"]["kernel"], -0.1 * 1.3, rtol=1e-5)


def test_the_rate_of_the_first_update_is_known_before_it():
    assert float(learning_rate(optimizer(learning_rate=0.3).init(PARAMS))) == pytest.approx(0.3)


def test_an_update_that_is_not_finite_is_not_applied_and_its_leaves_are_named():
    def update(state, grads, norm, scale):
        return jax.tree.map(lambda value, grad: value - scale * grad, state, grads)

    apply = jax.jit(lambda grads: update_if_finite(update, PARAMS, {"loss": jnp.float32(1)}, grads, jnp.float32(0.5)))
    state, checks = apply(GRADS)
    np.testing.assert_array_equal(state["top"]["bias"], 2.0)
    assert checks["finite"] and float(checks["grad_norm"]) == pytest.approx(float(optax.tree.norm(GRADS)))
    state, checks = apply({**GRADS, "top": {"bias": np.array([1, np.nan, 1], np.float32)}})
    np.testing.assert_array_equal(state["top"]["bias"], PARAMS["top"]["bias"])
    names = leaf_names(("loss",), PARAMS)
    assert not checks["finite"]
    assert [name for name, bad in zip(names, checks["nonfinite_leaves"], strict=True) if bad] == [
        "gradient of top/bias"
    ]
