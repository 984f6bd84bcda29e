"""The encoder's outputs, layouts and options."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, encode, valid_patches
from anysat_jax.model.init import init_encoder
from anysat_jax.model.projectors import SubpatchEmbed, merge_patches, split_patches
from anysat_jax.sensors import get_sensor

# Several channels in each group of a norm: the ratio of one or two magnifies rounding.
CONFIG = ModelConfig(dim=128, depth=1, num_heads=2, predictor_heads=2, sensors=("spot", "s2", "naip"), dropout=False)


@pytest.fixture(scope="module")
def params() -> dict:
    return init_encoder(CONFIG, 0)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return fake_batch(("spot", "s2"), extent=(40.0, 60.0), patch_size=20.0, num_dates=3)


@jax.jit
def every_output(params: dict, batch: Batch) -> dict[str, jax.Array]:
    """All outputs in one program, which shares the work between them."""
    return {
        name: encode(CONFIG, params, batch, name, "spot" if name == "dense" else None)
        for name in ("tile", "patch", "all", "dense")
    }


def test_outputs_have_the_documented_shapes_and_agree(params: dict, batch: Batch) -> None:
    every = every_output(params, batch)
    assert every["tile"].shape == (2, 128)
    assert every["patch"].shape == (2, 2, 3, 128)
    assert every["all"].shape == (2, 7, 128)
    assert every["dense"].shape == (2, 4, 6, 256)
    np.testing.assert_array_equal(every["all"][:, 0], every["tile"])
    np.testing.assert_array_equal(every["all"][:, 1:].reshape(2, 2, 3, 128), every["patch"])
    # Raster order: the dense map's first half is its patch's vector, repeated over the patch's sub-patches.
    # Without the sub-patches' features the last spatial block has other products, which round differently.
    patches = every["patch"].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(every["dense"][..., :128], patches, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_a_module_of_nnx_with_the_same_features(params: dict, batch: Batch) -> None:
    model = nnx.bridge.ToNNX(Encoder(CONFIG))
    for name, tree in params.items():
        setattr(model, name, jax.tree.map(nnx.Param, tree))
    features = nnx.jit(lambda model, batch: model(batch, "tile"))(model, batch)
    np.testing.assert_allclose(features, every_output(params, batch)["tile"], rtol=1e-4, atol=1e-5)
    assert nnx.state(model, nnx.Param)["spatial"]["class_token"].shape == (128,)


def test_a_bump_shows_where_it_is(params: dict, batch: Batch) -> None:
    """The dense features of a lone sub-patch's change are changed most at that sub-patch, whatever the patch size."""
    spot = batch.observations["spot"]

    def of(values: np.ndarray) -> jax.Array:
        observations = batch.observations | {"spot": spot.replace(values=values)}
        return every_output(params, batch.replace(observations=observations))["dense"]

    flat = np.zeros_like(spot.values)
    bump = flat.copy()
    bump[:, :, 10:20, 30:40] = 3.0  # the sub-patch at row 1, column 3
    change = of(bump) - of(flat)
    strength = np.linalg.norm(np.asarray(change)[0, ..., 128:], axis=-1)
    assert np.unravel_index(strength.argmax(), strength.shape) == (1, 3)


def test_bfloat16_is_close_to_float32(params: dict, batch: Batch) -> None:
    exact = np.asarray(every_output(params, batch)["all"])
    rough = jax.jit(encode, static_argnums=(0, 3))(dataclasses.replace(CONFIG, dtype="bfloat16"), params, batch, "all")
    assert rough.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rough, np.float32) - exact).max() / np.abs(exact).max()
    assert error < 0.05


@pytest.fixture(scope="module")
def gradient(params: dict) -> Callable[[str], dict]:
    """Gradients under a policy of rematerialisation, with dropout: what is computed again must drop alike."""
    batch = fake_batch(("s2",), extent=(40.0, 60.0), patch_size=20.0, num_dates=3)

    @functools.lru_cache
    def of(policy: str) -> dict:
        encoder = Encoder(dataclasses.replace(CONFIG, remat=policy, dropout=True))
        rngs = {"dropout": jax.random.key(0)}
        return jax.jit(
            jax.grad(lambda p: jnp.square(encoder.apply({"params": p}, batch, "all", None, False, rngs=rngs)).sum())
        )(params)

    return of


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_gives_the_same_gradients(gradient: Callable[[str], dict], policy: str) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradient("none"), gradient(policy)
    )


