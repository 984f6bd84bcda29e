"""The optimizer of adaptation: its rate by epochs, and the layers' shares of it."""

import jax
import numpy as np
import optax
import pytest

from anysat_jax.train.optimizer import make_adapt_optimizer

PARAMS = {"low": {"kernel": np.ones((2, 3), np.float32)}, "top": {"bias": np.ones(3, np.float32)}}
GRADS = {"low": {"kernel": np.full((2, 3), 0.5, np.float32)}, "top": {"bias": np.full(3, -2.0, np.float32)}}


def section(**changes):
    plain = dict(learning_rate=0.1, weight_decay=0.0, clip_norm=None, schedule="cosine", warmup_epochs=0)
    return {**plain, **changes}


def rates(config, steps, epochs, count):
    optimizer = make_adapt_optimizer(config, steps, epochs)
    state, found = optimizer.init(PARAMS), []
    for _ in range(count):
        _, state = optimizer.update(GRADS, state, PARAMS)
        found.append(float(state[-1].hyperparams["learning_rate"]))
    return np.array(found)


def test_warm_up_is_counted_in_epochs_and_the_cosine_ends_with_the_last():
    found = rates(section(warmup_epochs=2), 5, 4, 20)
    np.testing.assert_allclose(found[:11], 0.1 * np.arange(11) / 10, atol=1e-8)
    np.testing.assert_allclose(found[10:], 0.05 * (1 + np.cos(np.pi * np.arange(10) / 10)), atol=1e-8)


def test_after_its_warm_up_the_plateau_leaves_the_rate_to_the_evaluations():
    found = rates(section(schedule="plateau", warmup_epochs=0.4), 5, 4, 20)
    np.testing.assert_allclose(found, [0, 0.05, *[0.1] * 18], atol=1e-8)


def test_layers_have_their_share_of_the_update_decay_included():
    shares = {"low": {"kernel": np.float32([[0.25], [0.5]])}, "top": {"bias": np.float32(1)}}
    plain, shared = (make_adapt_optimizer(section(weight_decay=0.3), 1, 10, by) for by in (None, shares))
    expected, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
    found, _ = shared.update(GRADS, shared.init(PARAMS), PARAMS)
    np.testing.assert_allclose(found["low"]["kernel"], expected["low"]["kernel"] * shares["low"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(found["top"]["bias"], expected["top"]["bias"])
    # Decay acts on the matrix alone: Adam's first update has the length of the rate.
    np.testing.assert_allclose(np.abs(expected["top"]["bias"]), 0.1, rtol=1e-5)
    np.testing.assert_allclose(expected["low"]["kernel"], -0.1 * 1.3, rtol=1e-5)


def test_clipping_comes_first():
    optimizer = make_adapt_optimizer(section(clip_norm=1.0), 1, 10)
    _, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    moment = jax.tree.map(lambda leaf: leaf / 0.1, state[1].mu)
    assert float(optax.tree.norm(moment)) == pytest.approx(1.0)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.schedule = 'linear' must be 'cosine' or 'plateau'"):
        make_adapt_optimizer(section(schedule="linear"), 1, 10)
