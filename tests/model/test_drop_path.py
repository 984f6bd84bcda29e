"""Leaving blocks out keeps the expectation and costs nothing when off; only the sensors that train drop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder
from anysat_jax.model.init import init_encoder
from anysat_jax.model.layers import Block, drop_path_rates

CONFIG = ModelConfig(dim=32, depth=1, num_heads=2, predictor_heads=2, sensors=("s1", "l8"))
BATCH = fake_batch(("s1", "l8"), extent=10.0, num_dates=2)
# Whatever the sensors, the blocks are the same: an image's projector is the smallest.
IMAGE_CONFIG = dataclasses.replace(CONFIG, sensors=("spot",))
IMAGE = fake_batch(("spot",), extent=10.0)


def encode(params, seed, config=CONFIG, batch=BATCH, **options):
    rngs = {"dropout": jax.random.key(seed)}
    return Encoder(config).apply({"params": params}, batch, **options, rngs=rngs)


@pytest.fixture(scope="module")
def image_params():
    return init_encoder(IMAGE_CONFIG, 0)


def test_rates_grow_from_zero_over_both_stacks():
    spatial, combiner = drop_path_rates(0.3, 2)
    np.testing.assert_allclose(np.concatenate([spatial, combiner]), [0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert drop_path_rates(0.0, 2) == (None, None)
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"drop_path = {rate} must be at least 0 and less than 1"):
            drop_path_rates(rate, 2)


def test_a_branch_is_left_out_at_its_rate_and_keeps_its_expectation():
    """With a mute attention a sequence either stays as it is or gets the MLP's branch, scaled up."""
    block = Block(num_heads=2, mlp_ratio=2, epsilon=1e-5, relative=False, dtype=jnp.float32)
    x = np.random.default_rng(0).standard_normal((1, 3, 8), dtype=np.float32)
    x = np.broadcast_to(x, (4000, 3, 8))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x[:1], None, None)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), shapes)
    params["attention"]["out"] = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
    plain = jax.jit(block.apply)({"params": params}, x[:1], None, None)

    @jax.jit
    def drop(rate):
        return block.apply({"params": params}, x, None, None, rate, rngs={"dropout": jax.random.key(1)})

    dropped = drop(0.25)
    branch = np.asarray(plain - x[:1])
    share = (np.asarray(dropped - x) / branch).mean(axis=(1, 2))
    kept = share > 0.5
    np.testing.assert_allclose(share, np.where(kept, 1 / 0.75, 0), atol=1e-3)
    assert abs(kept.mean() - 0.75) < 0.03
    np.testing.assert_allclose(dropped.mean(axis=0), plain[0], atol=0.05 * np.abs(branch).max())
    np.testing.assert_allclose(drop(0.0)[-1], plain[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_drawn_at_a_rate_of_zero(image_params, dtype):
    config = dataclasses.replace(IMAGE_CONFIG, dtype=dtype)
    for rate in (0.0, 0.1):
        run = functools.partial(encode, seed=0, config=config, batch=IMAGE, drop_path=rate)
        assert ("random_bits" in str(jax.make_jaxpr(run)(image_params))) == (rate > 0)
        assert jax.eval_shape(run, image_params).dtype == dtype


def test_rematerialised_blocks_drop_alike(image_params):
    once, again = (
        jax.jit(functools.partial(encode, config=config, batch=IMAGE, drop_path=0.5))(image_params, 3)
        for config in (IMAGE_CONFIG, dataclasses.replace(IMAGE_CONFIG, remat="full"))
    )
    np.testing.assert_allclose(once, again, atol=1e-5)


def test_only_the_named_sensors_drop():
    params = init_encoder(CONFIG, 0)

    @functools.partial(jax.jit, static_argnames="training")
    def project(seed, training):
        return encode(params, seed, method=Encoder.project, training=training)

    still, first, second = project(0, ()), project(0, ("s1",)), project(1, ("s1",))
    for tokens in (first, second):
        np.testing.assert_array_equal(tokens["l8"], still["l8"])
        assert not np.allclose(tokens["s1"], still["s1"])
    assert not np.allclose(first["s1"], second["s1"])
