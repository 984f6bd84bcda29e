"""Losses, targets, teacher, validity, and the measures of collapse, which cost little on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.pretrain.objective import (
    MAX_TILES,
    MAX_VECTORS,
    MEASURES,
    chosen_vectors,
    ema_decay,
    feature_health,
    gather_targets,
    normalise,
    predictive_loss,
    update_teacher,
    valid_patches,
)
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh, put_batch


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


measure = jax.jit(feature_health)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rank(centred: np.ndarray) -> float:
    """Participation ratio from the eigenvalues of the covariance."""
    values = np.linalg.svd(centred.reshape(-1, centred.shape[-1]), compute_uv=False) ** 2
    return float(values.sum() ** 2 / (values**2).sum())


def test_measures_equal_their_definitions():
    patches = draw(6, 9, 16) + draw(1, 9, 16, seed=1)
    vectors = np.asarray(normalise(patches), np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = np.einsum("bnd,cnd->nbc", unit, unit)[:, ~np.eye(6, dtype=bool)]
    health = measure(patches)
    assert tuple(health) == tuple(sorted(MEASURES))  # jit sorts the names
    assert health["rank"] == pytest.approx(rank(vectors - vectors.mean(axis=(0, 1))), rel=1e-4)
    assert health["rank_tiles"] == pytest.approx(rank(vectors - vectors.mean(axis=0)), rel=1e-4)
    assert health["variance"] == pytest.approx(vectors.var(axis=(0, 1)).mean(), rel=1e-4)
    assert health["cosine"] == pytest.approx(cosines.mean(), abs=1e-4)


def test_features_that_vary_in_k_directions_have_rank_k():
    corners = np.eye(8, dtype=np.float32)[np.arange(32) % 4].reshape(8, 4, 8)  # four orthogonal vectors, equally often
    assert measure(corners)["rank"] == pytest.approx(3, rel=1e-3)  # around their mean


def test_collapse_to_one_vector():
    health = measure(np.broadcast_to(draw(1, 1, 16), (6, 9, 16)))
    assert health["variance"] == pytest.approx(0, abs=1e-6)
    assert health["cosine"] == pytest.approx(1, abs=1e-4)
    assert health["rank"] < 1e-3 and health["rank_tiles"] < 1e-3


def test_collapse_to_positions_shows_between_tiles_only():
    health = measure(np.broadcast_to(draw(1, 9, 16), (6, 9, 16)))
    assert health["rank"] > 4 and health["variance"] > 0.5
    assert health["rank_tiles"] < 1e-3
    assert health["cosine"] == pytest.approx(1, abs=1e-4)


def test_a_single_tile_has_no_other_to_compare_with():
    health = measure(draw(1, 9, 16))
    assert np.isnan(health["rank_tiles"]) and np.isnan(health["cosine"])
    assert np.isfinite(health["rank"]) and np.isfinite(health["variance"])


@pytest.mark.parametrize(("num_tiles", "num_places"), [(2, 4), (8, 36), (64, 1296), (500, 400), (1, 1000), (300, 1)])
def test_few_vectors_are_looked_at_spread_over_tiles_and_positions(num_tiles, num_places):
    tiles, places = chosen_vectors(num_tiles, num_places)
    assert len(tiles) == min(num_tiles, MAX_TILES) and len(tiles) * len(places) <= MAX_VECTORS
    for chosen, total in ((tiles, num_tiles), (places, num_places)):
        assert chosen.min() >= 0 and chosen.max() < total
        gaps = np.diff(chosen)
        assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@pytest.mark.parametrize("num_tiles", [8, 2 * MAX_TILES])
def test_devices_together_measure_what_one_does(num_tiles):
    patches = draw(num_tiles, 40, 16)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    together, alone = measure(put_batch(patches, mesh)), measure(patches)
    for name in MEASURES:
        assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-4, abs=1e-6), name
