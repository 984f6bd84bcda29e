"""Features of whatever is handed over are those of its plain form: each tile by itself, without what a mask leaves out,
or the input is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax import AnySat
from anysat_jax.model.init import init_encoder
from tests.validate.fakes import make_data

CASES, TILES, DATES = 500, 2, 2
TOLERANCE = 1e-4  # of rounding; what a mask lets through is of order 1
HIDDEN = {"NaN": np.nan, "infinite": -np.inf, "large": 6e4}
CONTAINERS = {
    "float32": np.asarray,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "column-major": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x[None], (1, *x.shape))[0],
    "jax": jnp.asarray,
    "list": lambda x: x.tolist(),
}


@pytest.fixture(scope="module")
def model():
    """Every leaf away from its start: pad values and tokens of 0 would hide what a mask lets through."""
    small = dict(dim=128, depth=1, num_heads=2, predictor_heads=2, predictor_depth=1, sensors=("spot", "s2"))
    config, rng = AnySat.from_config("tiny", **small).config, np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), init_encoder(config, 0))
    return AnySat(config, noisy)


def draw_masks(rng, values):
    """Masks of pixels, dates and tiles; each leaves out much, and that of pixels often all of a date or an image."""
    pixels = rng.random(values.shape) > 0.3
    pixels[rng.random(values.shape[:-3]) < 0.25] = False
    return pixels, rng.random((TILES, DATES)) > 0.15, rng.random(TILES) > 0.15


def handed_over(data, masks, container, hidden, masked_array):
    """The input as a person may give it, with `hidden` where the masks are False."""
    given = {}
    for name, (pixels, dates, present) in masks.items():
        valid = pixels & present.reshape(-1, *[1] * (pixels.ndim - 1))
        if name == "s2":
            valid &= dates[:, :, None, None, None]
            days = np.where(dates & present[:, None], data["s2_dates"], -5)
            given |= {"s2_dates": days.tolist() if container == "list" else days, "s2_date_mask": dates}
        values = np.where(valid, data[name], np.float32(HIDDEN[hidden]))
        given |= {name: CONTAINERS[container](values), f"{name}_present": present, f"{name}_mask": pixels}
        if masked_array:
            # A part of the mask in the array, the rest beside it.
            given[name] = np.ma.masked_array(values, ~pixels & (np.arange(pixels.shape[-1]) > 0))
            given[f"{name}_mask"] = pixels | (np.arange(pixels.shape[-1]) > 0)
    return given


def plain_tile(data, masks, tile):
    """The tile alone, without masked dates and sensors; empty where nothing is left."""
    plain = {}
    for name, (pixels, dates, present) in masks.items():
        kept = dates[tile] & pixels[tile].any(axis=(1, 2, 3)) if name == "s2" else np.array([pixels[tile].any()])
        if not (present[tile] and kept.any()):
            continue
        kept = kept if name == "s2" else ...
        mask = pixels[tile][kept]
        plain |= {name: np.where(mask, data[name][tile][kept], 0)[None], f"{name}_mask": mask[None]}
        if name == "s2":
            plain["s2_dates"] = data["s2_dates"][tile][kept][None]
    return plain


@settings(max_examples=CASES, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    container=st.sampled_from(sorted(CONTAINERS)),
    hidden=st.sampled_from(sorted(HIDDEN)),
    masked_array=st.booleans(),
)
def test_features_are_those_of_the_plain_form(model, seed, container, hidden, masked_array):
    rng = np.random.default_rng(seed)
    data = make_data("spot", "s2", batch_size=TILES, extent=20.0, num_dates=DATES, seed=seed)
    data |= {name: data[name].astype(np.float16).astype(np.float32) for name in ("spot", "s2")}  # what float16 holds
    masks = {name: draw_masks(rng, data[name]) for name in ("spot", "s2")}
    given = handed_over(data, masks, container, hidden, masked_array)
    plain = [plain_tile(data, masks, tile) for tile in range(TILES)]
    _, dates, present = masks["s2"]
    if not all(plain) or (present & ~dates.any(axis=1)).any():
        with pytest.raises(ValueError, match=r"has no image or series|s2_date_mask leaves no date of tile"):
            model(given, 10, "all")
        return
    features = np.asarray(model(given, 10, "all"))
    for tile, alone in enumerate(plain):
        expected = np.asarray(model(alone, 10, "all"))[0]
        scale = max(np.abs(expected).max(), 1)
        np.testing.assert_allclose(features[tile], expected, rtol=0, atol=TOLERANCE * scale)
