"""First weights from every kind of source, and every way in which they may not fit."""

import dataclasses
import shutil
import types

import jax
import numpy as np
import optax
import pytest

from anysat_jax import AnySat
from anysat_jax.configs import adaptation
from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.export import export
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder, init_projector, init_student
from anysat_jax.pretrain.step import abstract_state, state_from_params
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from anysat_jax.weights.exported import checksum, save_exported
from anysat_jax.weights.load import (
    check_same_encoder,
    initial_encoder,
    initial_student,
    load_encoder,
    save_statistics,
)
from anysat_jax.weights.published import load_published
from tests.train.damage import flip_bit
from tests.train.toys import assert_same
from tests.validate.fakes import make_data

SMALL = dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2)
MODEL = ModelConfig(**SMALL, sensors=("spot", "s2"))
SECTION = {**SMALL, "preset": "tiny", "sensors": ["spot", "s2"], "norm_groups": "width"}
RUN = {"job": "pretrain", "dtype": "float32", "model": SECTION}


@pytest.fixture(scope="module")
def params():
    return init_encoder(MODEL, 5)


@pytest.fixture(scope="module")
def exported(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "model.safetensors"
    save_exported(path, dataclasses.replace(MODEL, dtype="bfloat16"), params, source={})
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A pretraining on eight devices, whose teacher is another network than its student, with steps 5 and 7."""
    folder = tmp_path_factory.mktemp("pretraining")
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (5, 7):
            state = state_from_params(init_student(MODEL, 0), init_encoder(MODEL, step), optax.sgd(0.1), mesh)
            checkpoints.save(state, {}, {"step": step, "config": RUN, "record": {}})
    return folder


@pytest.fixture(scope="module")
def abstract():
    """Parameters on eight devices, for another optimizer than the run's."""
    state = abstract_state(MODEL, optax.adamw(1e-3), make_mesh(MeshConfig(data=8, fsdp=1)))
    return {"params": state.params, "teacher": state.teacher}


# ---------------------------------------------------------------- the teacher of a run


def test_the_newest_teacher_is_loaded_on_one_device(workdir):
    model, params, kind = load_encoder(workdir)
    assert model == MODEL and kind == "run"
    assert_same(params, init_encoder(MODEL, 7))
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(params))


def test_a_damaged_newest_is_passed_over_and_left_where_it_is(workdir, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    flip_bit(copy / "checkpoints" / "7" / "state" / "_METADATA")
    assert_same(load_encoder(copy).params, init_encoder(MODEL, 5))
    assert "7 is damaged (state/_METADATA is not what was written)" in caplog.text
    assert (copy / "checkpoints" / "7").is_dir()
    (copy / "checkpoints" / "7" / "checksums.json").unlink()
    assert_same(load_encoder(copy).params, init_encoder(MODEL, 5))
    assert "7 is damaged (it is half deleted: its checksums are gone)" in caplog.text
    shutil.rmtree(copy / "checkpoints" / "7")
    (copy / "checkpoints" / "7").mkdir()
    assert_same(load_encoder(copy).params, init_encoder(MODEL, 5))
    assert "7 is damaged (its files are gone)" in caplog.text
    shutil.rmtree(copy / "checkpoints" / "7")
    flip_bit(copy / "checkpoints" / "5" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match=r"all checkpoints of .* are damaged \(steps \[5\]\); give another run"):
        load_encoder(copy)


def test_features_of_a_run(workdir):
    model, data = AnySat.from_pretrained(str(workdir)), make_data("s2", extent=20.0)
    np.testing.assert_array_equal(model(data), AnySat(MODEL, init_encoder(MODEL, 7))(data))


def test_the_statistics_of_a_run_are_those_of_each_of_its_datasets(workdir, tmp_path):
    assert AnySat.from_pretrained(workdir).statistics == {}
    shutil.copytree(workdir, tmp_path / "run")
    spot = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    s2 = {"mean": [1.0] * 10, "std": [2.0] * 10}
    save_statistics(tmp_path / "run", {"towns": {"spot": spot}, "fields": {"spot": spot, "s2": s2}})
    expected = {"s2@fields": s2, "spot@fields": spot, "spot@towns": spot}
    export(tmp_path / "run", tmp_path / "run.safetensors")
    for source in ("run", "run.safetensors"):
        assert AnySat.from_pretrained(tmp_path / source).statistics == expected


def test_a_run_from_before_norm_groups_has_the_published_numbers(monkeypatch, tmp_path):
    older = RUN | {"model": {name: value for name, value in SECTION.items() if name != "norm_groups"}}
    monkeypatch.setattr("anysat_jax.weights.load.read_newest", lambda path, wanted: (older, wanted(older)))
    assert load_encoder(tmp_path).model == dataclasses.replace(MODEL, norm_groups="published")


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="is not the workdir of a run: it has no folder checkpoints"):
        load_encoder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*checkpoints yet"):
        load_encoder(tmp_path)


