"""Losses, targets, teacher and available tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.pretrain.masking import PatchMasks
from anysat_jax.pretrain.objective import (
    available_tokens,
    ema_decay,
    gather_targets,
    normalise,
    predictive_loss,
    update_teacher,
)


def test_smooth_l1_by_hand() -> None:
    predicted = jnp.array([[[[0.5, 3.0]]]])
    assert float(predictive_loss(predicted, jnp.zeros_like(predicted))) == pytest.approx((0.125 + 2.5) / 2)


def test_padding_of_targets_does_not_count() -> None:
    predicted, target = np.random.default_rng(0).standard_normal((2, 4, 2, 5, 8))
    mask = jnp.array([True, True, True, False, False])
    masked = predictive_loss(jnp.asarray(predicted), jnp.asarray(target), mask)
    assert float(masked) == pytest.approx(float(predictive_loss(predicted[:, :, :3], target[:, :, :3])), rel=1e-5)


def test_targets_are_normalised_and_gathered() -> None:
    patches = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 16), dtype=np.float32) * 7 + 3)
    index = jnp.array([[[0, 5], [2, 1]]])
    target = gather_targets(patches, index)
    assert target.shape == (1, 2, 2, 16)
    np.testing.assert_array_equal(target[0, 1, 0], normalise(patches)[1, 2])
    np.testing.assert_allclose(target.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(target.std(axis=-1), 1, atol=1e-3)


def test_ema_decay_rises_linearly_to_one() -> None:
    assert [round(float(ema_decay(jnp.int32(step), 0.9, 10)), 4) for step in (0, 5, 10, 20)] == [0.9, 0.95, 1.0, 1.0]


def test_teacher_moves_towards_the_student_in_float32() -> None:
    teacher = update_teacher({"w": jnp.ones(3)}, {"w": jnp.full(3, 2.0, jnp.bfloat16)}, jnp.float32(0.996))
    assert teacher["w"].dtype == jnp.float32
    np.testing.assert_allclose(teacher["w"], 1.004, rtol=1e-6)


def test_tokens_are_available_with_a_real_place_and_a_valid_pixel() -> None:
    batch = fake_batch(("s2", "spot"), extent=20.0, num_dates=2)
    pixels = np.ones((2, 2, 1, 2, 2), bool)
    pixels[0, :, 0, 0, 1] = False  # the second patch of the first tile
    s2 = dataclasses.replace(batch.observations["s2"], pixel_mask=pixels)
    real = np.array([[True] * 3, [True, True, False]])
    masks = PatchMasks(
        context_index=np.array([[1, 2, 3], [0, 1, 1]]),
        target_index=np.zeros((1, 2, 1), int),
        context_mask=real,
        target_mask=np.ones(1, bool),
    )
    found = available_tokens(batch.replace(observations=batch.observations | {"s2": s2}), masks)
    np.testing.assert_array_equal(found[:, 0], [[False, True, True], [True, True, False]])
    np.testing.assert_array_equal(found[:, 1], real)
