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
IMAGES = ("spot", "s2")
# With a norm over dates; without; with another date code; of the whole tile.
SERIES = ("s2", "s1", "l8", "modis")


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


def masks_of_ones():
    """Of two tiles of 20 m with four dates: tests that give all of them share a program."""
    masks = {"spot_mask": np.ones((2, 20, 20), bool), "s2_mask": np.ones((2, 4, 2, 2), bool)}
    return masks | {"s2_date_mask": np.ones((2, 4), bool)} | {f"{name}_present": np.ones(2, bool) for name in IMAGES}


def assert_same(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(scale, 1))


def test_a_short_series_beside_a_long_one(model):
    """Each tile of a padded batch has the features that it has alone: neither padded dates nor the rest of the batch
    have a part in them.
    """
    long = make_data(*SERIES, batch_size=1, extent=(20.0, 30.0), num_dates=5, seed=1)
    short = make_data(*SERIES, batch_size=1, extent=(20.0, 30.0), num_dates=2, seed=2)
    rng = np.random.default_rng(3)
    padded = functools.reduce(lambda data, name: pad_dates(data, name, 3, rng), SERIES, short)
    full = long | {f"{name}_date_mask": np.ones((1, 5), bool) for name in SERIES}
    together, alone = (
        np.asarray(model({key: np.concatenate([full[key], second[key]]) for key in full}, 10, "all"))
        for second in (padded, full)
    )
    assert_same(together[0], alone[0])
    assert_same(together[1:], model(short, 10, "all"))


def test_absent_sensors_are_as_left_out(model):
    """Of all eleven sensors at once: images, series and the context sensor."""
    data = make_data(*GEOPLEX_SENSORS, extent=60.0, num_dates=2)
    assert data["aerial"].shape[-1] == 300
    data["s2_date_mask"] = np.ones((2, 2), bool)

    def features(*sensors):
        """Of tiles that have some of the sensors each; what stands in place of the others is far from any value."""
        given = dict(data)
        for name in GEOPLEX_SENSORS:
            present = np.array([name in of_tile for of_tile in sensors])
            factor = np.where(present, 1, 40).reshape(-1, *[1] * (data[name].ndim - 1))
            given |= {f"{name}_present": present, name: (factor * data[name]).astype(np.float32)}
        if not given["s2_present"].any():  # as well nothing but padding
            given |= {"s2": np.full_like(data["s2"], np.nan), "s2_date_mask": np.zeros((2, 2), bool)}
        return np.asarray(model(given, 30, "all"))

    def alone(tile, sensors):
        few = {key: value[tile : tile + 1] for key, value in data.items() if key.removesuffix("_dates") in sensors}
        return model(few, 30, "all")

    everything = features(GEOPLEX_SENSORS, GEOPLEX_SENSORS)
    assert everything.shape == (2, 1 + 2 * 2, SMALL["dim"])
    assert np.isfinite(everything).all()
    first, second = ("spot", "s1"), ("aerial", "s1-asc", "modis")  # without the context sensor, and with it
    few = features(first, second)
    assert_same(few[:1], alone(0, first))
    assert_same(few[1:], alone(1, second))
    # A tile with all of them has no part of those that the other one lacks.
    assert_same(features(GEOPLEX_SENSORS, second)[0], everything[0])
    assert np.abs(everything - few).max() > 0.1


@pytest.mark.parametrize("per_band", [False, True])
def test_what_stands_under_an_invalid_pixel_does_not_matter(model, per_band):
    rng = np.random.default_rng(0)
    data = make_data("spot", "s2", extent=20.0)
    for name in ("spot", "s2"):
        shape = data[name].shape if per_band else data[name].shape[:-3] + data[name].shape[-2:]
        data[f"{name}_mask"] = rng.random(shape) > 0.4
    if not per_band:
        data = masks_of_ones() | data
    other = dict(data)
    for name in ("spot", "s2"):
        mask = data[f"{name}_mask"] if per_band else data[f"{name}_mask"][..., None, :, :]
        other[name] = np.where(mask, data[name], np.nan)
    features = np.asarray(model(data, 10, "dense", "s2"))
    np.testing.assert_array_equal(model(other, 10, "dense", "s2"), features)
    unmasked = model(make_data("spot", "s2", extent=20.0), 10, "dense", "s2")
    assert np.abs(unmasked - features).max() > 1e-3  # the mask does matter


def test_dates_and_images_without_a_valid_pixel_are_as_left_out(model):
    """By the pixels' mask as by those of dates and sensors: the day of such a date, and the sensor, have no part."""
    data = make_data("spot", "s2", extent=20.0)
    features = functools.partial(model, patch_size=10, output="dense", output_modality="s2")
    clear = masks_of_ones()
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
    assert_same(model(data | masks_of_ones(), 10, "dense", "s2"), model(data, 10, "dense", "s2"))


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


@pytest.mark.parametrize("name", ["aerial", "s2", "alos"])
def test_tiles_of_one_subpatch(model, name):
    side = SENSORS[name].subpatch_metres
    features = model(make_data(name, extent=side, num_dates=1), side, "dense")
    assert features.shape == (2, 1, 1, 2 * SMALL["dim"])
    assert jnp.isfinite(features).all()
