"""What fitting keeps on disk."""

import jax
import jax.numpy as jnp
import pytest

from anysat_jax.downstream.selection import FitStore, Plan, Selection
from anysat_jax.downstream.task import Task
from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh, on_host
from tests.downstream.fit_toys import toy_config, toy_params
from tests.train.toys import assert_same, toy_optimizer

CONFIG = {"problem": {"dataset": "toy"}, "settings": {"epochs": 3}}
PLAN = Plan(toy_config(), Task("toy", "Toy", "tile", "class"), steps_per_epoch=1)
MESH = make_mesh(MeshConfig(data=2, fsdp=1))


def params_of(value):
    return jax.tree.map(lambda leaf: leaf * 0 + value, toy_params())


def begin(store):
    return store.restore_or_init(params_of(0.0), toy_optimizer(), MESH)


def evaluate(store, step, value):
    store.record.steps = step
    return store.selection.update(PLAN, step, value)


def save(store, state, step):
    store.record.steps = step
    store.save(state.replace(step=state.step * 0 + step), {"next_step": step})


def test_a_new_workdir_begins_with_the_given_parameters_and_drops_what_no_checkpoint_tells_of(tmp_path):
    with FitStore(tmp_path, CONFIG) as store:
        store.save_best(params_of(4.0), 4)
    with FitStore(tmp_path, CONFIG) as store:
        state, position = begin(store)
        assert_same(on_host(state.params), params_of(0.0))
        assert (
            position is None
            and store.record.steps == 0
            and store.selection == Selection()
            and not list((tmp_path / "best").iterdir())
        )


def test_best_parameters_that_the_checkpoint_does_not_know_give_way_to_those_that_it_does(tmp_path):
    with FitStore(tmp_path, CONFIG) as store:
        state, _ = begin(store)
        assert evaluate(store, 4, 0.5)
        store.save_best(params_of(4.0), 4)
        save(store, state, 4)
        save(store, state, 6)
        store.save_best(params_of(8.0), 8)
    with FitStore(tmp_path, CONFIG) as again:
        state, position = begin(again)
        assert int(state.step) == 6 and position == {"next_step": 6}
        assert again.record == store.record and again.selection == store.selection
        assert_same(again.read_best(params_of(0.0), MESH, again.selection.best.step), params_of(4.0))


def test_a_step_that_was_saved_before_its_evaluation_is_saved_again_after_it(tmp_path):
    with FitStore(tmp_path, CONFIG) as store:
        state, _ = begin(store)
        save(store, state, 4)
    with FitStore(tmp_path, CONFIG) as store:
        state, _ = begin(store)
        assert store.selection.evaluations == 0
        evaluate(store, 4, 0.5)
        save(store, state, 4)
    with FitStore(tmp_path, CONFIG) as store:
        begin(store)
        assert store.selection.evaluations == 1


def test_another_problem_is_refused_and_nothing_is_dropped(tmp_path):
    with FitStore(tmp_path, CONFIG) as store:
        state, _ = begin(store)
        save(store, state, 4)
        store.save_best(params_of(8.0), 8)
    other = {**CONFIG, "problem": {"dataset": "other", "task": {"level": "tile"}}}
    message = r"another problem \(dataset: 'toy' there, 'other' now; task.level: None there, 'tile' now\)"
    with FitStore(tmp_path, other) as store, pytest.raises(ConfigError, match=message):
        begin(store)
    assert (tmp_path / "best" / "8").is_dir() and (tmp_path / "checkpoints" / "4").is_dir()


def test_other_parameters_are_refused_by_name_and_nothing_is_lost(tmp_path):
    """As of another version of the code, for the same problem."""
    with FitStore(tmp_path, CONFIG) as store:
        state, _ = begin(store)
        evaluate(store, 4, 0.5)
        store.save_best(params_of(4.0), 4)
        save(store, state, 4)
    more = {**params_of(0.0), "gate": jnp.zeros(3)}
    with FitStore(tmp_path, CONFIG) as store:
        with pytest.raises(ConfigError, match=r"checkpoints/4 does not fit .*params\.gate absent there, \(3,\) now"):
            store.restore_or_init(more, toy_optimizer(), MESH)
        with pytest.raises(ConfigError, match=r"best/4 does not fit .*\(gate absent there, \(3,\) now\)"):
            store.read_best(more, MESH, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints"]
    with FitStore(tmp_path, CONFIG) as store:
        assert int(begin(store)[0].step) == 4
        assert_same(store.read_best(params_of(0.0), MESH, 4), params_of(4.0))


def test_a_workdir_of_a_pretraining_is_refused_and_nothing_is_lost(tmp_path):
    with FitStore(tmp_path, {"model": {"dim": 8}}) as store:
        save(store, begin(store)[0], 4)
    with FitStore(tmp_path, CONFIG) as store, pytest.raises(ConfigError, match="of another kind of run"):
        begin(store)
    assert (tmp_path / "checkpoints" / "4").is_dir() and not (tmp_path / "checkpoints-damaged").exists()


def test_a_memory_of_another_version_is_refused_before_anything_is_dropped(tmp_path, monkeypatch):
    with FitStore(tmp_path, CONFIG) as store:
        state, _ = begin(store)
        monkeypatch.setattr(store.record, "to_json", dict)
        save(store, state, 4)
        store.save_best(params_of(8.0), 8)
    with FitStore(tmp_path, CONFIG) as store, pytest.raises(CheckpointError, match="cannot be read .KeyError"):
        begin(store)
    assert (tmp_path / "best" / "8").is_dir() and (tmp_path / "checkpoints" / "4").is_dir()
