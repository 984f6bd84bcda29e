"""What a mask leaves out has no part in the features, whatever else is in the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax import AnySat
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import encode
from anysat_jax.model.init import init_encoder, init_student
from anysat_jax.model.predictor import Student
from anysat_jax.sensors import GEOPLEX_SENSORS, SENSORS
from anysat_jax.validate import to_batch
from tests.parity.cases import QUICK
from tests.validate.fakes import make_data

TOLERANCE = 1e-4  # rounding reaches 4e-5 under some versions of XLA; what a mask lets through is of order 1
# At smaller widths some norms have one or two channels a group, whose ratio magnifies rounding.
SMALL = dict(dim=64, depth=1, num_heads=2, predictor_heads=2, predictor_depth=1)


@pytest.fixture(scope="module")
def model():
    return with_lively_parameters(AnySat.from_config("tiny", seed=0, **SMALL))


def with_lively_parameters(model):
    """Every leaf away from its start: pad values, tokens and biases that are 0 would hide what a mask lets through."""
    rng = np.random.default_rng(1)
    params = init_encoder(model.config, 0)
    return AnySat(
        model.config, jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32), params)
    )


def rows(data, keep):
    """Some of a batch's tiles."""
    return {key: np.asarray(value)[keep] for key, value in data.items()}


def without(data, *names):
    return {key: value for key, value in data.items() if not key.startswith(names)}


def pad_dates(data, name, count, rng):
    """`count` dates of garbage put among a series' own, and the mask that says so."""
    values, dates = data[name], data[f"{name}_dates"]
    mask = np.ones(dates.shape, bool)
    for _ in range(count):
        place = rng.integers(0, dates.shape[1] + 1)
        values = np.insert(values, place, 50 * rng.standard_normal(values[:, 0].shape), axis=1).astype(np.float32)
        dates = np.insert(dates, place, rng.integers(0, 366), axis=1)
        mask = np.insert(mask, place, False, axis=1)
    return data | {name: values, f"{name}_dates": dates, f"{name}_date_mask": mask}


def pixel_masks_of_ones():
    """Of two tiles of 20 m with four dates: tests that share them, and their output, share their programs."""
    return {"spot_mask": np.ones((2, 20, 20), bool), "s2_mask": np.ones((2, 4, 2, 2), bool)}


def assert_same(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(scale, 1))


@pytest.mark.parametrize("name", ["s2", "s1", "l8"])  # with a norm over dates; without; with another date code
def test_padded_dates_change_nothing(model, name):
    data = make_data(name, extent=(20.0, 30.0), num_dates=3)
    padded = pad_dates(data, name, 2, np.random.default_rng(0))
    assert_same(model(padded, 10, "dense"), model(data, 10, "dense"))


def test_a_short_series_beside_a_long_one(model):
    """Each tile of a padded batch has the features that it has alone: the rest of the batch has no part in them."""
    long = make_data("s2", "modis", batch_size=1, extent=20.0, num_dates=5, seed=1)
    short = make_data("s2", "modis", batch_size=1, extent=20.0, num_dates=2, seed=2)
    rng = np.random.default_rng(3)
    padded = pad_dates(pad_dates(short, "s2", 3, rng), "modis", 3, rng)
    masks = {f"{name}_date_mask": np.ones((1, 5), bool) for name in ("s2", "modis")}
    both = {key: np.concatenate([value, padded[key]]) for key, value in (long | masks).items()}
    together = np.asarray(model(both, 10, "all"))
    assert_same(together[:1], model(long, 10, "all"))
    assert_same(together[1:], model(short, 10, "all"))


