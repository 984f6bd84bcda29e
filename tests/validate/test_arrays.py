import datetime
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.validate import to_batch
from tests.validate.fakes import ALL, make_data, with_nan


def refused(data, message, patch_size=10):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_batch(data, patch_size, ALL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 10, 6, 6)), "'s2' has shape (2, 10, 6, 6); a series has 5 axes (B, T, C, H, W)"),
        (np.zeros((2, 4, 9, 6, 6)), "'s2' has 9 bands"),
        (np.zeros((2, 4, 9, 6, 6)), "expected 10, in this order: B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12"),
        (np.zeros((2, 4, 10, 6, 0)), "it is empty along W"),
        (np.zeros((2, 0, 10, 6, 6)), "it is empty along T"),
        (np.zeros((0, 4, 10, 6, 6)), "it is empty along B"),
        (np.zeros((2, 4, 10, 6, 6), complex), "has dtype complex128; its values must be real numbers"),
        (np.full((2, 4, 10, 6, 6), "1"), "has dtype <U1"),
        ([[[[[1.0]], [[1.0, 2.0]]]]], "not a rectangular array"),
        (
            np.broadcast_to(np.float32(0), (10**6, 10**3, 10, 6, 6)),
            "'s2' has shape (1000000, 1000, 10, 6, 6), 1.34e+03 GiB of float32; expected at most 8 GiB in a call: give",
        ),
    ],
)
def test_values_of_a_series_are_refused(values, message):
    refused(make_data() | {"s2": values}, message)


def test_values_of_an_image_are_refused():
    refused({"aerial": np.zeros((1, 1, 4, 300, 300))}, "an image has 4 axes (B, C, H, W)")
    refused({"aerial": np.zeros((4, 300, 300))}, "a batch of one: values[None]")
    refused({"aerial": np.zeros((1, 3, 300, 300))}, "expected 4, in this order: R, G, B, NIR")


def test_a_context_sensor_has_one_pixel():
    data = make_data("s2", "modis")
    refused(data | {"modis": np.zeros((2, 4, 7, 2, 1))}, "'modis' has 2 x 1 pixels; it is a context sensor")


@pytest.mark.parametrize("dtype", [jnp.float32, np.float16, np.int16, jnp.bfloat16])
def test_values_of_any_real_dtype_become_float32(dtype):
    batch = to_batch(make_data() | {"s2": jnp.ones((2, 4, 10, 6, 6), dtype)}, 10, ALL)
    values = batch.observations["s2"].values
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float32
    assert (values == 1).all()


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        (None, "'s2_dates' is missing: 's2' is a series and needs (2, 4) dates"),
        ([[1, 2, 3]] * 2, "'s2_dates' has shape (2, 3); expected (2, 4): (B, T) as in 's2'"),
        ([1, 2, 3, 4], "'s2_dates' has shape (4,); expected (2, 4)"),
        ([[1, 2, 3, 4], [1, 2]], "'s2_dates' is not a rectangular array"),
        ([[0, 1, 2, -1]] * 2, "'s2_dates' holds -1; dates are days of the year from 0"),
        (
            [[0, 1, 2, 732]] * 2,
            "'s2_dates' holds 732; dates are days of the year from 0 (1 January) on, and at most 731",
        ),
        ([[0, 1, 2, 3.5]] * 2, "'s2_dates' holds 3.5; dates are whole days"),
        ([[0, 1, 2, np.nan]] * 2, "'s2_dates' holds nan; dates are whole days"),
        (np.full((2, 4), "2020-01", "datetime64[M]"), "'s2_dates' holds '2020-01'; dates with a year are days like"),
        ([["2020-02-01", "2020-03", "2020-04-01", "2020-05-01"]] * 2, "'s2_dates' holds '2020-03'"),
        ([["2020-02-01", "2020-02-30", "2020-04-01", "2020-05-01"]] * 2, "'s2_dates' holds"),
        ([["01.02.2020"] * 4] * 2, "'s2_dates' holds '01.02.2020'"),
        (np.full((2, 4), "NaT", "datetime64[s]"), "'s2_dates' holds 'NaT'"),
        ([[None] * 4] * 2, "'s2_dates' holds 'None'"),
        (np.ones((2, 4), bool), "'s2_dates' has dtype bool"),
    ],
)
def test_dates_are_refused(dates, message):
    data = make_data() | {"s2_dates": dates}
    refused(data, message)
    if dates is None:
        del data["s2_dates"]
        refused(data, message)


