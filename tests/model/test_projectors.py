"""Series projectors: groups of their norms by the model's width, what a narrow model can see, and blocks of pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.model import projectors
from anysat_jax.model.config import FULL_GROUPS, ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.model.projectors import make_projector, num_groups
from anysat_jax.sensors import get_sensor
from tests.parity.cases import QUICK


@pytest.mark.parametrize(("published", "step"), [(4, 4), (16, 32)])  # of dim / 8 channels, and of dim
def test_groups_have_three_channels_or_more_and_divide_them(published, step):
    for channels in range(step, 2048, step):
        groups = num_groups("width", published, channels)
        assert channels % groups == 0 and channels // groups >= 3
        # The most that do: twice as many would be above the published number, or too small.
        assert groups == published or channels // (2 * groups) < 3
        assert num_groups("published", published, channels) == published


def test_from_the_full_width_on_the_groups_are_the_published_ones():
    for dim in range(FULL_GROUPS, 2048, 32):
        assert [num_groups("width", 4, channels) for channels in (dim // 8, dim // 2, dim, 2 * dim)] == [4] * 4
        assert num_groups("width", 16, dim) == 16
    assert num_groups("width", 4, (FULL_GROUPS - 32) // 8) == 2
    assert num_groups("width", 4, 1) == 1


def test_a_config_states_which_of_the_two_hold():
    def published(dim, norm_groups):
        return ModelConfig.from_preset("tiny", dim=dim, norm_groups=norm_groups).norm_groups == "published"

    assert [published(dim, "width") for dim in (32, 64, 96, 256)] == [False, False, True, True]
    assert all(published(dim, "published") for dim in (32, 64, 96, 256))


def tokens_and_gradient(name, dim, norm_groups):
    """Returns a projector's tokens of a series, another one and the first one times 3; and the gradient of the tokens'
    distances with regard to the values.
    """
    config = ModelConfig.from_preset("tiny", dim=dim, sensors=(name,), norm_groups=norm_groups)
    params = init_encoder(config, 0)[f"projector_{name}"]
    series = fake_batch((name,), batch_size=3, extent=10.0, patch_size=10.0, num_dates=3).observations[name]
    values = np.array(series.values)
    values[2] = 3 * values[0]
    # Of the same days, which move the features, too.
    series = series.replace(dates=np.repeat(series.dates[:1], 3, axis=0))

    def distances(values):
        tokens = make_projector(get_sensor(name), config).apply(
            {"params": params}, series.replace(values=values), (1, 1), True
        )
        return jnp.square(tokens - tokens[1:2]).sum(), tokens

    compiled = jax.jit(jax.value_and_grad(distances, has_aux=True), compiler_options=QUICK)
    (_, tokens), gradient = compiled(values)
    return np.asarray(tokens), np.asarray(gradient)


@pytest.mark.parametrize(("name", "dim"), [("s2", 32), ("s2", 64), ("s1", 32)])  # with a norm over dates, and without
def test_a_narrow_model_sees_a_series(name, dim):
    (one, other, scaled), gradient = tokens_and_gradient(name, dim, "width")
    assert np.abs(other - one).max() > 0.1 * np.abs(one).max()
    assert np.abs(scaled - one).max() > 0.1 * np.abs(one).max()
    # Of each tile and band: none is lost in a group of one channel.
    assert (np.abs(gradient).max(axis=(1, -2, -1)) > 1e-3 * np.abs(gradient).max()).all()


def test_the_published_groups_hide_a_series_from_a_model_of_width_32():
    """The reason for the other groups; the published models are wider."""
    (one, other, scaled), gradient = tokens_and_gradient("s1", 32, "published")
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scaled, one, rtol=0, atol=1e-4)
    assert np.abs(gradient).max() < 1e-4


@pytest.mark.parametrize("name", ["s2", "s1"])
def test_parts_of_the_pixels_change_nothing_but_the_memory(name, monkeypatch):
    config = ModelConfig.from_preset("tiny", dim=32, sensors=(name,), dropout=True)
    params = init_encoder(config, 0)[f"projector_{name}"]
    series = fake_batch((name,), batch_size=2, extent=40.0, patch_size=20.0, num_dates=3).observations[name]
    series = series.replace(date_mask=np.array([[True] * 3, [True, False, True]]))

    def features(parts, deterministic):
        monkeypatch.setattr(projectors, "num_parts", lambda count, values: parts)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def run(params):
            apply = make_projector(get_sensor(name), config).apply
            return apply({"params": params}, series, (2, 2), deterministic, rngs={"dropout": jax.random.key(0)})

        program = run.lower(params).compile()
        return np.asarray(program(params)), program.memory_analysis().temp_size_in_bytes

    (plain, whole), (scanned, in_parts) = features(1, True), features(4, True)
    assert in_parts < 0.5 * whole
    assert plain.shape == (2, 4, 4, 32)
    np.testing.assert_allclose(scanned, plain, rtol=1e-5, atol=1e-5)
    dropped, _ = features(4, False)
    assert dropped.shape == plain.shape and not np.allclose(dropped, plain)
