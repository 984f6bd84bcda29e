"""The encoder that an adaptation starts from: every kind of weights, and every way in which they may not fit."""

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder, init_student
from anysat_jax.pretrain.step import state_from_params
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.sharding import make_mesh
from anysat_jax.weights.exported import checksum, save_exported
from anysat_jax.weights.load import initial_encoder
from anysat_jax.weights.published import load_published
from configs import adaptation
from tests.train.toys import assert_same

SMALL = dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2)
MODEL = ModelConfig(**SMALL, sensors=("spot", "s2"), dtype="bfloat16")


def config_of(init, new_sensors=(), seed=0, **model) -> ConfigDict:
    config = adaptation.common("finetune", "test")
    config.update(dict(init=str(init), new_sensors=new_sensors, seed=seed))
    config.model.update(model)
    return config


@pytest.fixture(scope="module")
def params():
    return init_encoder(MODEL, 5)


@pytest.fixture(scope="module")
def exported(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "model.safetensors"
    save_exported(path, MODEL, params, source={})
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A pretraining whose teacher is another network than its student."""
    folder = tmp_path_factory.mktemp("pretraining")
    teacher = init_encoder(MODEL, 6)
    state = state_from_params(init_student(MODEL, 0), teacher, optax.sgd(0.1), make_mesh({"data": 1, "fsdp": 1}))
    run = {"job": "pretrain", "dtype": "float32", "model": {**SMALL, "preset": "tiny", "sensors": MODEL.sensors}}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, {}, {"step": 3, "config": run, "record": {}})
    return folder, teacher


def test_a_random_start_has_the_sensors_of_the_data():
    found = initial_encoder(config_of("none", seed=4, preset="tiny", **SMALL), ("s2", "modis"))
    assert found.model == ModelConfig(**SMALL, sensors=("s2", "modis"))
    assert_same(found.params, init_encoder(found.model, 4))
    assert found.source == {"source": "none", "kind": "none", "digest": checksum(found.params)}


def test_a_random_start_is_of_the_base_model_unless_the_config_says_otherwise(monkeypatch):
    monkeypatch.setattr("anysat_jax.weights.load.init_encoder", lambda model, seed: {})
    assert initial_encoder(config_of("none"), ("s2",)).model == ModelConfig(sensors=("s2",))
    with pytest.raises(ConfigError, match=r"model\.num_heads = 12 must divide model\.dim = 32"):
        initial_encoder(config_of("none", dim=32), ("s2",))


@pytest.mark.parametrize("whole_run", [False, True])
def test_an_exported_encoder(exported, params, whole_run):
    """What fixes the parameters is the file's; how they are computed with is the config's."""
    config = config_of(exported.parent if whole_run else exported, remat="full", dropout=False)
    found = initial_encoder(config, ("s2",))
    assert found.model == ModelConfig(**SMALL, sensors=("spot", "s2"), remat="full", dropout=False)
    assert_same(found.params, params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.params))
    assert found.source["kind"] == ("run" if whole_run else "export") and found.source["source"] == config.init
    assert found.source["digest"] == checksum(params)


def test_the_teacher_of_a_pretraining(workdir):
    folder, teacher = workdir
    found = initial_encoder(config_of(folder), ("s2",))
    assert_same(found.params, teacher)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.params))
    assert found.source == {"source": str(folder), "kind": "run", "digest": checksum(teacher)}
    assert found.model.sensors == ("spot", "s2")


def test_published_weights(golden_folder):
    pytest.importorskip("torch")
    path = golden_folder / "weights.pth"
    found = initial_encoder(config_of(path), ("aerial", "s2", "s1-asc"))
    published = load_published(path)
    assert found.model == published.config and found.source["kind"] == "published"
    assert_same(found.params, published.encoder_params)


def test_the_teacher_of_a_published_pretraining_run(golden_folder):
    pytest.importorskip("torch")
    path = golden_folder / "pretrain.pth"
    found = initial_encoder(config_of(path, predictor_heads=4), ("s2",))
    assert_same(found.params, load_published(path, predictor_heads=4).teacher_params)


def test_new_sensors_start_at_random_and_the_rest_is_the_checkpoints(exported, params):
    found = initial_encoder(config_of(exported, new_sensors=("hls",), seed=9), ("s2", "hls"))
    assert found.model.sensors == ("spot", "s2", "hls")
    assert_same(found.params["projector_hls"], init_encoder(found.model, 9)["projector_hls"])
    assert_same({name: found.params[name] for name in params}, params)
    assert set(found.params) == {*params, "projector_hls"}
    assert found.source["digest"] != checksum(params)


def test_a_new_sensor_that_the_checkpoint_knows_is_the_checkpoints(exported, params):
    assert_same(initial_encoder(config_of(exported, new_sensors=("s2",)), ("s2",)).params, params)


@pytest.mark.parametrize("preset", ["tiny", None])
def test_the_same_model_may_be_given(exported, preset):
    values = dict(dim=32, depth=1, num_heads=2, positions="paper")
    assert initial_encoder(config_of(exported, preset=preset, **values), ("s2",)).model.dim == 32


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dict(dim=64), r"model\.dim is 32 there and 64 in the config"),
        (dict(depth=3), r"model\.depth is 1 there and 3 in the config"),
        (dict(num_heads=4), r"model\.num_heads is 2 there and 4 in the config"),
        (dict(positions="released"), r"model\.positions is 'paper' there and 'released' in the config"),
        (dict(preset="base"), r"model\.dim is 32 there and 768 in the config; model\.depth is 1 there and 6 in"),
    ],
)
def test_weights_of_another_model(exported, model, message):
    with pytest.raises(ConfigError, match=rf"model\.safetensors is of another model: .*{message}"):
        initial_encoder(config_of(exported, **model), ("s2",))


def test_weights_of_other_sensors(exported):
    message = r"model\.safetensors has projectors for spot, s2, and none for modis, l8 of the data; name in new_sensors"
    with pytest.raises(ConfigError, match=message):
        initial_encoder(config_of(exported), ("s2", "modis", "l8"))
    with pytest.raises(ConfigError, match="and none for modis of the data"):
        initial_encoder(config_of(exported, new_sensors=("l8",)), ("s2", "modis", "l8"))


def test_new_sensors_that_the_data_do_not_have(exported):
    with pytest.raises(ConfigError, match=r"new_sensors names hls; the data's sensors are s2, spot"):
        initial_encoder(config_of(exported, new_sensors=("hls",)), ("s2", "spot"))


def test_no_weights_are_named():
    with pytest.raises(
        ConfigError, match=r"config\.init is empty; give 'none' for a random start, the workdir of a pre"
    ):
        initial_encoder(config_of(""), ("s2",))


@pytest.mark.parametrize("name", ["no.safetensors", "no.pth", "no"])
def test_weights_that_are_not_there(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"init = '.*{name}': (there is )?no "):
        initial_encoder(config_of(tmp_path / name), ("s2",))


def test_weights_that_cannot_be_read(tmp_path, exported):
    for name, content in (("cut.safetensors", exported.read_bytes()[:-1]), ("text.pth", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"init = .*{name} is "):
            initial_encoder(config_of(tmp_path / name), ("s2",))
    with pytest.raises(CheckpointError, match="is not the workdir of a run"):
        initial_encoder(config_of(tmp_path), ("s2",))


def test_an_unknown_preset(exported):
    for init in (exported, "none"):
        with pytest.raises(ConfigError, match="unknown preset 'huge'; there are tiny, small, base"):
            initial_encoder(config_of(init, preset="huge"), ("s2",))
