"""Where a run begins."""

import dataclasses
import types

import numpy as np
import pytest

from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder, init_student
from anysat_jax.pretrain import train as start
from anysat_jax.pretrain.step import create_state
from anysat_jax.train import config as settings
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import make_mesh
from anysat_jax.weights.exported import save_exported
from configs import pretrain
from tests.train.toys import assert_same, toy_optimizer

MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "spot"))
MESH = make_mesh({"data": 1, "fsdp": 1})


def config_of(**changes):
    config = pretrain.get_config()
    config.model.update(
        dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "spot"))
    )
    config.update(changes)
    return config


def save(workdir, config, step):
    state = create_state(MODEL, toy_optimizer(), MESH, seed=9)
    record = RunRecord(steps=step)
    meta = {"step": step, "config": settings.as_json(config), "record": record.to_json()}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state.replace(step=state.step + step), {"next_step": step}, meta)
    return state


def begin(workdir, config):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return start.begin(config, MODEL, toy_optimizer(), MESH, checkpoints)


def test_a_new_run_starts_at_random(tmp_path):
    found = begin(tmp_path, config_of(seed=4))
    assert_same(found.state.params, init_student(MODEL, 4))
    assert found.record == RunRecord() and found.position is None


def test_a_run_goes_on_and_says_what_changed(tmp_path, caplog):
    state = save(tmp_path, config_of(), 30)
    found = begin(tmp_path, config_of(log_every=7, seed=1))
    assert_same(found.state, state.replace(step=state.step + 30))
    assert found.record.resumed_from == 30 and found.position == {"next_step": 30}
    assert "seed was 0 in the checkpoint and is 1 now" in caplog.text and "log_every" not in caplog.text


def test_a_finished_run_is_not_resumed(tmp_path):
    save(tmp_path, config_of(), 30)
    assert begin(tmp_path, config_of(total_steps=30)).record.resumed_from is None


def test_the_weights_of_another_run(tmp_path):
    state = save(tmp_path / "other", config_of(), 30)
    found = begin(tmp_path / "new", config_of(init=str(tmp_path / "other"), seed=4))
    assert_same(found.state.params, state.params)
    assert_same(found.state.teacher, state.teacher)
    assert int(found.state.step) == 0 and found.record.steps == 0


def published(monkeypatch, **changes):
    weights = dict(
        encoder_params=init_encoder(MODEL, 1),
        predictor_params=None,
        mask_token=None,
        teacher_params=None,
        report=types.SimpleNamespace(missing=(), misshaped={}),
    )
    monkeypatch.setattr(
        "anysat_jax.weights.published.load_published",
        lambda path, model, strict: types.SimpleNamespace(**(weights | changes)),
    )


def test_a_published_encoder_is_student_and_teacher(tmp_path, monkeypatch, caplog):
    published(monkeypatch)
    state = begin(tmp_path, config_of(init="base.pth", seed=4)).state
    assert_same(state.params["encoder"], init_encoder(MODEL, 1))
    assert_same(state.teacher, init_encoder(MODEL, 1))
    assert_same(state.params["predictor"], init_student(MODEL, 4)["predictor"])
    assert "trained with model.positions = 'released', and not 'paper'" in caplog.text


def test_a_published_run_brings_predictor_and_teacher(tmp_path, monkeypatch):
    student = init_student(MODEL, 2)
    published(
        monkeypatch,
        predictor_params=student["predictor"],
        mask_token=np.ones(32, np.float32),
        teacher_params=init_encoder(MODEL, 3),
    )
    state = begin(tmp_path, config_of(init="run.pth")).state
    assert_same(state.params["predictor"], student["predictor"])
    assert_same(state.teacher, init_encoder(MODEL, 3))
    np.testing.assert_array_equal(state.params["mask_token"], 1.0)


def test_published_weights_of_another_width_are_refused(tmp_path, monkeypatch):
    published(monkeypatch, report=types.SimpleNamespace(missing=(), misshaped={"a": ((1,), (2,))}))
    with pytest.raises(ConfigError, match=r"wide.pth is of another model"):
        begin(tmp_path, config_of(init="wide.pth"))


def exported(folder, **changes):
    model = dataclasses.replace(MODEL, **changes)
    save_exported(folder / "model.safetensors", model, init_encoder(model, 1), source={})
    return model


def test_an_exported_encoder_is_student_and_teacher(tmp_path, caplog):
    exported(tmp_path)
    state = begin(tmp_path / "new", config_of(init=str(tmp_path), seed=4)).state  # the workdir of a finished adaptation
    assert_same(state.params, init_student(MODEL, 4) | {"encoder": init_encoder(MODEL, 1)})
    assert_same(state.teacher, init_encoder(MODEL, 1))
    assert "start at random" not in caplog.text


def test_what_an_exported_encoder_lacks_starts_at_random(tmp_path, caplog):
    model = exported(tmp_path, sensors=("s2", "modis"))
    params, teacher = start.exported_weights(tmp_path / "model.safetensors", MODEL, 4)
    assert_same(params["encoder"], teacher)
    assert_same(teacher["projector_s2"], init_encoder(model, 1)["projector_s2"])
    assert_same(teacher["projector_spot"], init_encoder(MODEL, 4)["projector_spot"])
    assert "start at random, for " in caplog.text and "lacks them: projector_spot" in caplog.text
    assert "projector_modis" not in teacher


def test_exported_weights_of_another_model_or_damaged_are_refused(tmp_path):
    exported(tmp_path, dim=64)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match=r"model\.safetensors is of another model: model\.dim is 64 there and 32 in"):
        start.exported_weights(path, MODEL, 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors is .*damaged"):
        begin(tmp_path, config_of(init=str(path)))
