"""Layer-wise decay falls step by step from the head to the projectors."""

import jax
import numpy as np
import pytest

from anysat_jax.downstream.trainable import layer_multipliers
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import flat_names, student_shapes

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


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_other_decays_are_refused(shapes, decay):
    with pytest.raises(ValueError, match=f"optimizer.layer_decay = {decay} must be more than 0 and at most 1"):
        layer_multipliers(shapes, decay, DEPTH)