def test_the_backward_pass_keeps_less_and_less(params: dict, batch: Batch) -> None:
    def kept(policy: str) -> int:
        config = dataclasses.replace(CONFIG, remat=policy)
        backward = jax.eval_shape(lambda p: jax.vjp(lambda p: encode(config, p, batch, "all"), p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    sizes = {policy: kept(policy) - weights for policy in ("full", "dots", "none")}
    assert sizes["full"] < 0.5 * sizes["dots"] < 0.5 * 0.5 * sizes["none"], sizes


def test_unknown_outputs_and_sensors_are_refused(params: dict, batch: Batch) -> None:
    with pytest.raises(ValueError, match="unknown output 'pixels'"):
        encode(CONFIG, params, batch, "pixels")
    with pytest.raises(ValueError, match="output_modality, one of s2, spot; got None"):
        encode(CONFIG, params, batch, "dense")
    with pytest.raises(ValueError, match="no projector for sensor 'aerial'"):
        encode(CONFIG, params, fake_batch(("aerial",), extent=20.0), "tile")


def test_split_and_merge_are_inverse() -> None:
    image = np.arange(2 * 1 * 8 * 12, dtype=np.float32).reshape(2, 1, 8, 12)
    tokens = split_patches(jnp.asarray(image), (2, 3), 1)
    assert tokens.shape == (2, 6, 16, 1)
    np.testing.assert_array_equal(merge_patches(tokens, (2, 3))[..., 0], image[:, 0])


def test_subpatch_embedding_is_a_convolution() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 4, 16, 16), dtype=np.float32)
    module = SubpatchEmbed(8, 4, 4, jnp.float32)
    tokens = split_patches(jnp.asarray(image), (2, 2), 4)
    variables = {"params": {"kernel": rng.standard_normal((4, 4, 4, 8), dtype=np.float32)}}
    ours = merge_patches(module.apply(variables, tokens), (2, 2))
    conv = nn.Conv(8, (4, 4), (4, 4), padding="VALID", use_bias=False)
    np.testing.assert_allclose(ours, conv.apply(variables, image.transpose(0, 2, 3, 1)), rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    config = dataclasses.replace(CONFIG, dropout=True, sensors=("s1",))
    params, batch = init_encoder(config, 0), fake_batch(("s1",), extent=10.0)
    assert get_sensor("s1").dropout > 0

    def run(seed: int, deterministic: bool, **options: Any) -> Any:
        rngs = {"dropout": jax.random.key(seed)}
        return Encoder(config).apply({"params": params}, batch, deterministic=deterministic, rngs=rngs, **options)

    for deterministic in (True, False):
        drawn = "random_bits" in str(jax.make_jaxpr(functools.partial(run, deterministic=deterministic))(0))
        assert drawn == (not deterministic)
    # Projectors alone drop in this way.
    tokens = jax.jit(functools.partial(run, deterministic=False, method=Encoder.project))
    assert not np.array_equal(tokens(0)["s1"], tokens(1)["s1"])


def test_no_masks_no_validity() -> None:
    assert valid_patches(fake_batch(("s2", "spot"), extent=20.0)) is None


def test_validity_needs_the_sensor_a_real_date_and_a_valid_pixel() -> None:
    batch = fake_batch(("s2", "spot", "modis"), extent=20.0, num_dates=2)
    pixels = np.zeros((2, 2, 1, 2, 2), bool)
    pixels[0, 0, 0, 0, 1] = True  # first tile: the second patch, at a real date
    pixels[0, 1, 0, 1, 1] = True  # and the last, at a padded one
    s2 = dataclasses.replace(
        batch.observations["s2"], pixel_mask=pixels, date_mask=np.array([[True, False], [True, True]])
    )
    spot = dataclasses.replace(batch.observations["spot"], present=np.array([True, False]))
    valid = valid_patches(batch.replace(observations=batch.observations | {"s2": s2, "spot": spot}))
    assert valid.shape == (2, 2, 4)  # sensors in sorted order: s2, spot
    np.testing.assert_array_equal(valid[0, 0], [False, True, False, False])
    np.testing.assert_array_equal(valid[1, 0], [False] * 4)
    np.testing.assert_array_equal(valid[:, 1], [[True] * 4, [False] * 4])
