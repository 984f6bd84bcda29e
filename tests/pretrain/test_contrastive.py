"""The contrastive loss against a plain full-matrix one, in corner cases, over a mesh, and on published numbers."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from anysat_jax.pretrain.contrastive import contrastive_loss

SHAPE = (2, 3, 5, 8)  # tiles, sensors, patches, width
loss = jax.jit(contrastive_loss)
loss_and_grad = jax.jit(jax.value_and_grad(contrastive_loss), static_argnames=("temperature", "block_size"))


def contrastive_loss_reference(tokens, valid, temperature=0.1):
    """The definition, with the whole matrix; every used token has a positive, so that both logarithms are finite."""
    b, m, n, d = tokens.shape
    tile, sensor, patch = (axis.reshape(-1) for axis in np.indices((b, m, n)))
    same_tile = tile[:, None] == tile[None, :]
    same_sensor = sensor[:, None] == sensor[None, :]
    same_patch = patch[:, None] == patch[None, :]
    flat_valid = valid.reshape(-1)
    positives = same_tile & same_patch & ~same_sensor & flat_valid[None, :] & flat_valid[:, None]
    used = positives.any(1)
    denominators = ~(same_tile & same_sensor) & used[None, :]
    rows = tokens.reshape(-1, d)
    unit = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    similarity = jnp.exp(unit @ unit.T / temperature)
    difference = jnp.log(jnp.where(denominators, similarity, 0).sum(1)) - jnp.log(
        jnp.where(positives, similarity, 0).sum(1)
    )
    return difference[np.nonzero(used)[0]].mean()


def make_tokens(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_mask(shape=SHAPE, seed=1, rate=0.7):
    return np.random.default_rng(seed).random(shape[:3]) < rate


@pytest.mark.parametrize("block_size", [1, 7, 1024])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_full_matrix_in_value_and_gradient(block_size, masked):
    tokens = make_tokens()
    valid = make_mask() if masked else np.ones(SHAPE[:3], bool)
    value, grad = loss_and_grad(tokens, valid, block_size=block_size)
    reference = functools.partial(contrastive_loss_reference, valid=valid)
    expected, expected_grad = jax.jit(jax.value_and_grad(reference))(tokens)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=2e-6)


def test_no_mask_means_all_valid():
    tokens = make_tokens()
    np.testing.assert_array_equal(contrastive_loss(tokens), contrastive_loss(tokens, np.ones(SHAPE[:3], bool)))


def test_a_low_temperature_does_not_overflow():
    value, grad = loss_and_grad(make_tokens(), make_mask(), temperature=0.005)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_computes_in_float32_whatever_comes_in():
    tokens = jnp.asarray(make_tokens(), jnp.bfloat16)
    value, grad = loss_and_grad(tokens)
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, loss(tokens.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "valid"),
    [
        (SHAPE, np.zeros(SHAPE[:3], bool)),  # nothing is valid
        ((2, 1, 5, 8), None),  # one sensor: no token has a positive
        (
            SHAPE,
            np.arange(3)[None, :, None] == np.arange(5)[None, None, :] % 3 * np.ones((2, 1, 1)),
        ),  # one sensor a patch
    ],
)
def test_zero_loss_and_gradient_where_no_token_has_a_positive(shape, valid):
    value, grad = loss_and_grad(make_tokens(shape), valid)
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros(shape))


def test_a_token_without_a_positive_leaves_both_sums():
    tokens, valid = make_tokens(), np.ones(SHAPE[:3], bool)
    valid[0, 1:, 2] = False  # leaves tile 0, sensor 0, patch 2 alone
    alone = valid.copy()
    alone[0, 0, 2] = False
    value, grad = loss_and_grad(tokens, valid)
    np.testing.assert_array_equal(value, loss_and_grad(tokens, alone)[0])
    assert not np.asarray(grad)[0, :, 2].any()


def test_zero_vectors_have_a_finite_gradient():
    tokens = make_tokens()
    tokens[0, 0, 0] = 0
    value, grad = loss_and_grad(tokens, np.ones(SHAPE[:3], bool))
    assert np.isfinite(value) and np.isfinite(grad).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_tiles_and_sensors_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    tokens, valid = make_tokens(seed=seed), make_mask(seed=seed + 1)
    tiles, sensors = rng.permutation(SHAPE[0]), rng.permutation(SHAPE[1])
    value, grad = loss_and_grad(tokens, valid, block_size=7)
    moved, moved_grad = loss_and_grad(tokens[tiles][:, sensors], valid[tiles][:, sensors], block_size=7)
    np.testing.assert_allclose(value, moved, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(grad)[tiles][:, sensors], moved_grad, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), what=st.sampled_from([0.0, 1e6, np.nan, np.inf]))
def test_invalid_tokens_values_do_not_matter(seed, what):
    tokens, valid = make_tokens(seed=seed), make_mask(seed=seed + 1)
    value, grad = loss_and_grad(tokens, valid, block_size=7)
    other, other_grad = loss_and_grad(np.where(valid[..., None], tokens, np.float32(what)), valid, block_size=7)
    np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(grad, other_grad)


def mesh_of(*sizes):
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes))


def on_mesh(mesh, tokens, valid, negatives="global"):
    """Loss and gradient over a mesh; the gradient must lie as the tokens do."""
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    over_mesh = functools.partial(contrastive_loss, block_size=4, mesh=mesh, negatives=negatives)
    return jax.jit(jax.value_and_grad(over_mesh), in_shardings=(rows, rows), out_shardings=(None, rows))(tokens, valid)


@pytest.mark.parametrize(("tiles", "sizes"), [(8, (4, 2)), (8, (2, 2, 2)), (4, (1, 2, 4))])
def test_negatives_of_all_devices_give_the_loss_of_one(tiles, sizes):
    """With an axis "tensor" whose devices share the rows, and with one where there are too few for that."""
    shape = (tiles, *SHAPE[1:])
    tokens, valid = make_tokens(shape), make_mask(shape)
    value, grad = on_mesh(mesh_of(*sizes), tokens, valid)
    expected, expected_grad = loss_and_grad(tokens, valid)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 2, 2)])
def test_negatives_of_a_device_give_the_mean_of_its_own_losses(sizes):
    shape = (8, *SHAPE[1:])
    tokens, valid = make_tokens(shape), make_mask(shape)
    valid[:2] = False  # one device has nothing to compare: its loss is zero, and counts
    value, grad = on_mesh(mesh_of(*sizes), tokens, valid, "device")
    parts = [loss_and_grad(tokens[start : start + 2], valid[start : start + 2]) for start in range(0, 8, 2)]
    np.testing.assert_allclose(value, np.mean([part for part, _ in parts]), rtol=1e-6)
    np.testing.assert_allclose(grad, np.concatenate([part for _, part in parts]) / 4, atol=1e-6)
    assert parts[0][0] == 0 and value != pytest.approx(float(loss_and_grad(tokens, valid)[0]), rel=1e-3)


def test_the_matrix_is_never_held():
    """The largest array of the program, forward and backward, is a block of rows."""
    tokens, valid = make_tokens((64, 3, 16, 8)), make_mask((64, 3, 16, 8))
    text = str(jax.make_jaxpr(jax.value_and_grad(functools.partial(contrastive_loss, block_size=32)))(tokens, valid))
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"[a-z]\d+\[([\d,]+)\]", text)]
    assert max(sizes) == 32 * tokens[..., 0].size < tokens[..., 0].size ** 2 / 10


def test_a_batch_that_the_mesh_does_not_cut_is_refused():
    with pytest.raises(ValueError, match="batch of 2 tiles does not split over the 8 devices"):
        contrastive_loss(make_tokens(), mesh=mesh_of(4, 2))


def test_the_published_loss(golden_folder):
    golden = np.load(golden_folder / "pretrain.npz")
    for case in json.loads((golden_folder / "index.json").read_text())["pretrain"]:
        name, sensors = case["case"], [sensor for sensor in case["sensors"] if sensor != "modis"]
        tokens = np.stack([golden[f"{name}/patch_tokens/{sensor}"] for sensor in sensors], axis=1)
        np.testing.assert_allclose(loss(tokens), golden[f"{name}/loss/contrastive"], rtol=1e-5)
