"""The table of published names against the model's tree, and against itself in both directions."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import student_shapes
from anysat_jax.weights.convert import from_published, pretraining_entries, published_shapes, to_published

CONFIG = ModelConfig(dim=32, depth=2, num_heads=2, predictor_depth=3, predictor_heads=2)


@pytest.fixture(scope="module")
def shapes():
    student = student_shapes(CONFIG)
    return student | {"teacher": student["encoder"]}


@pytest.fixture(scope="module")
def params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), shapes)


def test_every_parameter_of_every_sensor_has_one_published_name(shapes):
    entries = pretraining_entries(CONFIG)
    assert {entry.path for entry in entries} == set(flax.traverse_util.flatten_dict(shapes))
    assert len({entry.published for entry in entries}) == len(entries)
    assert len({(entry.path, entry.layer) for entry in entries}) == len(entries)


def test_out_and_in_again_is_exact(params):
    entries = pretraining_entries(CONFIG)
    back = from_published(entries, to_published(entries, params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert all(leaf.dtype == np.float32 and leaf.flags["C_CONTIGUOUS"] for leaf in jax.tree.leaves(back))


def test_shapes_are_the_published_ones(shapes):
    published = published_shapes(pretraining_entries(CONFIG), shapes)
    assert published["model.encoder.projector_spot.patch_embed.weight"] == (32, 3, 10, 10)
    assert published["model.encoder.projector_s2.patch_embed.inconv.0.weight"] == (4, 10)
    assert published["model.encoder.projector_s2.pad_parameter"] == ()
    assert published["model.encoder.spatial_encoder.predictor_blocks.1.attn.rpe_k.lookup_table_weight"] == (1, 16, 8)
    assert published["model.encoder.blocks.2.attn.q_learned"] == (1, 1, 32)
    assert published["model.predictor.predictor_blocks.2.mlp.fc1.weight"] == (128, 32)
    assert published["model.masked_token"] == published["target_encoder.cls_token"] == (1, 1, 32)


def test_layers_keep_their_order(params):
    arrays = to_published(pretraining_entries(CONFIG), params)
    for layer in range(2):
        np.testing.assert_array_equal(
            arrays[f"model.encoder.blocks.{layer}.attn.qkv.weight"],
            params["encoder"]["combiner"]["blocks"]["attention"]["qkv"]["kernel"][layer].T,
        )