@pytest.mark.parametrize("absent", ["spot", "s1", "modis"])
def test_absent_sensors_are_as_left_out(model, absent):
    data = make_data("spot", "s1", "modis", extent=(20.0, 30.0))
    data[absent] = np.where(
        np.arange(2).reshape(-1, *[1] * (data[absent].ndim - 1)) == 0, 40 * data[absent], data[absent]
    )
    mixed = data | {f"{name}_present": np.array([name != absent, True]) for name in ("spot", "s1", "modis")}
    features = np.asarray(model(mixed, 10, "all"))
    assert_same(features[:1], model(without(rows(data, [0]), absent), 10, "all"))
    assert_same(features[1:], model(rows(data, [1]), 10, "all"))


def test_an_absent_sensor_may_be_nothing_but_padding(model):
    data = make_data("spot", "s2", extent=20.0)
    expected = model(without(data, "s2"), 10, "dense")
    data |= {
        "s2_present": np.zeros(2, bool),
        "s2_date_mask": np.zeros((2, 4), bool),
        "s2": np.full_like(data["s2"], np.nan),
    }
    assert_same(model(data, 10, "dense", "spot"), expected)


@pytest.mark.parametrize("per_band", [False, True])
def test_what_stands_under_an_invalid_pixel_does_not_matter(model, per_band):
    rng = np.random.default_rng(0)
    data = make_data("spot", "s2", extent=20.0)
    for name in ("spot", "s2"):
        shape = data[name].shape if per_band else data[name].shape[:-3] + data[name].shape[-2:]
        data[f"{name}_mask"] = rng.random(shape) > 0.4
    other = dict(data)
    for name in ("spot", "s2"):
        mask = data[f"{name}_mask"] if per_band else data[f"{name}_mask"][..., None, :, :]
        other[name] = np.where(mask, data[name], np.nan)
    features = np.asarray(model(data, 10, "dense", "s2"))
    np.testing.assert_array_equal(model(other, 10, "dense", "s2"), features)
    unmasked = model({key: value for key, value in data.items() if not key.endswith("_mask")}, 10, "dense", "s2")
    assert np.abs(unmasked - features).max() > 1e-3  # the mask does matter


def test_dates_and_images_without_a_valid_pixel_are_as_left_out(model):
    """By the pixels' mask as by those of dates and sensors: the day of such a date, and the sensor, have no part."""
    data = make_data("spot", "s2", extent=20.0)
    features = functools.partial(model, patch_size=10, output="dense", output_modality="s2")
    clear = pixel_masks_of_ones()
    clear["spot_mask"][1] = clear["s2_mask"][:, 1] = False
    masked = np.asarray(features(data | clear))
    left_out = {"spot_present": np.array([True, False]), "s2_date_mask": np.array([[True, False, True, True]] * 2)}
    np.testing.assert_array_equal(features(data | clear | left_out), masked)
    other = data | {"s2_dates": data["s2_dates"] + np.array([[0, 77, 0, 0]])}
    np.testing.assert_array_equal(features(other | clear), masked)
    assert_same(masked, features(data | left_out))


def test_a_patch_without_a_valid_pixel_has_no_token():
    """Neither in the features nor in what the student encodes: the learned value of invalid pixels has no part."""
    config = ModelConfig.from_preset("tiny", **SMALL, sensors=("s2",), dropout=False)
    student, data = init_student(config, 0), make_data("s2", extent=20.0, num_dates=2)
    clear = np.ones((2, 2, 2, 2), bool)
    clear[1, :, 0, 1] = False  # the second patch of the second tile
    batch = to_batch(data | {"s2_mask": clear}, 10, ("s2",))
    context_index, target_index = jnp.array([[1, 3], [1, 3]]), jnp.array([[[0], [0]]])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(pad_value):
        projector = student["encoder"]["projector_s2"] | {"pad_value": pad_value}
        params = student | {"encoder": student["encoder"] | {"projector_s2": projector}}
        seen = Student(config).apply({"params": params}, batch, context_index, target_index, deterministic=True)
        return encode(config, params["encoder"], batch, "all"), seen.context, seen.embedded.patches["s2"]

    pad_value = student["encoder"]["projector_s2"]["pad_value"]
    (features, context, patches), (*others, changed) = run(pad_value), run(pad_value + 5)
    np.testing.assert_array_equal(others[0], features)
    np.testing.assert_array_equal(others[1], context)
    assert np.isfinite(features).all() and np.isfinite(context).all()
    moved = np.abs(changed - patches).max(axis=-1) > 0
    np.testing.assert_array_equal(moved, [[False] * 4, [False, True, False, False]])


