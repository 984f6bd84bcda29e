import shutil

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from anysat_jax import AnySat
from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student
from anysat_jax.pretrain.step import state_from_params
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.sharding import make_mesh
from anysat_jax.weights.load import load_teacher, restore_params
from tests.train.damage import flip_bit
from tests.train.toys import assert_same, toy_abstract, toy_state
from tests.validate.fakes import make_data

MODEL = dict(
    preset="tiny",
    dim=64,
    depth=1,
    num_heads=2,
    predictor_depth=1,
    predictor_heads=2,
    sensors=["s2", "spot"],
    remat=None,
)
CONFIG = {"model": MODEL, "dtype": "float32"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of eight devices, whose teacher is another network than its student, with a checkpoint at steps 5 and 7."""
    folder = tmp_path_factory.mktemp("run")
    model = ModelConfig.from_section(ConfigDict(MODEL))
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (5, 7):
            teacher = init_student(model, step)["encoder"]
            state = state_from_params(init_student(model, 0), teacher, optax.adamw(1e-3), mesh)
            checkpoints.save(state, {"next_step": step}, {"step": step, "config": CONFIG, "record": {}})
    return folder


def test_the_newest_teacher_is_loaded(workdir):
    model, params = load_teacher(workdir)
    assert (model.dim, model.depth, model.sensors, model.dtype) == (64, 1, ("s2", "spot"), "float32")
    expected = init_student(model, 7)["encoder"]
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(params))


def test_a_damaged_newest_is_passed_over_and_left_where_it_is(workdir, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    flip_bit(copy / "checkpoints" / "7" / "state" / "_METADATA")
    _, params = load_teacher(copy)
    jax.tree.map(
        np.testing.assert_array_equal, params, init_student(ModelConfig.from_section(ConfigDict(MODEL)), 5)["encoder"]
    )
    assert "7 is damaged (state/_METADATA is not what was written)" in caplog.text
    assert (copy / "checkpoints" / "7").is_dir()
    (copy / "checkpoints" / "7" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match="7 is half deleted: its checksums are gone; give another run"):
        load_teacher(copy)
    shutil.rmtree(copy / "checkpoints" / "7")
    flip_bit(copy / "checkpoints" / "5" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match=r"all checkpoints of .* are damaged \(steps \[5\]\); give another run"):
        load_teacher(copy)


def test_features_of_a_run(workdir):
    model, data = AnySat.from_pretrained(str(workdir)), make_data("s2", extent=20.0)
    expected = AnySat(model.config, init_student(model.config, 7)["encoder"])
    np.testing.assert_array_equal(model(data), expected(data))


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="is not the workdir of a run: it has no folder checkpoints"):
        load_teacher(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*checkpoints yet"):
        load_teacher(tmp_path)


def save_toy(workdir, **config):
    state = toy_state(make_mesh({"data": 1, "fsdp": 1}))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state, {}, {"step": 1, "config": CONFIG | config, "record": {}})
    return state


def test_a_folder_of_an_adaptation_that_has_not_ended(tmp_path):
    save_toy(tmp_path, job="finetune")
    with pytest.raises(CheckpointError, match="adapts weights and has not ended, so that it has no exported model yet"):
        load_teacher(tmp_path)


def test_student_and_teacher_whatever_the_optimizer_was(tmp_path):
    state = save_toy(tmp_path)
    mesh = make_mesh({"data": 8, "fsdp": 1})
    params, teacher = restore_params(tmp_path, toy_abstract(mesh, schedule="plateau"), CONFIG)
    assert_same(params, state.params)
    assert_same(teacher, state.teacher)
    assert len(params["mask_token"].sharding.device_set) == 8


def test_weights_of_nothing_or_of_another_model_are_refused(tmp_path):
    abstract = toy_abstract(make_mesh({"data": 1, "fsdp": 1}))
    with pytest.raises(CheckpointError, match="it has no folder checkpoints"):
        restore_params(tmp_path, abstract, CONFIG)
    save_toy(tmp_path)
    with pytest.raises(ConfigError, match=r"model.dim: 64 there, 32 now"):
        restore_params(tmp_path, abstract, {"model": {**MODEL, "dim": 32}})


def test_weights_of_other_leaves_are_refused_by_name_and_left_as_they_are(tmp_path):
    """As of another version of the code, whose config says the same."""
    save_toy(tmp_path)
    mesh = make_mesh({"data": 1, "fsdp": 1})
    wanted = toy_abstract(mesh)
    more = wanted.replace(params={**wanted.params, "gate": wanted.params["mask_token"]})
    kept = r"; read it with the version of the code that made it, or give another run; it is whole, and was left"
    with pytest.raises(
        ConfigError, match=r"params.encoder.projector_s2.key.kernel \(128, 128\) there, \(256, 256\) now.*" + kept
    ):
        restore_params(tmp_path, toy_abstract(mesh, width=256), CONFIG)
    with pytest.raises(ConfigError, match=r"\(params\.gate absent there, \(128,\) now\)" + kept):
        restore_params(tmp_path, more, CONFIG)
    with pytest.raises(ConfigError, match=r"1 does not fit .*teacher\.\S+ \(.*\) there, absent now;.*" + kept):
        load_teacher(tmp_path)  # a toy's leaves are none of the model's
    assert (tmp_path / "checkpoints" / "1").is_dir() and len(list(tmp_path.iterdir())) == 1
