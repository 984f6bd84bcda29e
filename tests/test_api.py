import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import anysat_jax.api
from anysat_jax import AnySat
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder, init_student
from anysat_jax.weights.convert import bare_entries, pretraining_entries, to_published
from tests.validate.fakes import make_data

# Of 64: at 32 a norm has one channel a group, and half precision shows nothing but rounding.
SMALL = dict(dim=64, depth=1, num_heads=2, predictor_heads=2, predictor_depth=1)


@pytest.fixture(scope="module")
def model():
    return AnySat.from_config("tiny", seed=3, **SMALL, sensors=("spot", "s2", "modis"))


@pytest.fixture
def data():
    return make_data("s2", "modis", extent=(60.0, 40.0))


@pytest.mark.parametrize(
    ("output", "modality", "shape"),
    [
        ("tile", None, (2, 64)),
        ("patch", None, (2, 3, 2, 64)),
        ("dense", "s2", (2, 6, 4, 128)),
        ("all", None, (2, 7, 64)),
    ],
)
def test_outputs(model, data, output, modality, shape):
    features = model(data, 20, output, modality)
    assert (features.shape, features.dtype) == (shape, jnp.float32)
    assert jnp.isfinite(features).all()


def test_outputs_agree(model, data):
    everything, tile, patch = (np.asarray(model(data, 20, output)) for output in ("all", "tile", "patch"))
    np.testing.assert_allclose(everything[:, 0], tile, atol=1e-6)
    np.testing.assert_allclose(everything[:, 1:].reshape(patch.shape), patch, atol=1e-6)
    dense = np.asarray(model(data, 20, "dense", "s2"))
    # Whose last spatial block has other products than that of patches alone.
    np.testing.assert_allclose(dense[:, ::2, ::2, :64], patch, atol=1e-5)


def test_a_second_call_compiles_nothing(model, data):
    model(data, 20)
    before = anysat_jax.api._features._cache_size()
    model({key: value[::-1] for key, value in data.items()}, 20.0)
    AnySat.from_config("tiny", seed=4, **SMALL, sensors=("spot", "s2", "modis"))(data, 20)
    assert anysat_jax.api._features._cache_size() == before


def test_jax_arrays_give_what_numpy_arrays_give(model, data):
    on_device = {key: jnp.asarray(value) for key, value in data.items()}
    np.testing.assert_array_equal(model(on_device, 20), model(data, 20))


def test_the_seed_fixes_the_parameters(model):
    again = AnySat.from_config("tiny", seed=3, **SMALL, sensors=("spot", "s2", "modis"))
    other = AnySat.from_config("tiny", seed=4, **SMALL, sensors=("spot", "s2", "modis"))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), model.params, again.params))
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), model.params, other.params))
    assert jax.tree.all(jax.tree.map(lambda a: a.dtype == jnp.float32, model.params))
    assert model.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(model.params))


def test_parameters_may_be_given(model, data):
    params = init_encoder(model.config, 3)
    np.testing.assert_array_equal(AnySat(model.config, params)(data, 20), model(data, 20))


def test_half_precision_gives_float32_features(model, data):
    half = AnySat.from_config("tiny", seed=3, **SMALL, sensors=("spot", "s2", "modis"), dtype="bfloat16")(data, 20)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, model(data, 20), atol=0.1)


def test_calls_inside_of_jit_and_grad(data):
    fresh = AnySat.from_config("tiny", seed=3, **SMALL, sensors=("spot", "s2", "modis"))
    jax.eval_shape(lambda data: fresh(data, 20), data)  # the first use of the parameters, of which none stays traced
    rng = np.random.default_rng(0)
    # Where norms of zeros have no kink.
    at = jax.tree.map(lambda x: x + 0.03 * rng.standard_normal(x.shape, np.float32), (fresh.params, data["s2"]))

    def loss(params, values):
        features = AnySat(fresh.config, params)(data | {"s2": values}, 20)
        return (features * jnp.linspace(-1, 1, 64)[None]).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*at)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert float(value) == pytest.approx(float(loss(*at)), abs=1e-4)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), at)
    up, down = (loss(*jax.tree.map(lambda x, d, s=sign: x + s * d, at, direction)) for sign in (1e-4, -1e-4))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradients, direction)))
    assert float(slope) == pytest.approx(float(up - down) / 2e-4, rel=0.02)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_a_seed_is_a_whole_number_from_0(seed):
    with pytest.raises(ValueError, match=f"seed = {seed!r} must be a whole number, 0 or more"):
        AnySat.from_config("tiny", seed=seed)


def test_errors_reach_the_user(model, data):
    with pytest.raises(ValueError, match="does not divide the tile"):
        model(data, 30)
    with pytest.raises(ValueError, match="the model has no sensor 'l8'; it has spot, s2, modis"):
        model(make_data("l8"))
    with pytest.raises(ValueError, match="needs output_modality"):
        model(make_data("spot", "s2", extent=(60.0, 40.0)), 20, "dense")
    with pytest.raises(ValueError, match="unknown preset 'huge'; there are tiny, small, base"):
        AnySat.from_config("huge")


def test_warnings_point_at_the_caller(model, data):
    with pytest.warns(UserWarning, match="'s2' looks unnormalised") as caught:
        model(data | {"s2": data["s2"] + 100}, 20)
    assert caught[0].filename == __file__


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*missing\.pth; expected a published \.pth file, or the workdir"):
        AnySat.from_pretrained(tmp_path / "missing.pth")


@pytest.mark.parametrize("entries", [bare_entries, pretraining_entries])
def test_published_weights(tmp_path, entries):
    """Of a file with student and teacher, the teacher's are taken."""
    torch = pytest.importorskip("torch")
    config = ModelConfig.from_preset("tiny", sensors=("s2",), positions="released", depth=1)
    student, teacher = init_student(config, 0), init_student(config, 1)["encoder"]
    arrays = to_published(entries(config), student | {"teacher": teacher})
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, tmp_path / "weights.pth")
    model = AnySat.from_pretrained(tmp_path / "weights.pth")
    assert (model.config.dim, model.config.depth, model.config.sensors) == (256, 1, ("s2",))
    expected = student["encoder"] if entries is bare_entries else teacher
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)


def test_the_example_of_the_docstring(monkeypatch):
    """It shows shapes, which need no compiled program."""
    features = anysat_jax.api._features

    def shapes(config, params, batch, *how):
        return jax.eval_shape(lambda params, batch: features(config, params, batch, *how), params, batch)

    monkeypatch.setattr(anysat_jax.api, "_features", shapes)
    results = doctest.testmod(anysat_jax.api)
    assert results.attempted >= 6
    assert results.failed == 0
