"""Networks: heads, features and dropout."""

import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.downstream.network import (
    Head,
    HeadConfig,
    NetworkConfig,
    apply_head,
    apply_network,
    head_shapes,
    init_head,
    network_features,
    shuffle_pixels,
)
from anysat_jax.downstream.trainable import dropping_sensors, split
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import count_parameters, init_encoder, student_shapes
from tests.jaxprs import equations

DIM = 8
FEATURES = np.random.default_rng(0).standard_normal((2, 3, 2, 2 * DIM), dtype=np.float32)


@pytest.fixture
def flair(task_of):
    """Sub-patches of 10 x 10 label pixels, 13 classes."""
    return task_of("flair", "dense")


def run_head(head: Head, features: np.ndarray) -> np.ndarray:
    params = head.init(jax.random.key(0), features)
    return np.asarray(head.apply(params, features))


def test_shuffled_outputs_are_laid_out_row_by_row():
    x = np.arange(2 * 3 * 2 * 4 * 5).reshape(2, 3, 2, 4 * 5)
    pixels = np.asarray(shuffle_pixels(jnp.asarray(x), 2))
    assert pixels.shape == (2, 6, 4, 5)
    for i, j, row, column in np.ndindex(3, 2, 2, 2):
        first = (row * 2 + column) * 5
        np.testing.assert_array_equal(pixels[:, 2 * i + row, 2 * j + column], x[:, i, j, first : first + 5])


def test_a_sub_patch_answers_for_its_own_pixels(flair):
    head = Head(HeadConfig(input="dense"), flair)
    changed = FEATURES.copy()
    changed[0, 1, 0] = 3 * FEATURES[1, 2, 1]
    params = head.init(jax.random.key(0), FEATURES)
    before, after = (np.asarray(head.apply(params, features)) for features in (FEATURES, changed))
    assert before.shape == (2, 30, 20, flair.num_outputs)
    differs = (before != after).all(axis=-1)
    expected = np.zeros_like(differs)
    expected[0, 10:20, 0:10] = True
    np.testing.assert_array_equal(differs, expected)
    # The pixels of a sub-patch have outputs of their own.
    assert np.unique(before[0, :10, :10].reshape(100, -1), axis=0).shape[0] == 100


def test_interpolation_keeps_constants_and_centres(flair):
    head = Head(HeadConfig(input="dense", upsample="bilinear"), flair)
    constant = np.broadcast_to(FEATURES[:1, :1, :1], FEATURES.shape)
    logits = run_head(head, constant)
    assert logits.shape == (2, 30, 20, flair.num_outputs)
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:1, :1, :1], logits.shape), atol=1e-5)
    # An odd upsampling has pixels right at the sub-patches' centres.
    fine = dataclasses.replace(flair, metres=flair.metres * 10 / 3)
    coarse = dataclasses.replace(flair, metres=flair.metres * 10)
    at_centres = run_head(Head(head.head, fine), FEATURES)[:, 1::3, 1::3]
    np.testing.assert_allclose(at_centres, run_head(Head(head.head, coarse), FEATURES), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_tile_heads_give_float32_logits(task_of, kind):
    task = task_of("timesen2crop", "tile")
    head = Head(HeadConfig(kind=kind, hidden=4), task, jnp.bfloat16)
    params = head.init(jax.random.key(0), FEATURES[:, 0, 0])
    assert ("hidden" in params["params"]) == (kind == "mlp")
    logits = head.apply(params, FEATURES[:, 0, 0])
    assert (logits.shape, logits.dtype) == ((2, 16), jnp.float32)


def test_a_regression_has_one_output(task_of):
    assert run_head(Head(HeadConfig(input="dense"), task_of("biomassters", "dense")), FEATURES).shape == (2, 3, 2, 1)


def test_a_head_survives_json():
    head = HeadConfig(kind="mlp", input="mean", hidden=7, upsample="bilinear")
    assert HeadConfig(**json.loads(json.dumps(dataclasses.asdict(head)))) == head


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="conv"), "head.kind = 'conv' must be 'linear' or 'mlp'"),
        (dict(input="patch"), "head.input = 'patch' must be 'tile' or 'dense' or 'mean'"),
        (dict(upsample="nearest"), "head.upsample = 'nearest'"),
        (dict(hidden=0), "head.hidden = 0 must be above 0"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**fields)


MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_heads=2, sensors=("aerial-flair", "s1", "s2"))
run = jax.jit(apply_network, static_argnames=("network", "training", "drop_path"))
features_of = jax.jit(network_features, static_argnames="network")


@functools.cache
def encoder_params() -> dict:
    return init_encoder(MODEL, 0)


def params_of(network: NetworkConfig) -> dict:
    return {"encoder": encoder_params(), "head": init_head(network, 0)}


@pytest.fixture(scope="module")
def segmentation(task_of) -> NetworkConfig:
    return NetworkConfig(MODEL, HeadConfig(input="dense"), task_of("sen1floods11", "dense"))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return fake_batch(("s1", "s2"), extent=(20.0, 40.0), patch_size=20.0, num_dates=2)


@pytest.fixture(scope="module")
def still(task_of, segmentation, batch) -> dict[str, np.ndarray]:
    """What networks compute of a batch without dropping: one program, which shares the work between them."""
    mean = NetworkConfig(MODEL, HeadConfig(input="mean"), task_of("so2sat", "tile"))

    @jax.jit
    def apply(params, batch):
        encoder = {"encoder": params["encoder"]}
        return {
            "features": network_features(segmentation, encoder, batch),
            "mean": network_features(mean, encoder, batch),
            "logits": apply_network(segmentation, params, batch),
        }

    return jax.device_get(apply(params_of(segmentation), batch))


@pytest.mark.parametrize(
    ("name", "level", "read", "parameters"),
    [
        ("sickle", "dense", "dense", 6_146),
        ("bradd_s1ts", "dense", "dense", 6_146),
        ("sen1floods11", "dense", "dense", 6_146),
        ("timesen2crop", "tile", "tile", 13_840),
        ("so2sat", "tile", "mean", 29_201),
    ],
)
def test_probes_have_the_papers_number_of_parameters(task_of, name, level, read, parameters):
    network = NetworkConfig(ModelConfig(), HeadConfig(input=read), task_of(name, level))
    assert count_parameters(head_shapes(network)) == parameters


def test_a_probe_of_a_new_sensor_has_three_million_parameters(task_of):
    model = ModelConfig(sensors=("hls", "s2"))
    network = NetworkConfig(model, HeadConfig(input="dense"), task_of("hls_burn_scars", "dense"))
    trainable, _ = split(
        {"encoder": student_shapes(network.model)["encoder"], "head": head_shapes(network)},
        "projector",
        ("hls",),
        ("hls",),
    )
    assert round(count_parameters(trainable) / 1e6) == 3
    assert set(trainable["encoder"]) == {"projector_hls"}
    assert count_parameters(trainable["head"]) == 6_146


