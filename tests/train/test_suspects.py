"""Samples of a step that is not finite."""

import numpy as np

from anysat_jax.batch import fake_batch
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import Fed, bad_rows, make_blame
from anysat_jax.train.sharding import make_mesh, put_batch

MESH = make_mesh(MeshConfig(data=2, fsdp=2))


def batch_with(bad=()):
    batch = fake_batch(("spot", "s2"), batch_size=8, extent=20.0)
    s2 = batch.observations["s2"]
    values = np.array(s2.values)
    for row in bad:
        values[row, 0, 0, 0, 0] = np.inf
    return put_batch(batch.replace(observations={**batch.observations, "s2": s2.replace(values=values)}), MESH)


class Named:
    """An open dataset that names its tiles."""

    def tile_ids(self, split, tiles):
        return [f"fake_{tile}" for tile in tiles]


class Unreadable:
    def tile_ids(self, split, tiles):
        raise ValueError


def blame(batch, tiles, dataset=None):
    return make_blame({"fake": dataset or Named()})(Fed(batch, None, {}, tiles=tiles))


def test_rows_with_bad_values_are_found_whatever_device_holds_them():
    assert np.flatnonzero(bad_rows(batch_with((1, 6)))).tolist() == [1, 6]
    assert not bad_rows(batch_with()).any() and len(bad_rows(batch_with())) == 8


def test_they_are_named():
    assert blame(batch_with((2,)), np.arange(10, 18)) == "samples with such values in them: fake_12"


def test_where_the_input_is_good_the_whole_batch_is_named():
    text = blame(batch_with(), np.arange(8))
    assert text.startswith("its samples: fake_0, fake_1, ") and text.endswith("fake_7")


def test_few_of_many_and_by_position_where_they_cannot_be_read(monkeypatch):
    assert blame(batch_with((3,)), np.arange(8), Unreadable()) == "samples with such values in them: tile 3"
    monkeypatch.setattr("anysat_jax.train.input.MOST", 2)
    assert blame(batch_with(), np.arange(8), Unreadable()) == "its samples: tile 0, tile 1 and 6 more"
