"""Initial values and parameter counts."""

import chex
import numpy as np
import pytest

from anysat_jax.batch import Batch, Observation, fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder
from anysat_jax.model.init import (
    flat_names,
    init_encoder,
    init_projector,
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


@pytest.fixture(scope="module")
def encoder() -> dict:
    sensors = ("spot", "planet", "s2", "hls", "l7", "l8", "s1")
    return init_encoder(ModelConfig(dim=32, num_heads=2, predictor_heads=2, sensors=sensors), 1)


def started(encoder: dict, new: str, source: str) -> tuple[dict, dict]:
    """The projector of `new` where `source` is known, and that of `source`; of each the kernel of the first layer."""
    trained = encoder[f"projector_{source}"]
    found, name = init_projector(new, {f"projector_{source}": trained, "spatial": {}}, encoder[f"projector_{new}"])
    assert name == source
    chex.assert_trees_all_equal_shapes_and_dtypes(found, encoder[f"projector_{new}"])
    return flat_names(found), flat_names(trained)


def test_a_new_series_starts_with_the_rows_of_the_nearest_bands(encoder: dict) -> None:
    """HLS has six of Sentinel-2's bands; the rows of the others move to the nearest of the six."""
    found, old = started(encoder, "hls", "s2")
    groups = ([0], [1], [2, 3, 4], [5, 6, 7], [8], [9])  # B2; B3; B4 to B6; B7 to B8A; B11; B12
    kernel = old.pop("hidden_0/kernel")
    rows = [kernel[group].sum(axis=0) for group in groups]
    np.testing.assert_allclose(found.pop("hidden_0/kernel"), rows, rtol=1e-6)
    # HLS is not normalised over the dates.
    chex.assert_trees_all_equal(found, {name: leaf for name, leaf in old.items() if not name.startswith("date_norm")})


def test_activations_keep_their_size_without_the_bands_that_are_lost(encoder: dict) -> None:
    """Landsat 7 has nothing near the two thermal bands of Landsat 8."""
    found, old = (tree["hidden_0/kernel"] for tree in started(encoder, "l7", "l8"))
    size = np.linalg.norm(old) / np.linalg.norm(old[:-2])
    np.testing.assert_allclose(found[3], size * old[5], rtol=1e-5)  # the near infrared


def test_a_new_image_sees_an_even_grey_as_the_nearest_one_does(encoder: dict) -> None:
    found, old = (tree["embed/kernel"].sum(axis=(0, 1)) for tree in started(encoder, "planet", "spot"))
    # 4 x 4 pixels in place of 10 x 10: smoothing weighs the borders a little more.
    assert np.linalg.norm(found - old) < 0.35 * np.linalg.norm(old)


def test_without_a_near_sensor_a_projector_stays_as_drawn(encoder: dict) -> None:
    s1 = encoder["projector_s1"]
    found, source = init_projector("s1", {"projector_s2": encoder["projector_s2"]}, s1)
    assert source is None and found is s1