def test_fresh_heads_are_a_function_of_the_seed(segmentation):
    first, again, other = (init_head(segmentation, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["out"]["kernel"]
    assert not np.array_equal(kernel, other["out"]["kernel"])
    assert kernel.dtype == np.float32 and 0 < np.abs(kernel).mean() < 0.1 / np.sqrt(64)
    assert not first["out"]["bias"].any() and (first["norm"]["scale"] == 1).all()
    assert jax.tree.map(np.shape, first) == jax.tree.map(lambda leaf: leaf.shape, head_shapes(segmentation))


def test_a_head_on_features_is_the_network(segmentation, still):
    features, logits = still["features"], still["logits"]
    assert (features.shape, features.dtype) == ((2, 2, 4, 64), np.float32)
    assert (logits.shape, logits.dtype) == ((2, 2, 4, 2), np.float32)
    head = params_of(segmentation)["head"]
    np.testing.assert_allclose(logits, apply_head(segmentation, head, features), atol=1e-5)


def test_aerial_sub_patches_become_label_pixels(task_of):
    network = NetworkConfig(MODEL, HeadConfig(input="dense"), task_of("flair", "dense"))
    tiles = fake_batch(("aerial-flair", "s2"), batch_size=1, extent=20.0, patch_size=10.0, num_dates=1)
    logits = jax.eval_shape(functools.partial(apply_network, network), params_of(network), tiles)
    assert logits.shape == (1, 100, 100, network.task.num_outputs)


def test_the_mean_is_over_the_finest_sensors_sub_patches(still):
    dense = still["features"]  # of s2, which comes before s1
    np.testing.assert_allclose(still["mean"], dense.mean(axis=(1, 2)), atol=1e-5)


def test_padding_a_single_date_changes_nothing(task_of):
    network = NetworkConfig(MODEL, HeadConfig(), task_of("timesen2crop", "tile"))
    single = fake_batch(("s2",), extent=10.0, num_dates=1)
    several = fake_batch(("s2",), extent=10.0, num_dates=3, seed=1)
    one, three = single.observations["s2"], several.observations["s2"]
    values, mask = np.array(three.values), np.zeros((2, 3), bool)
    values[:, 1], mask[:, 1] = one.values[:, 0], True
    dates = np.broadcast_to(one.dates, (2, 3))
    padded = several.replace(observations={"s2": three.replace(values=values, dates=dates, date_mask=mask)})
    of_one, of_padded, of_three = (run(network, params_of(network), tiles) for tiles in (single, padded, several))
    assert of_one.shape == (2, 16)
    np.testing.assert_allclose(of_padded, of_one, atol=1e-5)
    assert not np.allclose(of_three, of_one, atol=1e-3)


def test_a_tile_without_the_sensor_has_zeros_for_its_sub_patches(segmentation, batch, still):
    encoder = {"encoder": encoder_params()}
    optical = batch.observations["s2"].replace(present=np.array([True, False]))
    features = features_of(segmentation, encoder, batch.replace(observations={**batch.observations, "s2": optical}))
    assert not np.asarray(features[1, ..., 32:]).any()
    assert np.asarray(features[1, ..., :32]).any(axis=-1).all() and np.isfinite(features).all()
    np.testing.assert_allclose(features[0], still["features"][0], atol=1e-5)


@pytest.fixture(scope="module")
def traced(segmentation, batch) -> Callable[..., ClosedJaxpr]:
    """The program of a network, which states what is drawn and all that is done with it."""

    def trace(*dropping) -> ClosedJaxpr:
        def apply(params):
            return apply_network(segmentation, params, batch, *dropping)

        return jax.make_jaxpr(apply)(params_of(segmentation))

    return trace


def test_dropping_needs_an_rng(traced, segmentation, batch, still):
    assert str(traced(None, ("s1",), 0.5)) == str(traced())
    params = params_of(segmentation)
    dropped = [run(segmentation, params, batch, jax.random.key(seed), (), 0.5) for seed in (0, 0, 1, 2)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert len(np.unique(dropped, axis=0)) > 1
    for logits in dropped:  # a branch is left out or doubled, never as it was
        assert np.abs(logits - still["logits"]).max(axis=(1, 2, 3)).min() > 1e-4


def test_a_frozen_projector_never_drops(traced, segmentation, batch, still):
    def sensors(mode, new_sensors=()):
        return tuple(dropping_sensors(mode, batch.sensors, new_sensors))

    def drawn(program):
        return sum(equation.primitive.name == "random_bits" for equation in equations(program.jaxpr))

    rng = jax.random.key(0)
    assert [sensors(mode) for mode in ("probe", "last_block")] == [()] * 2
    assert str(traced(rng, ())) == str(traced())
    assert 0 < drawn(traced(rng, sensors("projector", ("s1",)))) < drawn(traced(rng, sensors("finetune")))
    params = params_of(segmentation)
    trained = run(segmentation, params, batch, rng, sensors("projector", ("s1",)))
    assert not np.allclose(trained, still["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "level", "head", "message"),
    [
        ("sickle", "dense", HeadConfig(), "head.input = 'tile' does not fit task.level = 'dense', which wants 'dense'"),
        ("planted", "tile", HeadConfig(input="dense"), "task.level = 'tile', which wants 'tile' or 'mean'"),
        ("spacenet7", "dense", HeadConfig(input="dense"), "task.sensor = 'planet' has no projector .* aerial-flair"),
    ],
)
def test_heads_that_do_not_fit_the_task_are_refused(task_of, name, level, head, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(MODEL, head, task_of(name, level))
