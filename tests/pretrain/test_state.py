"""The state at its start."""

import jax
import numpy as np
import pytest

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student
from anysat_jax.pretrain.step import abstract_state, state_from_params
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from tests.train.toys import assert_same, toy_optimizer, toy_params

MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "spot"))


def mesh_of(data=1, fsdp=1):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp))


@pytest.fixture(scope="module")
def state():
    return state_from_params(init_student(MODEL, 3), None, toy_optimizer(), mesh_of())


def test_the_teacher_starts_as_the_student_in_buffers_of_its_own(state):
    assert int(state.step) == 0
    assert_same(state.params, init_student(MODEL, 3))
    assert_same(state.teacher, state.params["encoder"])
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_the_start_is_the_same_on_every_mesh(state):
    for mesh in (mesh_of(8), mesh_of(2, 4)):
        assert_same(state_from_params(init_student(MODEL, 3), None, toy_optimizer(), mesh), state)


def test_the_abstract_state_describes_it(state):
    abstract = abstract_state(MODEL, toy_optimizer(), mesh_of())
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for wanted, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (wanted.shape, wanted.dtype, wanted.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_a_start_from_given_weights():
    params, teacher = toy_params(0), toy_params(1)["encoder"]
    state = state_from_params(params, teacher, toy_optimizer(), mesh_of(8))
    assert_same(state.params, params)
    assert_same(state.teacher, teacher)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.teacher))
