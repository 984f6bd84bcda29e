"""Masks of pretraining: patches, and dropping of dates and sensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.pretrain.masking import (
    MaskConfig,
    PatchMasks,
    drop_dates,
    keep_tokens,
    min_context,
    sample_patch_masks,
    target_sizes,
)

DEFAULT = MaskConfig()
GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda grid: grid[0] * grid[1] > 1)


def draw(seed: int, grid: tuple[int, int], config: MaskConfig = DEFAULT, batch: int = 6) -> PatchMasks:
    return sample_patch_masks(np.random.default_rng(seed), grid, batch, config)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**31), grid=GRIDS, buckets=st.tuples(st.integers(1, 2), st.integers(1, 2)))
def test_contexts_and_targets_are_apart_and_real(seed: int, grid: tuple[int, int], buckets: tuple[int, int]) -> None:
    masks = draw(seed, grid, MaskConfig(mask_buckets=buckets))
    count = grid[0] * grid[1]
    for tile in range(6):
        context = masks.context_index[tile][masks.context_mask[tile]]
        targets = masks.target_index[:, tile][:, masks.target_mask]
        assert len(set(context)) == len(context) >= min_context(grid)
        assert not set(context) & set(targets.ravel())
        assert all(len(set(block)) == len(block) for block in targets)
        assert min(*context, *targets.ravel()) >= 0 and max(*context, *targets.ravel()) < count
    assert masks.target_mask.any()
    assert masks.context_index.dtype == masks.target_index.dtype == np.int32


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), grid=GRIDS)
def test_targets_are_blocks(seed: int, grid: tuple[int, int]) -> None:
    masks = draw(seed, grid)
    blocks = masks.target_index[:, :, masks.target_mask].reshape(-1, masks.target_mask.sum())
    for block in blocks:
        rows, columns = np.divmod(np.sort(block), grid[1])
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == len(block)


@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (4, 4), (6, 6), (10, 10), (32, 32), (3, 7)])
def test_few_static_sizes(grid: tuple[int, int]) -> None:
    sizes = {draw(seed, grid).size for seed in range(200)}
    assert len(sizes) <= 4
    assert len({draw(seed, grid, MaskConfig(mask_buckets=(1, 1))).size for seed in range(200)}) == 1


def test_block_sizes_vary_within_their_range() -> None:
    sizes = [int(draw(seed, (10, 10)).target_mask.sum()) for seed in range(100)]
    assert 15 <= min(sizes) < 30 and 60 < max(sizes) <= 90
    assert max(sizes) <= target_sizes((10, 10), MaskConfig())[-1]


def test_same_generator_same_masks() -> None:
    one, two = draw(5, (6, 6)), draw(5, (6, 6))
    np.testing.assert_array_equal(one.context_index, two.context_index)
    np.testing.assert_array_equal(one.target_index, two.target_index)


def test_the_only_patch_of_a_tile_is_context_and_target() -> None:
    masks = draw(0, (1, 1))
    assert masks.size == (1, 1) and masks.target_index.shape == (1, 6, 1)
    assert masks.context_mask.all() and masks.target_mask.all()
    assert not masks.context_index.any() and not masks.target_index.any()


@pytest.mark.parametrize(
    "fields", [{"target_scale": (0.8, 0.2)}, {"context_scale": (0.5, 1.2)}, {"mask_buckets": (0, 1)}]
)
def test_impossible_settings_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match="pretrain"):
        MaskConfig(**fields)


def series(lengths: list[int], padded: int) -> Batch:
    batch = fake_batch(("s2", "spot"), batch_size=len(lengths), extent=20.0, num_dates=padded)
    mask = np.arange(padded)[None, :] < np.array(lengths)[:, None]
    s2 = batch.observations["s2"]
    dates = np.where(mask, s2.dates, 0).astype(np.int32)
    values = dates[:, :, None, None, None] * np.ones_like(s2.values)  # a value says which date it is of
    return batch.replace(
        observations=batch.observations | {"s2": s2.replace(values=values, dates=dates, date_mask=mask)}
    )


@pytest.mark.parametrize("padded", [2, 7, 8])
def test_half_of_the_real_dates_stay_in_order_with_their_values(padded: int) -> None:
    lengths = [1, 2, padded, max(1, padded - 3)]
    batch = jax.tree.map(jnp.asarray, series(lengths, padded))
    kept = drop_dates(batch, jax.random.key(0)).observations["s2"]
    assert kept.dates.shape == (4, max(1, padded // 2))
    np.testing.assert_array_equal(kept.date_mask.sum(axis=1), [max(1, length // 2) for length in lengths])
    for tile, length in enumerate(lengths):
        dates = np.asarray(kept.dates[tile])[np.asarray(kept.date_mask[tile])]
        assert set(dates) <= set(np.asarray(batch.observations["s2"].dates[tile][:length]))
        assert (np.diff(dates) >= 0).all()
        np.testing.assert_array_equal(kept.values[tile, :, 0, 0, 0][: len(dates)], dates)


def test_images_and_single_dates_stay() -> None:
    batch = jax.tree.map(jnp.asarray, fake_batch(("s2", "spot"), extent=20.0, num_dates=1))
    kept = drop_dates(batch, jax.random.key(0))
    assert kept.observations["s2"].date_mask.all()
    np.testing.assert_array_equal(kept.observations["spot"].values, batch.observations["spot"].values)


def test_draws_differ_between_keys() -> None:
    batch = jax.tree.map(jnp.asarray, series([8, 8], 8))
    one, two = (drop_dates(batch, jax.random.key(seed)).observations["s2"].dates for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_one_sensor_of_each_patch_stays_and_half_of_the_rest_goes() -> None:
    available = np.ones((5, 3, 8), bool)
    available[1, 0] = False  # a tile without its first sensor
    available[2, :, 6:] = False  # padding
    available[3, 1:] = False  # a tile with one sensor
    keep = np.asarray(keep_tokens(jnp.asarray(available), jax.random.key(0)))
    assert keep[~available].all()
    assert (keep & available).any(axis=1)[available.any(axis=1)].all()
    rest = available.sum(axis=(1, 2)) - available.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal((~keep).sum(axis=(1, 2)), rest // 2)
    assert keep[3].all()
