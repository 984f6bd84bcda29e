"""Hints about where activations live: what they ask for, and that they are nothing without a mesh."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from anysat_jax.model.partitioning import BATCH_AXES, TENSOR, constrain, on_mesh, parts

MESH = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
TWO_AXES = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def sharding_of(shape, *axes, mesh=MESH):
    """Of the hinted part of a program whose arrays are on the mesh's devices."""

    def place(x):
        with on_mesh(mesh):
            return constrain(x + 1, *axes)

    return jax.jit(place, in_shardings=NamedSharding(mesh, PartitionSpec()))(np.zeros(shape)).sharding


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((8, 3, 4), (BATCH_AXES, None, TENSOR), PartitionSpec(BATCH_AXES, None, TENSOR)),
        ((8, 3, 5), (BATCH_AXES, None, TENSOR), PartitionSpec(BATCH_AXES)),
        ((6, 4), (BATCH_AXES, TENSOR), PartitionSpec(None, TENSOR)),
    ],
)
def test_axes_are_cut_where_they_divide(shape, axes, spec):
    wanted = NamedSharding(MESH, spec)
    assert sharding_of(shape, *axes).is_equivalent_to(wanted, len(shape))


def test_axes_that_a_mesh_lacks_cut_nothing():
    found = sharding_of((8, 4), BATCH_AXES, TENSOR, mesh=TWO_AXES)
    assert found.is_equivalent_to(NamedSharding(TWO_AXES, PartitionSpec(BATCH_AXES)), 2)
    assert parts(TWO_AXES.shape, BATCH_AXES) == 8 and parts(TWO_AXES.shape, TENSOR) == parts(MESH.shape, None) == 1


def test_dropout_draws_the_same_on_a_mesh():
    def drop(x):
        return nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})

    x = np.ones((8, 16))
    on_all = jax.device_put(x, NamedSharding(MESH, PartitionSpec(BATCH_AXES, TENSOR)))
    np.testing.assert_array_equal(jax.jit(drop)(on_all), jax.jit(drop)(x))


def test_without_a_mesh_nothing_happens():
    x = np.zeros((8, 4))
    assert constrain(x, BATCH_AXES, TENSOR) is x
    with on_mesh(None):
        assert constrain(x, BATCH_AXES, TENSOR) is x
    with on_mesh(jax.make_mesh((1, 1, 1), MESH.axis_names, axis_types=MESH.axis_types)):
        assert constrain(x, BATCH_AXES, TENSOR) is x
