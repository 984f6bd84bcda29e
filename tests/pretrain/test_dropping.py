"""Dropping of dates and sensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.pretrain.masking import drop_dates, keep_tokens


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
