"""What a process gives of arrays on the devices; several real processes: test_processes."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from anysat_jax.train.sharding import batch_width, host_shard, make_mesh, put_params, put_whole, state_shardings
from tests.train.toys import assert_same, toy_params

MESH = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@pytest.mark.parametrize(
    ("mesh", "count", "width"),
    [({"data": 8, "fsdp": 1}, 8, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 4, 2), ({"data": 1, "fsdp": 1}, 1, 1)],
)
def test_a_process_on_its_own_reads_every_row(mesh, count, width):
    share = host_shard(make_mesh(mesh))
    assert share.count == count and batch_width(make_mesh(mesh)) == width
    assert share.rows(16).tolist() == list(range(16))


class Elsewhere:
    """Stands for a sharding over the devices of several processes."""

    is_fully_addressable = False

    def __init__(self, sharding):
        self._sharding = sharding

    def __getattr__(self, name):
        return getattr(self._sharding, name)


def test_parameters_lie_where_the_rules_say():
    params = toy_params()
    placed = put_params(params, MESH)
    assert_same(placed, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == state_shardings(MESH, params)
    assert_same(put_params(placed, MESH), params)


def test_a_whole_array_is_cut_without_asking_the_others(monkeypatch):
    made = []
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, _, piece: made.append((shape, piece)))
    whole = np.arange(12.0).reshape(4, 3)
    put_whole(whole, Elsewhere(NamedSharding(MESH, PartitionSpec("data"))))
    ((shape, piece),) = made
    np.testing.assert_array_equal(piece((slice(2, 4), slice(None))), whole[2:4])
    assert shape == (4, 3)
