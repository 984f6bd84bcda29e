"""Meshes, partition specs by name, batches and host-local slices on eight fake devices."""

import collections
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from anysat_jax.batch import fake_batch
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.masking import put_masks
from anysat_jax.pretrain.step import abstract_state
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import (
    RULES,
    batch_sharding,
    check_batch_sizes,
    check_heads,
    host_shard,
    make_mesh,
    put_batch,
    put_params,
    put_whole,
    spec_of,
    state_shardings,
)
from tests.train.toys import assert_same, toy_masks, toy_optimizer, toy_params

MODEL = ModelConfig.from_preset("base", sensors=("spot", "s2"))


def mesh_of(data=None, fsdp=1, tensor=1):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def names_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def specs(tree):
    return {name: leaf.spec for name, leaf in names_of(tree).items()}


@pytest.fixture(scope="module")
def base():
    """Leaves of the base model's state by name, on a mesh with all three axes."""
    return names_of(abstract_state(MODEL, toy_optimizer(), mesh_of(2, 2, 2)))


def test_heads_and_hidden_channels_are_cut_over_tensor_the_other_side_over_fsdp(base):
    assert base["params/encoder/combiner/blocks/attention/qkv/kernel"].sharding.spec == PartitionSpec(
        None, ("tensor", "fsdp"), None
    )
    assert base["params/predictor/blocks/attention/out/kernel"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert base["params/encoder/spatial/blocks/mlp/up/kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert base["params/encoder/spatial/blocks/mlp/down/kernel"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")
    assert base["params/encoder/combiner/cross/key/kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert base["params/encoder/projector_s2/out/kernel"].sharding.spec == PartitionSpec("fsdp", None)


def test_teacher_and_moments_lie_like_the_student(base):
    copies = collections.defaultdict(list)
    for name, leaf in base.items():
        copies[re.sub(r"^(teacher|(params|opt_state/\d/[a-z]+)/encoder)/", "", name)].append(leaf.sharding.spec)
    assert len(copies["combiner/blocks/mlp/up/kernel"]) == 4  # student, teacher, two moments
    assert all(len(set(found)) == 1 for found in copies.values())


def test_every_rule_is_of_some_leaf(base):
    used = {pattern for pattern, _ in RULES if any(re.search(pattern, name) for name in base)}
    assert used == {pattern for pattern, _ in RULES}


def test_a_device_holds_its_part_only(base):
    """Of the transformers' matrices, with fsdp and tensor; what is small is whole."""
    sizes = {name: (leaf.size, np.prod(leaf.sharding.shard_shape(leaf.shape))) for name, leaf in base.items()}
    blocks = [part / whole for name, (whole, part) in sizes.items() if "blocks" in name and name.endswith("kernel")]
    assert blocks and set(blocks) == {0.25}
    total, own = (sum(column) for column in zip(*sizes.values(), strict=True))
    assert own < 0.3 * total


def test_a_rule_that_does_not_divide_falls_back_to_the_next():
    shape, name = (6, 768, 3072), "encoder/spatial/blocks/mlp/up/kernel"
    assert spec_of(name, shape, {"data": 1, "fsdp": 5, "tensor": 2}) == PartitionSpec(None, None, "tensor")
    assert spec_of(name, shape, {"data": 1, "fsdp": 2, "tensor": 5}) == PartitionSpec(None, None, "fsdp")
    assert spec_of(name, shape, {"data": 1, "fsdp": 5, "tensor": 5}) == PartitionSpec()
    assert spec_of(name, shape, {"data": 8, "fsdp": 1, "tensor": 1}) == PartitionSpec()


def test_small_leaves_are_repeated_and_the_scan_axis_is_never_cut():
    found = specs(state_shardings(mesh_of(fsdp=2), toy_params()))
    assert found["encoder/spatial/blocks/mlp/up/kernel"] == PartitionSpec(None, "fsdp", None)
    assert found["predictor/out/kernel"] == PartitionSpec("fsdp", None)
    small = [name for name in found if not name.endswith("kernel")]
    assert small and all(found[name] == PartitionSpec() for name in small)


def test_an_axis_that_fsdp_does_not_divide_is_not_cut():
    odd = {"blocks": {"kernel": np.zeros((8, 129, 131))}, "kernel": np.zeros((256, 1001))}
    found = specs(state_shardings(mesh_of(fsdp=8), odd))
    assert found == {"blocks/kernel": PartitionSpec(), "kernel": PartitionSpec("fsdp", None)}


def test_along_data_everything_is_repeated():
    assert set(specs(state_shardings(mesh_of(), toy_params())).values()) == {PartitionSpec()}


@pytest.mark.parametrize(
    ("mesh", "count"),
    [({"data": 8, "fsdp": 1}, 8), ({"data": 2, "fsdp": 2, "tensor": 2}, 4), ({"data": 1, "fsdp": 1}, 1)],
)
def test_a_process_on_its_own_reads_every_row(mesh, count):
    shard = host_shard(mesh_of(**mesh))
    assert shard.count == count
    assert shard.rows(16).tolist() == list(range(16))


class Elsewhere:
    """Stands for a sharding over the devices of several processes."""

    is_fully_addressable = False

    def __init__(self, sharding):
        self._sharding = sharding

    def __getattr__(self, name):
        return getattr(self._sharding, name)


def test_parameters_are_cut_by_the_rules():
    params = toy_params()
    placed = put_params(params, mesh_of(2, 2, 2))
    assert_same(placed, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == state_shardings(mesh_of(2, 2, 2), params)
    assert_same(put_params(placed, mesh_of(2, 2, 2)), params)


def test_a_whole_array_is_cut_without_messages_to_the_others(monkeypatch):
    made = []
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, _, piece: made.append((shape, piece)))
    whole = np.arange(12.0).reshape(4, 3)
    put_whole(whole, Elsewhere(NamedSharding(mesh_of(2, 2, 2), PartitionSpec("data"))))
    ((shape, piece),) = made
    np.testing.assert_array_equal(piece((slice(2, 4), slice(None))), whole[2:4])
    assert shape == (4, 3)


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
