"""Micro-batches: which tiles, what is averaged, and the same numbers over a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.pretrain.masking import MaskConfig, put_masks, sample_patch_masks
from anysat_jax.pretrain.step import accumulated, micro_batches
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh, put_batch

BATCH, COUNT = 8, 4


@pytest.fixture(scope="module")
def inputs():
    batch = fake_batch(("s2", "spot"), batch_size=BATCH, extent=40.0, num_dates=2)
    return batch, sample_patch_masks(np.random.default_rng(0), batch.grid, BATCH, MaskConfig())


def gradient(params, batch, masks, rng):
    """Stands for the student: a loss of each tile's pixels and masks, and of the key if the parameters ask for it."""
    tiles = batch.observations["s2"].values.mean(axis=(1, 2, 3, 4)) + masks.context_index[:, 0]
    tiles = tiles + (masks.target_index * masks.target_mask[None, None]).sum(axis=(0, 2))

    def loss(params):
        noise = params["noise"] * jax.random.normal(rng, tiles.shape)
        return jnp.square(params["scale"] * tiles + noise - 1).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return {"loss": value, "largest": tiles.max()}, grads


def params(noise=0.0):
    return {"scale": jnp.float32(0.5), "noise": jnp.float32(noise)}


@functools.partial(jax.jit, static_argnames="count")
def mean_of(params, batch, masks, rng, count):
    return accumulated(gradient, params, batch, masks, rng, count)


def test_micro_batches_hold_each_tile_once(inputs):
    batch, masks = inputs
    cut, cut_masks = micro_batches(batch, masks, COUNT)
    for index in range(COUNT):
        own = slice(index, None, COUNT)
        np.testing.assert_array_equal(cut.observations["s2"].values[index], batch.observations["s2"].values[own])
        np.testing.assert_array_equal(cut.observations["s2"].dates[index], batch.observations["s2"].dates[own])
        np.testing.assert_array_equal(cut_masks.context_mask[index], masks.context_mask[own])
        np.testing.assert_array_equal(cut_masks.target_index[index], masks.target_index[:, own])
        np.testing.assert_array_equal(cut_masks.target_mask[index], masks.target_mask)
    assert (cut.dataset, cut.patch_size) == (batch.dataset, batch.patch_size)


def test_the_mean_over_tiles_is_that_of_the_whole_batch(inputs):
    key = jax.random.key(0)
    whole, whole_grads = mean_of(params(), *inputs, key, 1)
    metrics, grads = mean_of(params(), *inputs, key, COUNT)
    assert float(metrics["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert float(grads["scale"]) == pytest.approx(float(whole_grads["scale"]), rel=1e-6)


def test_what_is_no_mean_over_tiles_is_that_of_the_micro_batches(inputs):
    metrics, grads = mean_of(params(1.0), *inputs, jax.random.key(0), COUNT)
    cut, cut_masks = micro_batches(*inputs, COUNT)
    apart = [
        gradient(
            params(1.0),
            *jax.tree.map(lambda array, index=index: array[index], (cut, cut_masks)),
            jax.random.fold_in(jax.random.key(0), index),
        )
        for index in range(COUNT)
    ]
    assert float(metrics["largest"]) == pytest.approx(np.mean([one["largest"] for one, _ in apart]), rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(np.mean([one["loss"] for one, _ in apart]), rel=1e-6)
    assert float(grads["noise"]) == pytest.approx(np.mean([one["noise"] for _, one in apart]), rel=1e-5)


def test_a_number_that_is_not_finite_is_seen_from_any_micro_batch(inputs):
    batch, masks = inputs
    values = batch.observations["s2"].values.copy()
    values[5, 0, 0, 0, 0] = np.nan
    batch = batch.replace(observations={"s2": dataclasses.replace(batch.observations["s2"], values=values)})
    metrics, grads = mean_of(params(), batch, masks, jax.random.key(0), COUNT)
    assert np.isnan(metrics["loss"]) and np.isnan(grads["scale"])


def test_no_tile_leaves_its_device(inputs):
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=1))
    batch, masks = put_batch(inputs[0], mesh), put_masks(inputs[1], mesh)
    program = mean_of.lower(params(), batch, masks, jax.random.key(0), COUNT).compile()
    text = program.as_text()
    assert "all-reduce" in text  # of losses and gradients
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    alone, _ = mean_of(params(), *inputs, jax.random.key(0), COUNT)
    assert float(program(params(), batch, masks, jax.random.key(0))[0]["loss"]) == pytest.approx(
        float(alone["loss"]), rel=1e-6
    )
