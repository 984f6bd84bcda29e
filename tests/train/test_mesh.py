"""Meshes, shardings, and arrays on their way to eight fake devices."""

import jax
import pytest
from jax.sharding import AxisType

from anysat_jax.batch import fake_batch
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.masking import put_masks
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import batch_sharding, check_batch_sizes, check_heads, make_mesh, put_batch
from tests.train.toys import assert_same, toy_masks


def mesh_of(data=None, fsdp=1, tensor=1):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def test_the_default_mesh_is_what_the_machine_has():
    mesh = mesh_of()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1} and mesh.axis_types == (AxisType.Auto,) * 3
    assert dict(mesh_of(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(MeshConfig(data=None, fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert mesh_of(data=1).size == 1


def test_a_mesh_of_given_devices():
    assert dict(make_mesh(MeshConfig(data=None, fsdp=2, tensor=1), jax.devices()[4:]).shape)["data"] == 2


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(16, 1, 1), (8, 2, 1), (None, 9, 1), (4, 1, 4), (None, 3, 3)])
def test_a_mesh_larger_than_the_machine_is_refused(data, fsdp, tensor):
    with pytest.raises(ConfigError, match=r"needs \d+ devices, and there are 8 \(cpu\); lower one of them"):
        mesh_of(data, fsdp, tensor)


def test_a_batch_size_that_cannot_be_cut_is_refused():
    check_batch_sizes({"good": {"batch_size": 16}}, mesh_of())
    with pytest.raises(ConfigError, match=r"datasets.bad.batch_size = 12 .* 8 devices; give (--\S+=16 --\S+=8), or"):
        check_batch_sizes({"good": {"batch_size": 16}, "bad": {"batch_size": 12}, "few": {"batch_size": 3}}, mesh_of())
    check_batch_sizes({"good": {"batch_size": 4}}, mesh_of(tensor=2))


def test_a_batch_size_that_micro_batches_do_not_divide_is_refused():
    check_batch_sizes({"good": {"batch_size": 16}}, mesh_of(), 2)
    wanted = r"4 devices in accumulate = 3 micro-batches; give \S+bad.batch_size=12, or lower --config.accumulate"
    with pytest.raises(ConfigError, match=wanted):
        check_batch_sizes({"bad": {"batch_size": 8}}, mesh_of(data=4), 3)


@pytest.mark.parametrize(("heads", "name"), [((6, 8), "num_heads = 6"), ((8, 2), "predictor_heads = 2")])
def test_heads_that_tensor_does_not_divide_are_refused(heads, name):
    model = ModelConfig(dim=96 * 8, num_heads=heads[0], predictor_heads=heads[1])
    check_heads(model, mesh_of(tensor=2))
    with pytest.raises(ConfigError, match=f"mesh.tensor = 4 cannot share out model.{name}; take a divisor of num"):
        check_heads(model, mesh_of(tensor=4))
    check_heads(ModelConfig(predictor_heads=3), mesh_of(tensor=4), ("num_heads",))


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