def test_dates_may_be_lists_and_run_into_the_years_after():
    dates = to_batch(make_data() | {"s2_dates": [[0, 1.0, 366, 731]] * 2}, 10, ALL).observations["s2"].dates
    assert dates.dtype == np.int32
    assert dates.tolist() == [[0, 1, 366, 731]] * 2


DAYS = ["2020-01-01", "2020-12-31", "2021-03-01", "2020-03-01"]


@pytest.mark.parametrize(
    "dates",
    [
        DAYS,
        [f"{day}T23:59:59.9Z" for day in DAYS],
        np.array(DAYS, "datetime64[ns]"),
        np.array(DAYS, "S"),
        [datetime.date.fromisoformat(day) for day in DAYS],
        [datetime.datetime.fromisoformat(day) for day in DAYS],
    ],
)
def test_calendar_days_are_days_of_their_years(dates):
    days = to_batch(make_data() | {"s2_dates": [dates] * 2}, 10, ALL).observations["s2"].dates
    assert days.dtype == np.int32 and days.tolist() == [[0, 365, 59, 60]] * 2


@pytest.mark.parametrize(("padding", "kind"), [("", "U10"), ("NaT", "datetime64[D]"), (None, object)])
def test_padded_calendar_days_may_be_anything(padding, kind):
    dates, mask = np.array([[*DAYS[:3], padding]] * 2, kind), np.array([[True, True, True, False]] * 2)
    days = to_batch(make_data() | {"s2_dates": dates, "s2_date_mask": mask}, 10, ALL).observations["s2"].dates
    assert days.tolist() == [[0, 365, 59, 0]] * 2


def test_dates_under_padding_do_not_matter():
    mask = np.array([[True, True, True, False]] * 2)
    data = make_data() | {"s2_dates": [[5, 6, 7, -999]] * 2, "s2_date_mask": mask}
    assert to_batch(data, 10, ALL).observations["s2"].dates.tolist() == [[5, 6, 7, 0]] * 2


@pytest.mark.parametrize("suffix", ["dates", "date_mask"])
def test_images_have_no_dates(suffix):
    data = make_data("spot", extent=60) | {f"spot_{suffix}": np.ones((2, 4), bool)}
    refused(data, f"spot_{suffix} is given, but 'spot' is an image")


@pytest.mark.parametrize(
    ("key", "mask", "message"),
    [
        ("s2_mask", np.ones((2, 4, 6, 6), np.uint8), "'s2_mask' has dtype uint8; masks are boolean, True where valid"),
        ("s2_mask", np.ones((2, 6, 6), bool), "'s2_mask' has shape (2, 6, 6); expected (2, 4, 6, 6) = (B, T, H, W) or"),
        ("s2_mask", np.ones((2, 4, 3, 6, 6), bool), "(2, 4, 10, 6, 6) = (B, T, C, H, W)"),
        ("s2_date_mask", np.ones((2, 3), bool), "'s2_date_mask' has shape (2, 3); expected (2, 4) = (B, T)"),
        ("s2_date_mask", np.ones((2, 4)), "'s2_date_mask' has dtype float64"),
        ("s2_present", np.ones((3,), bool), "'s2_present' has shape (3,); expected (2,) = (B,)"),
        ("s2_present", [1, 0], "'s2_present' has dtype int64; masks are boolean"),
        ("s2_date_mask", np.array([[True] * 4, [False] * 4]), "s2_date_mask leaves no date of tile 1; mark such tiles"),
    ],
)
def test_masks_are_refused(key, mask, message):
    refused(make_data() | {key: mask}, message)


@pytest.mark.parametrize(
    ("sensor", "shape", "stored"),
    [
        ("s2", (2, 4, 6, 6), (2, 4, 1, 6, 6)),
        ("s2", (2, 4, 1, 6, 6), (2, 4, 1, 6, 6)),
        ("s2", (2, 4, 10, 6, 6), (2, 4, 10, 6, 6)),
        ("spot", (2, 60, 60), (2, 1, 60, 60)),
        ("spot", (2, 3, 60, 60), (2, 3, 60, 60)),
    ],
)
def test_pixel_masks_get_a_channel_axis(sensor, shape, stored):
    data = make_data(sensor) | {f"{sensor}_mask": np.ones(shape, bool)}
    assert to_batch(data, 10, ALL).observations[sensor].pixel_mask.shape == stored


def observed(data, name="s2"):
    return to_batch(data, 10, ALL).observations[name]


