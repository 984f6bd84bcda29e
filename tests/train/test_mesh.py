"""Meshes, shardings, and arrays on their way to eight fake devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from anysat_jax.batch import fake_batch
from anysat_jax.train.errors import ConfigError
from anysat_jax.train.mesh import batch_sharding, check_batch_sizes, make_mesh, put_batch, put_masks, state_shardings
from tests.train.toys import assert_same, toy_masks, toy_params


def mesh_of(data=None, fsdp=1):
    return make_mesh({"data": data, "fsdp": fsdp})


def test_the_default_mesh_is_what_the_machine_has():
    mesh = mesh_of()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1} and mesh.axis_types == (AxisType.Auto,) * 2
    assert dict(mesh_of(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert mesh_of(data=1).size == 1


@pytest.mark.parametrize(("data", "fsdp"), [(16, 1), (8, 2), (None, 9)])
def test_a_mesh_larger_than_the_machine_is_refused(data, fsdp):
    with pytest.raises(ConfigError, match=r"needs \d+ devices, and there are 8 \(cpu\); lower one of them"):
        mesh_of(data, fsdp)


def test_a_batch_size_that_cannot_be_cut_is_refused():
    check_batch_sizes({"good": {"batch_size": 16}}, mesh_of())
    with pytest.raises(ConfigError, match=r"datasets.bad.batch_size = 12 .* 8 devices; take a multiple such as 16"):
        check_batch_sizes({"good": {"batch_size": 16}, "bad": {"batch_size": 12}}, mesh_of())


def specs(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec for path, leaf in leaves}


def test_large_leaves_are_cut_over_fsdp_and_the_scan_axis_never():
    found = specs(state_shardings(mesh_of(fsdp=2), toy_params()))
    assert found["encoder/spatial/blocks/mlp/up/kernel"] == PartitionSpec(None, None, "fsdp")
    assert found["predictor/out/kernel"] == PartitionSpec("fsdp", None)
    small = [name for name in found if not name.endswith("kernel")]
    assert small and all(found[name] == PartitionSpec() for name in small)


def test_an_axis_that_fsdp_does_not_divide_is_not_cut():
    odd = {"blocks": {"kernel": np.zeros((8, 129, 131))}, "kernel": np.zeros((256, 1001))}
    found = specs(state_shardings(mesh_of(fsdp=8), odd))
    assert found == {"blocks/kernel": PartitionSpec(), "kernel": PartitionSpec("fsdp", None)}


def test_without_fsdp_everything_is_repeated():
    assert set(specs(state_shardings(mesh_of(), toy_params())).values()) == {PartitionSpec()}


def test_batches_and_masks_arrive_whole_and_cut():
    mesh = mesh_of(data=4, fsdp=2)
    batch = fake_batch(("s2", "spot"), batch_size=8, num_dates=2, extent=20.0)
    there = put_batch(batch, mesh)
    assert_same(batch, there)
    assert (there.dataset, there.patch_size, there.batch_size) == ("fake", 10.0, 8)
    assert there.observations["s2"].values.sharding == batch_sharding(mesh)
    masks = put_masks(toy_masks(), mesh)
    assert_same(toy_masks(), masks)
    shards = {name: getattr(masks, name).addressable_shards[0].data.shape for name in vars(masks)}
    assert shards == {"context_index": (1, 3), "context_mask": (1, 3), "target_index": (4, 1, 2), "target_mask": (2,)}
