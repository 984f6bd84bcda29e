"""Schedules against their formulas, and what decay and clipping act on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.train.optimizer import decay_mask, learning_rate, make_optimizer, make_schedule
from tests.train.toys import optimizer_section, toy_params


def test_cosine_with_warm_up_follows_its_formula():
    schedule = make_schedule(optimizer_section(learning_rate=0.4, warmup_steps=10), 50)
    for step in (0, 1, 9, 10, 11, 30, 49, 50, 60):
        after = min(max(step - 10, 0) / 40, 1.0)
        expected = 0.4 * step / 10 if step < 10 else 0.2 * (1 + np.cos(np.pi * after))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


def test_cosine_without_warm_up_starts_at_the_peak():
    schedule = make_schedule(optimizer_section(learning_rate=0.4, warmup_steps=0), 50)
    assert float(schedule(0)) == pytest.approx(0.4) and float(schedule(50)) == pytest.approx(0.0, abs=1e-8)


def test_a_warm_up_longer_than_the_run_only_rises():
    schedule = make_schedule(optimizer_section(learning_rate=0.4, warmup_steps=30), 20)
    assert float(schedule(15)) == pytest.approx(0.2)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.schedule = 'step' must be 'cosine' or 'plateau'"):
        make_optimizer(optimizer_section(schedule="step"), 10)


def rates(losses, **changes):
    optimizer = make_optimizer(optimizer_section(schedule="plateau", learning_rate=0.1, **changes), 100)
    params = {"kernel": jnp.ones((2, 2))}
    state = optimizer.init(params)
    update = jax.jit(lambda state, loss: optimizer.update(params, state, params, value=loss)[1])
    found = []
    for loss in losses:
        state = update(state, jnp.float32(loss))
        found.append(float(learning_rate(state)))
    return found


def test_plateau_falls_after_patience_windows_without_progress():
    plateau = dict(factor=0.1, patience=2, window=3)
    found = rates([3.0] * 3 + [2.0] * 3 + [2.0] * 12, warmup_steps=0, plateau=plateau)
    # Windows of three steps: 3, 2 (progress), 2, 2 (patience over: falls), 2, 2 (falls again).
    np.testing.assert_allclose(found, [0.1] * 11 + [0.01] * 6 + [0.001], rtol=1e-5)


def test_plateau_after_a_warm_up():
    found = rates([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], warmup_steps=4, plateau=dict(factor=0.1, patience=2, window=1))
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
    optimizer = make_optimizer(optimizer_section(weight_decay=0.5, warmup_steps=0, clip_norm=None), 10)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params, value=jnp.float32(1.0))
    np.testing.assert_allclose(updates["kernel"], -0.01 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_clipping_bounds_what_adam_sees():
    params = {"kernel": jnp.ones((2, 2))}
    gradient = {"kernel": jnp.full((2, 2), 1e6)}
    for clip, mean in ((1.0, 0.05), (None, 1e5)):
        optimizer = make_optimizer(optimizer_section(clip_norm=clip), 10)
        _, state = optimizer.update(gradient, optimizer.init(params), params, value=jnp.float32(1.0))
        moments = next(part.mu for part in state if hasattr(part, "mu"))
        np.testing.assert_allclose(moments["kernel"], mean, rtol=1e-4)


def test_the_rate_of_the_first_update_is_known_before_it():
    optimizer = make_optimizer(optimizer_section(warmup_steps=0, learning_rate=0.3), 10)
    assert float(learning_rate(optimizer.init({"kernel": jnp.ones(1)}))) == pytest.approx(0.3)
