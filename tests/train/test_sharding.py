"""Partition specs by name on meshes of three axes, and host-local slices; several real processes: test_processes."""

import collections
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.step import abstract_state
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import (
    RULES,
    batch_width,
    host_shard,
    make_mesh,
    put_params,
    put_whole,
    spec_of,
    state_shardings,
)
from tests.train.toys import assert_same, toy_optimizer, toy_params

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
    ("mesh", "count", "width"),
    [({"data": 8, "fsdp": 1}, 8, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 4, 2), ({"data": 1, "fsdp": 1}, 1, 1)],
)
def test_a_process_on_its_own_reads_every_row(mesh, count, width):
    shard = host_shard(mesh_of(**mesh))
    assert shard.count == count and batch_width(mesh_of(**mesh)) == width
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
