"""Stored features: what int8 and float16 cost, what nodata is, and components that do not depend on luck."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anysat_jax.scenes.encoding import INT8_NODATA, Encoding, fit_encoding

FEATURES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(1, 6)),
    elements=st.floats(-1e3, 1e3, width=32, allow_nan=False, allow_subnormal=False),
)


def features(seed=0, rows=2000, columns=12):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(rows, columns)) @ generator.normal(size=(columns, columns))).astype(np.float32)


def published(stored):
    """Value of a number of Satellite Embedding V1: developers.google.com/earth-engine/guides/aef_on_gcs_readme."""
    return (stored.astype(np.float64) / 127.5) ** 2 * np.sign(stored)


@settings(max_examples=200, deadline=None)
@given(FEATURES)
def test_int8_is_the_published_scheme_times_one_scale_and_errs_by_at_most_half_a_step(values):
    encoding = fit_encoding(values, "int8")
    stored = encoding.encode(values)
    assert stored.dtype == np.int8 and stored.min() > INT8_NODATA  # no value is nodata
    decoded = encoding.decode(stored)
    np.testing.assert_allclose(decoded, published(stored) * encoding.scale, rtol=1e-6, atol=1e-44)
    inside = np.abs(values) <= encoding.scale
    # Half a step between the roots; the last step, of 127.5, is stored as 127.
    root = np.sqrt(np.abs(values) / encoding.scale) * 127.5
    bound = (np.maximum(root, 0.5) + 0.25) / 127.5**2 * encoding.scale
    assert np.all(np.abs(decoded - values)[inside] <= bound[inside] * (1 + 1e-4) + 1e-44)
    assert np.all(np.sign(decoded) * np.sign(values) >= 0)
    assert encoding.clipped == pytest.approx(np.mean(~inside))


@settings(max_examples=100, deadline=None)
@given(FEATURES, st.sampled_from(["float32", "float16", "int8"]), st.data())
def test_rows_without_features_are_nodata_in_every_component_and_no_others(values, dtype, data):
    encoding = fit_encoding(values, dtype)
    missing = data.draw(hnp.arrays(bool, len(values)))
    holed = values.copy()
    holed[missing, 0] = np.nan
    stored = encoding.encode(holed)
    nodata = np.isnan(stored) if np.isnan(encoding.nodata) else stored == encoding.nodata
    np.testing.assert_array_equal(nodata, np.broadcast_to(missing[:, None], values.shape))
    np.testing.assert_array_equal(np.isnan(encoding.decode(stored)), nodata)
    if dtype == "float32":
        np.testing.assert_array_equal(encoding.decode(stored)[~missing], values[~missing])
    elif dtype == "float16":
        np.testing.assert_allclose(encoding.decode(stored)[~missing], values[~missing], rtol=2**-11, atol=1e-7)


def test_zero_is_a_value_and_a_sample_of_zeros_has_a_scale():
    encoding = fit_encoding(np.zeros((5, 3), np.float32), "int8")
    assert np.all(encoding.encode(np.zeros((1, 3), np.float32)) == 0)
    assert np.all(encoding.decode(np.zeros((1, 3), np.int8)) == 0)


def test_the_scale_is_that_of_the_widest_component_not_of_an_outlier():
    values = features()
    values[:, 0] *= 50  # as the first component of a PCA
    values[7, 3] = 1e6
    encoding = fit_encoding(values, "int8")
    assert encoding.scale == pytest.approx(np.percentile(np.abs(values[:, 0]), 99.9))
    assert 0 < encoding.clipped < 2e-4


def test_float16_has_no_infinite_values():
    stored = Encoding("float16").encode(np.array([[1e6, -1e6]], np.float32))
    np.testing.assert_array_equal(stored, [[65504, -65504]])


def test_components_are_those_of_largest_variance_whatever_the_order_and_sign_of_the_sample():
    values = features()
    encoding = fit_encoding(values, "float32", 4, pca=True)
    _, singular, axes = np.linalg.svd(values.astype(np.float64) - values.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(encoding.axes @ axes[:4].T), np.eye(4), atol=1e-4)
    stored = encoding.encode(values)
    np.testing.assert_allclose(stored.var(0), singular[:4] ** 2 / len(values), rtol=1e-3)
    np.testing.assert_allclose(stored.mean(0), 0, atol=1e-3)
    shuffled = fit_encoding(values[::-1].copy(), "float32", 4, pca=True)
    np.testing.assert_allclose(shuffled.axes, encoding.axes, atol=1e-5)
    mirrored = fit_encoding(-values, "float32", 4, pca=True)
    np.testing.assert_allclose(mirrored.axes, encoding.axes, atol=1e-5)


def test_first_components_are_the_first_features_and_maps_keep_their_shape():
    values = features().reshape(40, 50, 12)
    stored = fit_encoding(values.reshape(-1, 12), "float32", 3).encode(values)
    np.testing.assert_array_equal(stored, values[..., :3])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pca", [False, True])
def test_json_gives_the_same_numbers(dtype, pca):
    values = features()
    encoding = fit_encoding(values, dtype, 5, pca)
    text = encoding.to_json()
    again = Encoding.from_json(text)
    np.testing.assert_array_equal(again.encode(values), encoding.encode(values))
    assert again.to_json() == text and fit_encoding(values, dtype, 5, pca).to_json() == text


def test_what_is_not_an_encoding_is_refused():
    whole = json.loads(fit_encoding(features(), "int8").to_json())
    for change in ({"value": "scale * q"}, {"scale": 0}, {"dtype": "uint8"}, {"unknown": 1}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match=r"encoding|stored as"):
            Encoding.from_json(json.dumps(whole | change))
    for text in ("", "[]", "{", "1"):
        with pytest.raises(ValueError, match="not an encoding"):
            Encoding.from_json(text)
    for stored, dtype in ((np.zeros(3, np.int8), "float32"), (np.zeros(3, np.float32), "int8")):
        with pytest.raises(ValueError, match="read them unscaled"):
            Encoding(dtype).decode(stored)


def test_samples_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match="no pixel of the scene is valid"):
        fit_encoding(np.full((4, 3), np.nan, np.float32), "int8")
    with pytest.raises(ValueError, match="13 components were asked for, and the features have 12"):
        fit_encoding(features(), components=13)
    with pytest.raises(ValueError, match="needs more than 4 valid pixels"):
        fit_encoding(features()[:4], components=4, pca=True)
