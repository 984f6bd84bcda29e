"""Parameters that train in each mode, and layer-wise decay."""

import jax
import numpy as np
import pytest

from anysat_jax.downstream.trainable import (
    dropping_sensors,
    layer_multipliers,
    merge,
    split,
)
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import flat_names, init_encoder, student_shapes

SENSORS = ("s1", "s2")
PARTS = {
    "finetune": {"encoder/projector_s1", "encoder/projector_s2", "encoder/spatial", "encoder/combiner"},
    "scratch": {"encoder/projector_s1", "encoder/projector_s2", "encoder/spatial", "encoder/combiner"},
    "probe": set(),
    "last_block": {"encoder/combiner/cross"},
    "projector": {"encoder/projector_s1"},
}


@pytest.fixture(scope="module")
def params():
    """An encoder with projectors that the data do not use; one name begins with another."""
    model = ModelConfig(dim=32, depth=1, num_heads=2, predictor_heads=2, sensors=("s1", "s1-asc", "s2"))
    return {"encoder": init_encoder(model, 0), "head": {"out": {"kernel": np.ones((32, 2)), "bias": np.zeros(2)}}}


@pytest.mark.parametrize("mode", PARTS)
def test_frozen_leaves_are_those_of_the_mode(params, mode):
    prefixes = tuple(f"{part}/" for part in PARTS[mode] | {"head"})
    expected = {name for name in flat_names(params) if name.startswith(prefixes)}
    trainable, frozen = split(params, mode, SENSORS, ("s1",))
    assert set(flat_names(trainable)) == expected
    assert set(flat_names(frozen)) == set(flat_names(params)) - expected


@pytest.mark.parametrize("mode", PARTS)
def test_parts_merge_to_the_whole(params, mode):
    whole = merge(*split(params, mode, SENSORS, ("s1",)))
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_sensors_drop_where_their_projectors_train(params):
    for mode, parts in PARTS.items():
        dropping = dropping_sensors(mode, SENSORS, ("s1",))
        assert {f"encoder/projector_{name}" for name in dropping} == {part for part in parts if "projector" in part}


DEPTH, DECAY = 2, 0.5


@pytest.fixture(scope="module")
def shapes():
    model = ModelConfig(dim=32, depth=DEPTH, num_heads=2, predictor_heads=2, sensors=("s2", "spot"))
    head = {"norm": {"scale": jax.ShapeDtypeStruct((32,), np.float32)}}
    return {"encoder": student_shapes(model)["encoder"], "head": head}


def test_every_layer_has_its_own_rate(shapes):
    found = flat_names(layer_multipliers(shapes, DECAY, DEPTH))
    assert set(found) == set(flat_names(shapes))
    expected = {
        "head/norm/scale": [0],
        "encoder/combiner/cross/query": [1],
        "encoder/combiner/cross/mlp/up/kernel": [1],
        "encoder/combiner/blocks/mlp/up/kernel": [3, 2],
        "encoder/combiner/class_token": [3],
        "encoder/spatial/norm/scale": [4],
        "encoder/spatial/blocks/attention/qkv/bias": [5, 4],
        "encoder/spatial/class_token": [5],
        "encoder/projector_s2/attention/query": [6],
        "encoder/projector_spot/embed/kernel": [6],
    }
    for name, layers_above in expected.items():
        np.testing.assert_array_equal(found[name].ravel(), DECAY ** np.float32(layers_above), err_msg=name)


def test_they_multiply_updates_of_any_leaf(shapes):
    """Shapes stay as they are, without any promotion of ranks."""
    multipliers = layer_multipliers(shapes, DECAY, DEPTH)
    scaled = jax.eval_shape(lambda updates: jax.tree.map(lambda u, m: u * m, updates, multipliers), shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), scaled) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )


def test_no_decay_leaves_all_rates_equal(shapes):
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(layer_multipliers(shapes, 1.0, DEPTH)))
