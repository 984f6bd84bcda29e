"""Where a pretraining begins."""

from anysat_jax.configs import pretrain
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student
from anysat_jax.pretrain import train
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.step import state_from_params
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.config import MeshConfig, as_json
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import make_mesh
from tests.train.toys import assert_same, toy_optimizer

MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "spot"))
MESH = make_mesh(MeshConfig(data=1, fsdp=1))


def config_of(**changes):
    config = pretrain.get_config()
    config.model.update(
        dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "spot"))
    )
    config.update(changes)
    return config


def save(workdir, config, step):
    state = state_from_params(init_student(MODEL, 9), None, toy_optimizer(), MESH)
    record = RunRecord(steps=step)
    meta = {"step": step, "config": as_json(config), "record": record.to_json()}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state.replace(step=state.step + step), {"next_step": step}, meta)
    return state


def begin(workdir, config):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return train.restore_or_init(PretrainConfig.read(config), as_json(config), toy_optimizer(), MESH, checkpoints)


def test_a_new_run_starts_at_random(tmp_path):
    found = begin(tmp_path, config_of(seed=4))
    assert_same(found.state.params, init_student(MODEL, 4))
    assert found.record == RunRecord.of(("predictive", "contrastive")) and found.position is None


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


def test_the_summary_has_none_for_what_is_unknown():
    record = RunRecord.of(("predictive", "contrastive"))
    record.add_step({"predictive": 1.0, "contrastive": 2.0}, "flair 10 m")
    summary = train.make_summary(record, {"tile": {"random": 0.5, "pretrained": 0.75}, "datasets": {}})
    assert summary["steps"] == 1 and summary["batches"] == {"flair 10 m": 1}
    assert summary["loss"]["contrastive"] == {"first": 2.0, "last": 2.0}
    assert summary["probe"] == {
        "tile": {"random": 0.5, "pretrained": 0.75},
        "dense": {"random": None, "pretrained": None},
    }
    assert summary["resumed_from"] is None and summary["tiles_per_second"] is None
    assert 10 < summary["peak_memory_mb"] < 1e6
