"""Measures of collapse, which cost little on any mesh, and warnings of features that collapse."""

import jax
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.pretrain import collapse as collapse
from anysat_jax.pretrain.collapse import (
    MAX_TILES,
    MAX_VECTORS,
    MEASURES,
    WINDOW,
    CollapseMonitor,
    HealthConfig,
    chosen_vectors,
    feature_health,
    sampled_vectors,
)
from anysat_jax.pretrain.objective import normalise
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import StepInput
from anysat_jax.train.monitor import Finished
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import make_mesh, put_batch


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(collapse.logging, "warning", lambda form, *values: lines.append(form % values))
    return lines


def look(watch, rank, cosine=0.5, variance=0.3, steps=WINDOW, first=1, dataset="fake"):
    batch = fake_batch(("spot",), batch_size=2, extent=20.0, dataset=dataset)
    for step in range(first, first + steps):
        values = dict(rank_tiles=rank, cosine=cosine, variance=variance)
        metrics = {f"feature_{name}": np.float32(value) for name, value in values.items()}
        watch(Finished(step, StepInput((batch, None), {}), metrics))


def watch_of(record=None):
    return CollapseMonitor(HealthConfig(min_rank_share=0.2, max_cosine=0.99, min_variance=1e-3), record or RunRecord())


def test_a_rank_far_below_its_start_is_told_of_once(warned):
    watch, record = watch_of(record := RunRecord()), record
    look(watch, rank=10.0)
    look(watch, rank=3.0)
    assert not warned and record.first_ranks == {"fake 10 m": 10.0}
    look(watch, rank=1.0)
    look(watch, rank=1.0)
    assert len(warned) == 1 and record.warnings == 1
    assert "fake 10 m: the rank between tiles fell from 10.00 to 1." in warned[0]
    assert "below health.min_rank_share = 0.2 of its start" in warned[0]


def test_it_is_told_of_again_after_it_recovered(warned):
    watch = watch_of()
    for rank in (10.0, 1.0, 9.0, 1.0):
        look(watch, rank)
    assert len(warned) == 2


def test_a_cosine_near_one(warned):
    look(watch_of(), rank=10.0, cosine=0.995)
    assert len(warned) == 1 and "the cosine between tiles rose to 0.9950, above health.max_cosine = 0.99" in warned[0]


@pytest.mark.parametrize("rank", [10.0, np.nan])  # several tiles, or one alone
def test_a_variance_near_zero(warned, rank):
    watch = watch_of()
    look(watch, rank, variance=0.01)
    assert not warned
    look(watch, rank, variance=2e-4)
    assert len(warned) == 1 and "the variance fell to 0.0002, below health.min_variance = 0.001" in warned[0]


def test_values_that_are_not_finite_are_passed_over(warned):
    watch = watch_of(record := RunRecord())
    look(watch, rank=np.nan, cosine=np.nan, variance=np.nan, steps=3)
    look(watch, rank=10.0)
    assert not warned and record.first_ranks == {"fake 10 m": 10.0}


def test_one_batch_is_no_collapse(warned):
    watch = watch_of()
    look(watch, rank=10.0)
    look(watch, rank=0.1, steps=1)
    assert not warned


def test_kinds_of_batches_are_not_compared(warned):
    watch = watch_of()
    look(watch, rank=10.0, dataset="many_tiles")
    look(watch, rank=1.5, dataset="few_tiles")
    assert not warned


def test_a_run_that_goes_on_knows_its_start(warned):
    watch_of(record := RunRecord())
    look(watch_of(record), rank=10.0)
    look(watch_of(RunRecord.from_json(record.to_json())), rank=1.0)
    assert len(warned) == 1


def test_single_tiles_have_nothing_to_compare_with(warned):
    watch = watch_of(record := RunRecord())
    look(watch, rank=np.nan, cosine=np.nan)
    assert not warned and not record.first_ranks


measure = jax.jit(lambda patches: feature_health(normalise(sampled_vectors(patches))))


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
    content = vectors.var(axis=0, ddof=1).mean() / vectors.var(axis=(0, 1)).mean()
    assert health["position"] == pytest.approx(1 - content, abs=1e-4)


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
    assert health["position"] == pytest.approx(1, abs=1e-4)


def test_content_alone_leaves_nothing_to_positions():
    assert measure(np.broadcast_to(draw(64, 1, 16), (64, 4, 16)))["position"] == 0


def test_a_single_tile_has_no_other_to_compare_with():
    health = measure(draw(1, 9, 16))
    assert np.isnan(health["rank_tiles"]) and np.isnan(health["cosine"]) and np.isnan(health["position"])
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