def test_a_fine_tuning_that_has_not_finished(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        meta = {"step": 1, "config": RUN | {"job": "finetune"}, "record": {}}
        checkpoints.save({"params": np.ones(3)}, {}, meta)
    with pytest.raises(CheckpointError, match="has not finished, so it has no exported model yet; start it again"):
        load_encoder(tmp_path)


# ---------------------------------------------------------------- pretraining


def first(init, abstract=None, model=MODEL, config=RUN):
    return initial_student(str(init), model, 4, abstract, config)


def test_a_random_student_is_its_own_teacher():
    params, teacher = initial_student("", MODEL, 4, {}, RUN)
    assert_same(params, init_student(MODEL, 4))
    assert_same(teacher, params["encoder"])


def test_student_and_teacher_of_a_run_whatever_its_optimizer_was(workdir, abstract):
    params, teacher = first(workdir, abstract)
    assert_same(params, init_student(MODEL, 0))
    assert_same(teacher, init_encoder(MODEL, 7))
    assert len(params["mask_token"].sharding.device_set) == 8


def test_a_run_of_another_model_or_none_at_all_is_refused(workdir, tmp_path, abstract):
    with pytest.raises(CheckpointError, match="it has no folder checkpoints"):
        first(tmp_path, abstract)
    with pytest.raises(ConfigError, match=r"model.depth: 1 there, 2 now"):
        first(workdir, abstract, config=RUN | {"model": RUN["model"] | {"depth": 2}})
    with pytest.raises(ConfigError, match=r"no missing.pth; expected a published .pth file, or the workdir of a run"):
        first("missing.pth")


def test_parameters_of_another_version_are_refused_by_name_and_left_as_they_are(workdir, abstract):
    """The config is the same, and the code makes other parameters of it."""
    kept = r"; read it with the version of the code that made it, or give another run; it is whole, and was left"
    token = abstract["params"]["mask_token"]
    more = abstract | {"params": abstract["params"] | {"gate": token}}
    with pytest.raises(ConfigError, match=r"\(params\.gate absent there, \(32,\) now\)" + kept):
        first(workdir, more)
    wide = jax.ShapeDtypeStruct((64,), np.float32, sharding=token.sharding)
    with pytest.raises(ConfigError, match=r"\(params\.mask_token \(32,\) there, \(64,\) now\)" + kept):
        first(workdir, abstract | {"params": abstract["params"] | {"mask_token": wide}})
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints"]


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Makes a published file of given parts, without torch."""

    def make(**parts):
        weights = dict.fromkeys(("predictor_params", "mask_token", "teacher_params"))
        weights |= dict(encoder_params=init_encoder(MODEL, 1), report=types.SimpleNamespace(missing=(), misshaped={}))
        weights["config"] = dataclasses.replace(MODEL, positions="released", norm_groups="published")
        found = types.SimpleNamespace(**(weights | parts))
        monkeypatch.setattr("anysat_jax.weights.load.load_published", lambda path, model, strict: found)
        (tmp_path / "base.pth").touch()
        return tmp_path / "base.pth"

    return make


def test_a_published_encoder_is_student_and_teacher(published, caplog):
    params, teacher = first(published())
    assert_same(params, init_student(MODEL, 4) | {"encoder": init_encoder(MODEL, 1)})
    assert_same(teacher, init_encoder(MODEL, 1))
    assert "trained with model.positions = 'released', not 'paper'" in caplog.text
    assert "trained with model.norm_groups = 'published', not 'width'" in caplog.text


def test_a_published_run_brings_predictor_and_teacher(published):
    predictor, token = init_student(MODEL, 2)["predictor"], np.ones(32, np.float32)
    path = published(predictor_params=predictor, mask_token=token, teacher_params=init_encoder(MODEL, 3))
    params, teacher = first(path)
    assert_same(params, {"encoder": init_encoder(MODEL, 1), "predictor": predictor, "mask_token": token})
    assert_same(teacher, init_encoder(MODEL, 3))


def test_published_weights_of_another_width_are_refused(published):
    path = published(report=types.SimpleNamespace(missing=(), misshaped={"a": ((1,), (2,))}))
    with pytest.raises(ConfigError, match=r"base.pth is of another model"):
        first(path)


def test_an_exported_encoder_is_student_and_teacher(exported, params, caplog):
    student, teacher = first(exported.parent)  # the workdir of a finished fine-tuning
    assert_same(student, init_student(MODEL, 4) | {"encoder": params})
    assert_same(teacher, params)
    assert "start at random" not in caplog.text


def test_what_an_exported_encoder_lacks_starts_at_random(exported, params, caplog):
    model = dataclasses.replace(MODEL, sensors=("s2", "modis"))
    student, teacher = first(exported, model=model)
    assert_same(student["encoder"], teacher)
    assert_same(teacher["projector_s2"], params["projector_s2"])
    assert_same(teacher["projector_modis"], init_encoder(model, 4)["projector_modis"])
    assert "start at random, for " in caplog.text and "lacks them: projector_modis" in caplog.text
    assert "projector_spot" not in teacher


def test_exported_weights_of_another_model_or_damaged_are_refused(exported, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.safetensors is of another model: model\.dim is 32 there and 64 in"):
        first(exported, model=dataclasses.replace(MODEL, dim=64))
    (tmp_path / "model.safetensors").write_bytes(exported.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors is .*damaged"):
        first(tmp_path)


# ---------------------------------------------------------------- fine-tuning and probing


def start(init, sensors=("s2",), new_sensors=(), seed=0, **model):
    section = adaptation.common("finetune", "test").model.to_dict() | model
    return initial_encoder(str(init), section, sensors, new_sensors=new_sensors, seed=seed)


def test_a_random_start_has_the_sensors_of_the_data():
    found = start("none", ("s2", "modis"), seed=4, preset="tiny", **SMALL)
    assert found.model == ModelConfig(**SMALL, sensors=("s2", "modis"))
    assert_same(found.params, init_encoder(found.model, 4))
    assert found.source == {"source": "none", "kind": "none", "digest": checksum(found.params)}


def test_a_random_start_may_be_nearly_linear_in_the_values_of_series():
    sensors = ("spot", "s2", "modis")
    plain, small = (start("none", sensors, preset="tiny", **SMALL, input_gain=gain).params for gain in (1.0, 0.01))
    for name in ("s2", "modis"):
        kernels = [tree[f"projector_{name}"]["hidden_0"].pop("kernel") for tree in (plain, small)]
        np.testing.assert_allclose(kernels[1], 0.01 * kernels[0], rtol=1e-6)
    assert_same(plain, small)


def test_a_random_start_is_of_the_base_model_by_default(monkeypatch):
    monkeypatch.setattr("anysat_jax.weights.load.init_encoder", lambda model, seed, gain: {})
    assert start("none").model == ModelConfig(sensors=("s2",))
    with pytest.raises(ConfigError, match=r"model\.num_heads = 12 must divide model\.dim = 32"):
        start("none", dim=32)


@pytest.mark.parametrize("whole_run", [False, True])
def test_an_exported_encoder(exported, params, whole_run):
    """What fixes the parameters is the file's; how they are computed with is the config's."""
    path = exported.parent if whole_run else exported
    found = start(path, remat="full", dropout=False)
    assert found.model == dataclasses.replace(MODEL, remat="full", dropout=False)
    assert_same(found.params, params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.params))
    kind = "run" if whole_run else "export"
    assert found.source == {"source": str(path), "kind": kind, "digest": checksum(params)}


def test_the_teacher_of_a_pretraining(workdir):
    found, teacher = start(workdir), init_encoder(MODEL, 7)
    assert_same(found.params, teacher)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.params))
    assert found.source == {"source": str(workdir), "kind": "run", "digest": checksum(teacher)}
    assert found.model.sensors == ("spot", "s2")


def test_published_weights(golden_folder):
    pytest.importorskip("torch")
    found = start(golden_folder / "weights.pth", ("aerial", "s2", "s1-asc"))
    published = load_published(golden_folder / "weights.pth")
    assert found.model == published.config and found.source["kind"] == "published"
    assert_same(found.params, published.encoder_params)


def test_new_sensors_start_as_the_nearest_one_and_the_rest_is_the_checkpoints(exported, params):
    found = start(exported, ("s2", "hls"), ("hls",), seed=9)
    assert found.model.sensors == ("spot", "s2", "hls")
    first, source = init_projector("hls", params, init_encoder(found.model, 9)["projector_hls"])
    assert source == "s2"
    assert_same(found.params, params | {"projector_hls": first})
    assert found.source["digest"] != checksum(params)
    assert_same(start(exported, new_sensors=("s2",)).params, params)  # the checkpoint has that projector


def test_a_new_sensor_that_resembles_none_starts_at_random(exported, params):
    found = start(exported, ("s2", "s1"), ("s1",), seed=9)
    assert_same(found.params, params | {"projector_s1": init_encoder(found.model, 9)["projector_s1"]})


@pytest.mark.parametrize("preset", ["tiny", None])
def test_the_same_model_may_be_given(exported, preset):
    assert start(exported, preset=preset, dim=32, depth=1, num_heads=2, positions="paper").model.dim == 32


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dict(dim=64), r"model\.dim is 32 there and 64 in the config"),
        (dict(depth=3), r"model\.depth is 1 there and 3 in the config"),
        (dict(num_heads=4), r"model\.num_heads is 2 there and 4 in the config"),
        (dict(positions="released"), r"model\.positions is 'paper' there and 'released' in the config"),
        (dict(norm_groups="published"), r"model\.norm_groups is 'width' there and 'published' in the config"),
        (dict(preset="base"), r"model\.dim is 32 there and 768 in the config; model\.depth is 1 there and 6 in"),
    ],
)
def test_weights_of_another_model(exported, model, message):
    with pytest.raises(ConfigError, match=rf"model\.safetensors is of another model: .*{message}"):
        start(exported, **model)


def test_norm_groups_are_compared_where_they_have_an_effect():
    wide = dataclasses.replace(MODEL, dim=96, norm_groups="published")
    check_same_encoder("a.pth", wide, {"dim": 96, "norm_groups": "width"})
    with pytest.raises(ConfigError, match=r"a\.pth is of another model: model\.norm_groups is 'published' there"):
        check_same_encoder("a.pth", dataclasses.replace(wide, dim=64), {"dim": 64, "norm_groups": "width"})


def test_weights_of_other_sensors(exported):
    message = r"model\.safetensors has projectors for spot, s2, and none for modis, l8 of the data; name in new_sensors"
    with pytest.raises(ConfigError, match=message):
        start(exported, ("s2", "modis", "l8"))
    with pytest.raises(ConfigError, match="and none for modis of the data"):
        start(exported, ("s2", "modis", "l8"), ("l8",))


@pytest.mark.parametrize("name", ["no.safetensors", "no.pth", "no"])
def test_weights_that_are_not_there(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"init = '.*{name}': (there is )?no "):
        start(tmp_path / name)


def test_weights_that_cannot_be_read(tmp_path, exported):
    for name, content in (("cut.safetensors", exported.read_bytes()[:-1]), ("text.pth", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"init = .*{name} (is |cannot be read |needs torch)"):
            start(tmp_path / name)
    with pytest.raises(CheckpointError, match="is not the workdir of a run"):
        start(tmp_path)


def test_an_unknown_preset(exported):
    for init in (exported, "none"):
        with pytest.raises(ConfigError, match="unknown preset 'huge'; there are tiny, small, base"):
            start(init, preset="huge")
