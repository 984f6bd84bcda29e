"""Norms against Flax's, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.model import layers
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.layers import BlockStack, Norm, num_parts

EPSILON = 1e-5
SHAPE = (2, 3, 5, 48)  # tiles, pixels, dates, channels
DATES = np.array([[True] * 5, [True, False, True, True, False]])


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, shape), jnp.float32)


def flax_norm(groups, over_dates):
    if groups == 1 and not over_dates:
        return nn.LayerNorm(EPSILON, use_fast_variance=False)
    axes = (-2, -1) if over_dates else (-1,)
    return nn.GroupNorm(groups, epsilon=EPSILON, reduction_axes=axes, use_fast_variance=False)


@pytest.mark.parametrize("dates", [None, "all", "some"])
@pytest.mark.parametrize("groups", [1, 4])
def test_it_is_the_norm_of_flax_forward_and_backward(groups, dates):
    params = {"scale": numbers(48, seed=1), "bias": numbers(48, seed=2)}
    kept = np.ones_like(DATES) if dates == "all" else DATES
    weights = None if dates is None else jnp.asarray(kept / kept.sum(axis=1, keepdims=True), jnp.float32)
    weights = None if weights is None else weights[:, None, :, None]
    mask = jnp.broadcast_to(kept[:, None, :, None], SHAPE) if dates == "some" else None
    # The gradient of what padded dates give is not compared: whoever pads leaves it out.
    seen = 1.0 if mask is None else numbers(*SHAPE, seed=3) * mask

    def ours(params, x):
        out = Norm(EPSILON, jnp.float32, groups).apply({"params": params}, x, weights)
        return (jnp.sin(out) * seen).sum(), out

    def theirs(params, x):
        given = {} if mask is None else {"mask": mask}
        out = flax_norm(groups, dates is not None).apply({"params": params}, x, **given)
        return (jnp.sin(out) * seen).sum(), out

    got, expected = (
        jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(params, numbers(*SHAPE)) for f in (ours, theirs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_bfloat16_is_normed_in_float32():
    params = {"scale": numbers(48, seed=1), "bias": numbers(48, seed=2)}
    x = numbers(*SHAPE).astype(jnp.bfloat16)
    out = Norm(EPSILON, jnp.bfloat16, 4).apply({"params": params}, x)
    exact = Norm(EPSILON, jnp.float32, 4).apply({"params": params}, x.astype(jnp.float32))
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
    grad = jax.grad(lambda x: Norm(EPSILON, jnp.bfloat16, 4).apply({"params": params}, x).astype(jnp.float32).sum())(x)
    assert grad.dtype == jnp.bfloat16


def test_accelerators_average_without_products():
    """Whose float32 products may round their factors."""
    norm = Norm(EPSILON, jnp.float32, 4)
    lowered = jax.jit(norm.apply).trace({"params": {"scale": numbers(48), "bias": numbers(48)}}, numbers(*SHAPE))
    texts = [lowered.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu")]
    assert ["dot_general" in text for text in texts] == [False, True]


def test_parts_are_equal_and_of_the_wanted_size(monkeypatch):
    found = num_parts(4096, 4096 * 20 * 2 * 768), num_parts(36, 36 * 5 * 2 * 32), num_parts(49, 64 * 49 * 90 * 2 * 768)
    assert found == (64, 1, 49)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert num_parts(4096, 4096 * 20 * 2 * 768) == 1 and num_parts(2**18, 2**18 * 20 * 2 * 768) == 8


def numbers_of(stack, x):
    params = jax.eval_shape(stack.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)


def test_parts_of_the_sequences_change_nothing_but_the_memory(monkeypatch):
    stack = BlockStack(ModelConfig(dim=32, num_heads=2), depth=2, num_heads=2, epsilon=1e-5)
    x = jax.random.normal(jax.random.key(0), (32, 16, 32))
    drawn = numbers_of(stack, x)

    def gradient(parts):
        monkeypatch.setattr(layers, "num_parts", lambda count, values: parts)
        run = jax.jit(lambda params: stack.apply(params, x, outputs=1)).lower(drawn).compile()
        loss = jax.jit(jax.grad(lambda params: jnp.square(stack.apply(params, x, outputs=1)).sum()))
        return run(drawn), loss(drawn), run.memory_analysis().temp_size_in_bytes

    whole, cut = gradient(1), gradient(4)
    assert whole[0].shape == (32, 1, 32) and cut[2] < 0.5 * whole[2]
    np.testing.assert_allclose(cut[0], whole[0], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), cut[1], whole[1])


def test_parts_move_no_sequence_to_another_device(monkeypatch):
    """Jobs that train and evaluate tasks set no mesh while they trace."""
    monkeypatch.setattr(layers, "CPU_PART", 2**14)
    stack = BlockStack(ModelConfig(dim=32, num_heads=2), depth=1, num_heads=2, epsilon=1e-5)
    x = jax.random.normal(jax.random.key(0), (16, 4, 16, 32))  # tiles, patches, tokens
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    whole, by_tile = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("data",)))
    params = jax.device_put(numbers_of(stack, x[0]), whole)
    run = jax.jit(lambda params, x: stack.apply(params, x.reshape(-1, 16, 32), outputs=1))
    program = run.lower(params, jax.device_put(x, by_tile)).compile()
    text = program.as_text()
    assert " while(" in text and program.output_shardings.is_equivalent_to(by_tile, 3)
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(program(params, jax.device_put(x, by_tile)), run(params, x), rtol=1e-5, atol=1e-5)
