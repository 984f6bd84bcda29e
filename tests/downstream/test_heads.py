"""Heads have the paper's sizes, and their outputs land on their own pixels."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.downstream.network import Head, HeadConfig, shuffle_pixels

DIM = 8
FEATURES = np.random.default_rng(0).standard_normal((2, 3, 2, 2 * DIM), dtype=np.float32)


@pytest.fixture
def flair(task_of):
    """Sub-patches of 10 x 10 label pixels, 13 classes."""
    return task_of("flair", "dense")


def run(head: Head, features: np.ndarray) -> np.ndarray:
    params = head.init(jax.random.key(0), features)
    return np.asarray(head.apply(params, features))


def test_shuffled_outputs_are_laid_out_row_by_row():
    x = np.arange(2 * 3 * 2 * 4 * 5).reshape(2, 3, 2, 4 * 5)
    pixels = np.asarray(shuffle_pixels(jnp.asarray(x), 2))
    assert pixels.shape == (2, 6, 4, 5)
    for i, j, row, column in np.ndindex(3, 2, 2, 2):
        first = (row * 2 + column) * 5
        np.testing.assert_array_equal(pixels[:, 2 * i + row, 2 * j + column], x[:, i, j, first : first + 5])


def test_a_sub_patch_answers_for_its_own_pixels(flair):
    head = Head(HeadConfig(input="dense"), flair)
    changed = FEATURES.copy()
    changed[0, 1, 0] = 3 * FEATURES[1, 2, 1]
    params = head.init(jax.random.key(0), FEATURES)
    before, after = (np.asarray(head.apply(params, features)) for features in (FEATURES, changed))
    assert before.shape == (2, 30, 20, flair.num_outputs)
    differs = (before != after).all(axis=-1)
    expected = np.zeros_like(differs)
    expected[0, 10:20, 0:10] = True
    np.testing.assert_array_equal(differs, expected)
    # The pixels of a sub-patch have outputs of their own.
    assert np.unique(before[0, :10, :10].reshape(100, -1), axis=0).shape[0] == 100


def test_interpolation_keeps_constants_and_centres(flair):
    head = Head(HeadConfig(input="dense", upsample="bilinear"), flair)
    constant = np.broadcast_to(FEATURES[:1, :1, :1], FEATURES.shape)
    logits = run(head, constant)
    assert logits.shape == (2, 30, 20, flair.num_outputs)
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1, :1, :1], logits.shape), atol=1e-5)
    # An odd upsampling has pixels right at the sub-patches' centres.
    fine = dataclasses.replace(flair, metres=flair.metres * 10 / 3)
    coarse = dataclasses.replace(flair, metres=flair.metres * 10)
    at_centres = run(Head(head.head, fine), FEATURES)[:, 1::3, 1::3]
    np.testing.assert_allclose(at_centres, run(Head(head.head, coarse), FEATURES), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_tile_heads_give_float32_logits(task_of, kind):
    task = task_of("timesen2crop", "tile")
    head = Head(HeadConfig(kind=kind, hidden=4), task, jnp.bfloat16)
    params = head.init(jax.random.key(0), FEATURES[:, 0, 0])
    assert ("hidden" in params["params"]) == (kind == "mlp")
    logits = head.apply(params, FEATURES[:, 0, 0])
    assert (logits.shape, logits.dtype) == ((2, 16), jnp.float32)


def test_a_regression_has_one_output(task_of):
    assert run(Head(HeadConfig(input="dense"), task_of("biomassters", "dense")), FEATURES).shape == (2, 3, 2, 1)


def test_a_head_survives_json():
    head = HeadConfig(kind="mlp", input="mean", hidden=7, upsample="bilinear")
    assert HeadConfig.from_json(json.loads(json.dumps(head.to_json()))) == head


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="conv"), "head.kind = 'conv' must be one of 'linear', 'mlp'"),
        (dict(input="patch"), "head.input = 'patch' must be one of 'tile', 'dense', 'mean'"),
        (dict(upsample="nearest"), "head.upsample = 'nearest'"),
        (dict(hidden=0), "head.hidden = 0 must be at least 1"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**fields)