def test_a_mask_of_ones_is_no_mask(model):
    data = make_data("spot", "s2", extent=20.0)
    masks = {f"{name}_present": np.ones(2, bool) for name in ("spot", "s2")}
    masks |= {"s2_date_mask": np.ones((2, 4), bool)} | pixel_masks_of_ones()
    assert_same(model(data | masks, 10, "dense", "s2"), model(data, 10, "dense", "s2"))


def test_gradients_are_finite_where_nothing_is_valid(model):
    data = make_data("spot", "s2", "modis", extent=10.0)
    data |= {"s2_present": np.array([True, False]), "s2_date_mask": np.array([[True] * 4, [False] * 4])}
    data |= {
        "modis_present": np.array([False, False]),
        "spot_mask": np.arange(2)[:, None, None] > np.zeros((2, 10, 10)),
    }
    batch = to_batch(data, 10, GEOPLEX_SENSORS)
    assert batch.observations["spot"].present.tolist() == [False, True]
    # In training windows of tiles may hold nothing at all.
    batch.observations["spot"].present[:] = False
    batch = jax.device_put(batch)

    def loss(params):
        return jnp.square(encode(model.config, params, batch, "all")).sum()

    gradients = jax.jit(jax.grad(loss))(model.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_change_stays_in_its_place_on_a_tile_that_is_not_square(model):
    """Sub-patch features are those of the sub-patch that they stand at: raster order, rows first."""
    data = make_data("spot", batch_size=1, extent=(60.0, 120.0))
    before = np.asarray(model(data, 30, "dense"))
    data["spot"][0, :, 40:50, 80:90] += 3  # sub-patch (4, 8), in patch (1, 2)
    change = np.abs(np.asarray(model(data, 30, "dense")) - before)[0, :, :, model.config.dim :].max(-1)
    assert change.shape == (6, 12)
    assert np.unravel_index(change.argmax(), change.shape) == (4, 8)
    inside = np.zeros(change.shape, bool)
    inside[3:6, 6:9] = True
    assert change[~inside].max() < TOLERANCE
    assert change[inside].min() > TOLERANCE


def test_all_eleven_sensors_at_once(model):
    """Some tiles have three of the sensors, as if the other eight had not been given."""
    data = make_data(*GEOPLEX_SENSORS, extent=120.0, num_dates=2)
    assert data["aerial"].shape[-1] == 600
    absent = set(GEOPLEX_SENSORS) - {"aerial", "s1-asc", "modis"}  # an image, a series and a context sensor stay
    data |= {f"{name}_present": np.array([True, name not in absent]) for name in GEOPLEX_SENSORS}
    features = np.asarray(model(data, 30, "all"))
    assert features.shape == (2, 1 + 4 * 4, SMALL["dim"])
    assert np.isfinite(features).all()
    rest = {name for name in GEOPLEX_SENSORS if name not in absent}
    few = {key: value[1:] for key, value in data.items() if key.removesuffix("_dates") in rest}
    assert_same(features[1:], model(few, 30, "all"))


@pytest.mark.parametrize("name", ["aerial", "s2", "alos"])
def test_tiles_of_one_subpatch(model, name):
    side = SENSORS[name].subpatch_metres
    features = model(make_data(name, extent=side, num_dates=1), side, "dense")
    assert features.shape == (2, 1, 1, 2 * SMALL["dim"])
    assert jnp.isfinite(features).all()
