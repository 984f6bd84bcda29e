import jax
import pytest

from anysat_jax.batch import Batch, fake_batch, tile_extent
from anysat_jax.sensors import GEOPLEX_SENSORS


def test_a_fake_batch_of_every_sensor():
    batch = fake_batch(GEOPLEX_SENSORS, batch_size=3, extent=(60.0, 120.0), patch_size=30, num_dates=2)
    assert batch.batch_size == 3
    assert batch.grid == (2, 4)
    assert batch.sensors == tuple(sorted(GEOPLEX_SENSORS))
    assert batch.observations["aerial"].values.shape == (3, 4, 300, 600)
    assert batch.observations["alos"].values.shape == (3, 2, 3, 2, 4)
    assert batch.observations["modis"].values.shape == (3, 2, 7, 1, 1)
    assert batch.observations["s2"].dates.shape == batch.observations["s2"].date_mask.shape == (3, 2)


def test_a_batch_is_a_tree_whose_dataset_and_patch_size_are_static():
    batch = fake_batch(("s2",), dataset="mine", patch_size=20)
    twice = jax.tree.map(lambda leaf: leaf * 2, batch)
    assert isinstance(twice, Batch)
    assert (twice.dataset, twice.patch_size) == ("mine", 20.0)
    assert jax.tree.structure(batch) != jax.tree.structure(batch.replace(patch_size=10.0))


def test_the_same_seed_gives_the_same_noise():
    first, second, other = (fake_batch(("s2",), seed=seed) for seed in (0, 0, 1))
    assert (first.observations["s2"].values == second.observations["s2"].values).all()
    assert not (first.observations["s2"].values == other.observations["s2"].values).all()


def test_context_alone_has_no_extent():
    with pytest.raises(ValueError, match=r"no sensor with a spatial extent among \['modis'\]; give at least one image"):
        tile_extent(fake_batch(("modis",)).observations)