@pytest.mark.parametrize("bands", [(), (1,), (10,)])
def test_dates_without_a_valid_pixel_are_padding(bands):
    mask = np.ones((2, 4, *bands, 6, 6), bool)
    whole = observed(make_data() | {"s2_mask": mask})
    assert whole.date_mask is None and whole.present is None
    mask[0, 2] = False
    mask[1, 0, ..., 0, 0] = False
    data = make_data() | {"s2_mask": mask}
    data["s2_dates"][0, 2] = -5
    s2 = observed(data)
    assert s2.date_mask.tolist() == [[True, True, False, True], [True] * 4] and s2.present is None
    assert s2.dates[0, 2] == 0


def test_series_and_images_without_a_valid_pixel_are_absent():
    data = make_data("s2", "spot", "modis")
    data["s2_mask"] = np.arange(2).reshape(2, 1, 1, 1) * np.ones((2, 4, 6, 6)) > 0
    data["spot_mask"] = np.arange(2).reshape(2, 1, 1) * np.ones((2, 60, 60)) == 0
    data["modis_mask"] = np.zeros((2, 4, 1, 1), bool)
    batch = to_batch(data, 10, ALL)
    found = {name: one.present.tolist() for name, one in batch.observations.items()}
    assert found == {"s2": [False, True], "spot": [True, False], "modis": [False, False]}
    # Two masks that have no valid date in common.
    data |= {"s2_date_mask": np.array([[True] * 4, [True, False, False, False]])}
    data["s2_mask"][1, 0] = False
    refused(data, "tile 1 has no image or series: every <sensor>_present is False there, or <sensor>_mask (True where")


def test_a_cloud_mask_upside_down_is_refused():
    refused(make_data() | {"s2_mask": np.zeros((2, 4, 6, 6), bool)}, "<sensor>_mask (True where valid) leaves no pixel")


def test_masked_arrays_of_numpy_keep_their_mask():
    data, rng = make_data(), np.random.default_rng(0)
    hidden, mask = rng.random((2, 4, 10, 6, 6)) > 0.7, rng.random((2, 4, 6, 6)) > 0.3
    masked = np.ma.masked_array(with_nan(data["s2"], hidden), hidden)
    expected = observed(data | {"s2_mask": ~hidden & mask[:, :, None]})
    for values in (masked, list(masked)):
        found = observed(data | {"s2": values, "s2_mask": mask})
        np.testing.assert_array_equal(found.pixel_mask, expected.pixel_mask)
        np.testing.assert_array_equal(found.values, expected.values)
    assert observed(data | {"s2": np.ma.masked_array(data["s2"])}).pixel_mask is None
    dates = np.ma.masked_array(np.ones((2, 4), bool), np.arange(4) + np.zeros((2, 4)) == 1)
    assert observed(data | {"s2_date_mask": dates}).date_mask.tolist() == [[True, False, True, True]] * 2
    refused(data | {"s2_dates": np.ma.masked_less(data["s2_dates"], 400)}, "'s2_dates' is a masked array: mark padding")


def test_tensors_of_torch_are_arrays():
    torch = pytest.importorskip("torch")
    data = make_data()
    values = torch.from_numpy(data["s2"])
    for tensor in (values, values.clone().requires_grad_(), list(values)):
        np.testing.assert_array_equal(observed(data | {"s2": tensor}).values, data["s2"])
    half = observed(data | {"s2": values.to(torch.bfloat16).requires_grad_()}).values
    np.testing.assert_array_equal(half, np.asarray(jnp.asarray(data["s2"], jnp.bfloat16), np.float32))
    companions = {"s2_dates": torch.tensor(data["s2_dates"]), "s2_mask": torch.ones((2, 4, 6, 6), dtype=torch.bool)}
    assert observed(data | companions).dates.tolist() == data["s2_dates"].tolist()
    with pytest.raises(ValueError, match=r"'s2' is a Tensor that numpy cannot read \(.*\); give a numpy array"):
        observed(data | {"s2": values.to_sparse()})


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_values_that_are_traced_are_not_checked(transform):
    data = make_data()
    lead = (1,) if transform is jax.vmap else ()
    values = np.broadcast_to(np.float32(np.nan), (*lead, *data["s2"].shape))
    transform(lambda values: observed(data | {"s2": values}).values.sum())(values)
    with pytest.raises(ValueError, match="'s2' has 9 bands"):
        transform(lambda values: observed(data | {"s2": values[:, :, :9]}).values.sum())(values)


