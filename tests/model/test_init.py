"""Initial values and parameter counts."""

import chex
import numpy as np

from anysat_jax.batch import Batch, Observation, fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder
from anysat_jax.model.init import (
    flat_names,
    init_encoder,
    init_student,
    parameter_table,
)

SMALL = ModelConfig(dim=64, depth=2, num_heads=4, predictor_heads=4, sensors=("spot", "s2", "modis"))


def test_base_has_the_published_parameters() -> None:
    """125.9M: projectors 34.3M, spatial 42.5M, combiner 49.0M; predictor 29M."""
    table = parameter_table(ModelConfig.from_preset("base"))
    assert round(table["projectors"] / 1e6, 1) == 34.3
    assert round(table["spatial"] / 1e6, 1) == 42.5
    assert round(table["combiner"] / 1e6, 1) == 49.0
    assert round(table["encoder"] / 1e6, 1) == 125.9
    assert int(table["predictor"] / 1e6) == 29
    assert table["encoder"] == table["projectors"] + table["spatial"] + table["combiner"]


def test_values_depend_on_the_seed_alone() -> None:
    chex.assert_trees_all_equal(init_student(SMALL, 1), init_student(SMALL, 1))
    one, two = (init_student(SMALL, seed)["mask_token"] for seed in (1, 2))
    assert not np.array_equal(one, two)
    chex.assert_trees_all_equal(init_student(SMALL, 1)["encoder"], init_encoder(SMALL, 1))


def test_another_sensor_changes_nothing_else() -> None:
    more = ModelConfig(dim=64, depth=2, num_heads=4, predictor_heads=4, sensors=("spot", "s2", "modis", "l7"))
    encoder = init_encoder(more, 3)
    del encoder["projector_l7"]
    chex.assert_trees_all_equal(encoder, init_encoder(SMALL, 3))


def test_each_kind_of_parameter_has_its_spread() -> None:
    """Zeros, ones, LeCun normal (1 / inputs), L-TAE's 2 / key width, or a small normal."""
    values = flat_names(init_student(SMALL, 0))
    stds = {
        "encoder/projector_s2/hidden_0/bias": 1.0,
        "encoder/projector_spot/hidden_0/bias": 1.0,
        "encoder/projector_spot/hidden_1/bias": 0.0,
        "encoder/projector_spot/embed/kernel": 300**-0.5,
        "encoder/projector_s2/attention/query": 0.5,
        "encoder/projector_s2/attention/key/kernel": 0.5,
        "encoder/projector_s2/pad_value": 0.0,
        "encoder/spatial/blocks/attention/qkv/kernel": 64**-0.5,
        "encoder/spatial/blocks/mlp/down/kernel": 256**-0.5,
        "encoder/spatial/blocks/attention/relative": 0.02,
        "encoder/combiner/blocks/mlp/up/bias": 0.0,
        "predictor/mask_token": 0.02,
        "mask_token": 0.02,
    }
    for name, std in stds.items():
        np.testing.assert_allclose(np.std(values[name]), std, rtol=0.5, err_msg=name)
        np.testing.assert_allclose(np.mean(values[name]), 0, atol=std, err_msg=name)
    assert all(value.dtype == np.float32 for value in values.values())
    assert all((value == 1).all() for name, value in values.items() if name.endswith("/scale"))


def test_dim_and_bright_pixels_of_one_colour_start_apart() -> None:
    encoder = Encoder(SMALL)
    pixel = np.random.default_rng(0).standard_normal((1, 1, 10, 1, 1)).astype(np.float32)
    values = np.concatenate([pixel, 3 * pixel])
    series = Observation(values, dates=np.zeros((2, 1), np.int32), date_mask=np.ones((2, 1), bool))
    batch = Batch({"s2": series}, patch_size=10.0)
    tokens = encoder.apply({"params": init_encoder(SMALL, 0)}, batch, method=Encoder.project)["s2"][:, 0, 0]
    dim, bright = np.asarray(tokens)
    assert np.corrcoef(dim, bright)[0, 1] < 0.95


def test_patches_start_with_what_is_in_them() -> None:
    """Of two tiles that differ in one patch, that patch's vector differs by far the most."""
    batch = fake_batch(("spot",), batch_size=1, extent=60.0, patch_size=10.0)
    values = np.repeat(batch.observations["spot"].values, 2, axis=0)
    values[1, :, :10, :10] += 3
    both = Batch({"spot": Observation(values)}, patch_size=10.0)
    patches = np.asarray(Encoder(SMALL).apply({"params": init_encoder(SMALL, 0)}, both, "all"))[:, 1:]
    change = np.linalg.norm(patches[1] - patches[0], axis=1)
    assert change[0] > 3 * change[1:].max()