def test_a_traced_batch_is_the_checked_one():
    data, rng = make_data(), np.random.default_rng(0)
    data |= {"s2_mask": rng.random((2, 4, 6, 6)) > 0.6, "s2_date_mask": np.array([[True] * 4, [True] * 3 + [False]])}
    data |= {"s2_present": np.array([True, False])} | make_data("spot", extent=60)
    data["s2_mask"][0, 1] = False
    expected = to_batch(data, 10, ALL)
    found = jax.jit(lambda data: to_batch(data, 10, ALL))(data)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    mixed = jax.jit(lambda values: to_batch(data | {"s2": values}, 10, ALL))(data["s2"])
    jax.tree.map(np.testing.assert_array_equal, mixed, expected)


def test_nan_and_infinite_values_are_counted():
    data = make_data("s2", "spot")
    data["spot"] = with_nan(data["spot"], 0, 1, slice(0, 5), 3)
    data["spot"][1, 0, 0, 0] = -np.inf
    refused(data, "'spot' holds 6 NaN or infinite values (of 21600); mark them in spot_mask (False)")


def test_a_value_beyond_float32_is_infinite():
    data = make_data() | {"s2": np.full((2, 4, 10, 6, 6), 1e300)}
    with np.errstate(over="ignore"):
        refused(data, "'s2' holds 2880 NaN or infinite values")


@pytest.mark.parametrize(
    ("key", "mask", "index"),
    [
        ("s2_mask", np.indices((2, 4, 6, 6)).sum(0) != 0, (0, 0, slice(None), 0, 0)),
        ("s2_date_mask", np.array([[True] * 4, [True, True, True, False]]), (1, 3)),
        ("s2_present", np.array([False, True]), (0,)),
    ],
)
def test_nan_is_fine_where_a_mask_says_invalid(key, mask, index):
    clean = make_data("s2", "s1")
    data = clean | {"s2": with_nan(clean["s2"], *index), key: mask}
    values = to_batch(data, 10, ALL).observations["s2"].values
    expected = clean["s2"].copy()
    expected[index] = 0
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("change", "bands"),
    [
        (lambda v: v * 1000 + 2000, "B2"),
        (lambda v: v + 10.5 * (np.arange(10) == 3)[None, None, :, None, None], "B5"),
        (lambda v: v * np.where(np.arange(10) == 9, 30, 1)[None, None, :, None, None], "B12"),
    ],
)
def test_unnormalised_values_are_warned_about(change, bands):
    data = make_data()
    with pytest.warns(UserWarning, match=rf"'s2' looks unnormalised: {bands} \(mean"):
        to_batch(data | {"s2": change(data["s2"])}, 10, ALL)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng, shape: rng.uniform(0.02, 0.6, shape),  # reflectance
        lambda rng, shape: np.where(rng.random(shape) < 0.005, -0.01, rng.uniform(0, 0.5, shape)),  # of deep shadow
        lambda rng, shape: rng.integers(0, 256, shape) / 255,
    ],
)
def test_values_between_0_and_1_are_warned_about(make):
    data, rng = make_data("s2", "spot"), np.random.default_rng(0)
    message = r"'s2' looks unnormalised: its values lie between 0 and 1.*B12 \(mean 0\."
    with pytest.warns(UserWarning, match=message) as found:
        to_batch(data | {"s2": make(rng, data["s2"].shape)}, 10, ALL)
    assert len(found) == 1
    mask = rng.random((2, 4, 6, 6)) > 0.5
    with pytest.warns(UserWarning, match="mean 0 and standard deviation 1"):
        to_batch(data | {"s2": np.where(mask[:, :, None], make(rng, data["s2"].shape), 7), "s2_mask": mask}, 10, ALL)


@pytest.mark.filterwarnings("error")
def test_standardised_values_are_not_warned_about():
    data = make_data("s2", "aerial")
    to_batch(data | {"s2": np.zeros_like(data["s2"])}, 10, ALL)
    to_batch(data | {"s2": np.abs(data["s2"])}, 10, ALL)  # a bright tile
    data["s2"][0, 0] += 8  # a cloud
    to_batch(data, 10, ALL)


@pytest.mark.filterwarnings("error")
def test_the_warning_looks_at_valid_values_only():
    data = make_data()
    mask = np.random.default_rng(0).random((2, 4, 6, 6)) > 0.5
    data["s2"] = np.where(mask[:, :, None], data["s2"], -9999)
    to_batch(data | {"s2_mask": mask}, 10, ALL)
    few = np.zeros((2, 4, 6, 6), bool)
    few[:, :, 0, 0] = True
    with pytest.warns(UserWarning, match="mean 50"):
        to_batch(data | {"s2": np.full((2, 4, 10, 6, 6), 50.0), "s2_mask": few}, 10, ALL)
