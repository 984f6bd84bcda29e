"""Checkpoints: exact, on any mesh, checked against the config, and read past damage."""

import functools
import json
import pathlib
import shutil

import jax
import pytest

from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.train.checkpoints import Checkpoints, understood
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import make_mesh
from anysat_jax.weights.checkpoint_files import CHANGING, FILE, find_damage, write_checksums
from tests.train.damage import cut_short, flip_bit
from tests.train.processes import start_processes
from tests.train.toys import assert_same, toy_abstract, toy_state

CONFIG = {"model": {"preset": "tiny", "dim": 128, "sensors": ["s2"], "remat": False}}


def mesh_of(data=1, fsdp=1):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp))


def at_step(state, step):
    return state.replace(step=state.step * 0 + step)


@functools.cache
def first_state():
    """Compiled once for the file."""
    return toy_state(mesh_of())


def save_steps(folder, *steps):
    state = first_state()
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(at_step(state, step), {"next_step": step}, {"step": step, "config": CONFIG, "record": {}})
    return state


def restore(folder, mesh=None, config=CONFIG, **abstract):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(toy_abstract(mesh or mesh_of(), **abstract), config)


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "new") is None


def test_the_newest_comes_back_exactly_and_two_are_kept(tmp_path):
    state = save_steps(tmp_path, 1, 2, 3)
    restored = restore(tmp_path)
    assert_same(restored.state, at_step(state, 3))
    assert restored.data == {"next_step": 3} and restored.meta["step"] == 3
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 3]


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_it_comes_back_on_another_mesh(tmp_path, data, fsdp):
    state = save_steps(tmp_path, 1)
    mesh = mesh_of(data, fsdp)
    restored = restore(tmp_path, mesh).state
    assert_same(restored, at_step(state, 1))
    kernel = restored.params["predictor"]["out"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and kernel.addressable_shards[0].data.shape == (128 // fsdp, 128)


def test_an_interrupt_does_not_cost_the_checkpoint_that_is_being_written(tmp_path, monkeypatch):
    checkpoints, close = Checkpoints(tmp_path), Checkpoints.close
    checkpoints.save(at_step(first_state(), 1), {"next_step": 1}, {"step": 1, "config": CONFIG, "record": {}})
    closed = []

    def interrupted_once():
        if not closed:
            closed.append(True)
            raise KeyboardInterrupt
        close(checkpoints)

    monkeypatch.setattr(checkpoints, "close", interrupted_once)
    with pytest.raises(KeyboardInterrupt), checkpoints:
        pass
    assert restore(tmp_path).meta["step"] == 1


def test_the_caller_may_donate_what_is_being_written(tmp_path):
    state = toy_state(mesh_of())
    step = jax.jit(
        lambda s: s.replace(step=s.step + 1, params=jax.tree.map(lambda x: x + 1, s.params)), donate_argnums=0
    )
    expected = jax.device_get(state.params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {"step": 1, "config": CONFIG, "record": {}})
        for _ in range(5):
            state = step(state)
    assert_same(restore(tmp_path).state.params, expected)


def test_another_width_is_refused_by_name(tmp_path):
    save_steps(tmp_path, 1)
    other = {"model": {**CONFIG["model"], "dim": 256, "remat": True}}
    with pytest.raises(ConfigError, match=r"of another model \(model.dim: 128 there, 256 now\); give the same config"):
        restore(tmp_path, config=other, width=256)
    assert (tmp_path / "1").is_dir()


def test_another_optimizer_is_refused_and_nothing_is_set_aside(tmp_path):
    save_steps(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"does not fit the config's model and optimizer .*schedule"):
        restore(tmp_path, schedule="plateau")
    assert (tmp_path / "1").is_dir()


def without(tree, *path):
    """A tree of dicts without one of its branches."""
    first, *rest = path
    return {
        key: without(value, *rest) if key == first and rest else value
        for key, value in tree.items()
        if key != first or rest
    }


def assert_nothing_lost(folder, *steps):
    assert sorted(int(path.name) for path in folder.iterdir()) == list(steps)
    assert not folder.with_name(f"{folder.name}-damaged").exists()
    assert all(find_damage(folder / str(step)) is None for step in steps)


def test_a_checkpoint_of_other_shapes_is_refused_by_leaf_and_nothing_is_lost(tmp_path):
    """As of an earlier version of the code, whose config says the same."""
    folder = tmp_path / "checkpoints"
    state = save_steps(folder, 1, 2)
    message = (
        r"2 does not fit the config's model and optimizer "
        r"\(params\.encoder\.projector_s2\.key\.kernel \(128, 128\) there, \(256, 256\) now; .* and \d+ more\); "
        r"go on with the config .* and the version of the code that made it, or choose another --workdir; "
        r"it is whole, and was left as it is$"
    )
    with pytest.raises(ConfigError, match=message):
        restore(folder, width=256)
    assert_nothing_lost(folder, 1, 2)
    assert_same(restore(folder).state, at_step(state, 2))


def test_a_checkpoint_of_other_leaves_is_refused_by_leaf_and_nothing_is_lost(tmp_path):
    folder = tmp_path / "checkpoints"
    save_steps(folder, 1)
    wanted = toy_abstract(mesh_of())
    fewer = wanted.replace(params=without(wanted.params, "encoder", "projector_s2", "query"))
    more = wanted.replace(params={**wanted.params, "gate": wanted.params["mask_token"]})
    for abstract, names in [
        (fewer, r"\(params\.encoder\.projector_s2\.query \(16, 8\) there, absent now\)"),
        (more, r"\(params\.gate absent there, \(128,\) now\)"),
    ]:
        with Checkpoints(folder) as checkpoints, pytest.raises(ConfigError, match=names):
            checkpoints.restore(abstract, CONFIG)
    assert_nothing_lost(folder, 1)


def test_a_run_of_another_kind_is_refused_and_nothing_is_lost(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(toy_state(mesh_of()), {}, {"step": 1, "config": {"problem": {}}, "record": {}})
    with pytest.raises(ConfigError, match="of another kind of run: its config has no section 'model'; give another"):
        restore(folder)
    assert_nothing_lost(folder, 1)


def test_what_is_whole_is_never_set_aside_whatever_keeps_it_from_being_read(tmp_path):
    """As of a version of the code that wrote other items."""
    folder = tmp_path / "checkpoints"
    save_steps(folder, 1, 2)
    shutil.rmtree(folder / "2" / "data")
    (folder / "2" / FILE).unlink()
    write_checksums(folder / "2")
    with pytest.raises(
        CheckpointError, match=r"2 is whole, and cannot be read \(.+\); go on with the version of the code"
    ):
        restore(folder)
    assert_nothing_lost(folder, 1, 2)


def test_a_memory_of_another_version_is_one_sentence():
    said = r"is whole, and cannot be read \(TypeError: .*'laps'\); go on with"
    with pytest.raises(CheckpointError, match=said), understood(pathlib.Path("checkpoints")):
        RunRecord.from_json({"losses": {}, "laps": 3})


def truncate_arrays(step: pathlib.Path):
    for file in (step / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_meta(step: pathlib.Path):
    for file in (step / "meta").iterdir():
        file.write_bytes(b"")


def lose_state(step: pathlib.Path):
    shutil.rmtree(step / "state")


def lose_checksums(step: pathlib.Path):
    (step / FILE).unlink()  # as after a kill while the step was being deleted


def flip_a_bit_of_the_arrays(step: pathlib.Path):
    flip_bit(max((step / "state").rglob("d/*"), key=lambda file: file.stat().st_size))


def flip_a_bit_of_the_position(step: pathlib.Path):
    flip_bit(step / "data" / "metadata")  # still JSON: another number


@pytest.mark.parametrize(
    "damage",
    [truncate_arrays, empty_meta, lose_state, lose_checksums, flip_a_bit_of_the_arrays, flip_a_bit_of_the_position],
)
def test_a_damaged_step_is_set_aside_and_the_one_before_it_read(tmp_path, caplog, damage):
    folder = tmp_path / "checkpoints"
    state = save_steps(folder, 1, 2)
    damage(folder / "2")
    restored = restore(folder)
    assert_same(restored.state, at_step(state, 1))
    assert "2 is damaged" in caplog.text and len(list((tmp_path / "checkpoints-damaged").iterdir())) == 1
    save_steps(folder, 2)  # the step can be written again
    assert restore(folder).meta["step"] == 2


@pytest.mark.parametrize("damage", [flip_bit, cut_short, pathlib.Path.unlink])
def test_damage_to_any_file_of_a_step_is_seen(tmp_path, damage):
    save_steps(tmp_path, 1)
    files = [file for file in (tmp_path / "1").rglob("*") if file.is_file()]
    files = [file for file in files if str(file.relative_to(tmp_path / "1")) not in (*CHANGING, FILE)]
    assert len(files) > 10 and find_damage(tmp_path / "1") is None
    for file in files:
        content = file.read_bytes()
        damage(file)
        assert file.name in find_damage(tmp_path / "1")
        file.write_bytes(content)
    assert find_damage(tmp_path / "1") is None


@pytest.mark.parametrize("damage", [flip_bit, cut_short, pathlib.Path.unlink])
@pytest.mark.parametrize("name", CHANGING)
def test_what_has_no_checksum_does_not_matter(tmp_path, damage, name):
    state = save_steps(tmp_path, 1)
    damage(tmp_path / "1" / name)
    assert_same(restore(tmp_path).state, at_step(state, 1))


def test_a_step_of_an_earlier_version_has_no_checksums_and_is_read(tmp_path):
    state = save_steps(tmp_path, 1)
    (tmp_path / "1" / FILE).unlink()
    meta = tmp_path / "1" / "meta" / "metadata"
    meta.write_text(
        json.dumps({key: value for key, value in json.loads(meta.read_text()).items() if key != "checksums"})
    )
    assert_same(restore(tmp_path).state, at_step(state, 1))


def test_when_all_are_damaged_the_run_says_so(tmp_path):
    folder = tmp_path / "checkpoints"
    save_steps(folder, 1, 2)
    for step in (1, 2):
        lose_state(folder / str(step))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* \(steps \[1, 2\], now in"):
        restore(folder)
    assert restore(folder) is None


def test_an_unfinished_step_is_no_step(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp-1").mkdir()
    assert restore(tmp_path).meta["step"] == 1


TWO_PROCESSES = """
import pathlib, sys
import jax
from jax.experimental import multihost_utils

address, index, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(address, 2, index)
from anysat_jax.train.checkpoints import Checkpoints
from tests.train import test_checkpoints as tests

mesh = tests.mesh_of(data=1, fsdp=2)
state = tests.toy_state(mesh)
with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
        meta = {"step": step, "config": tests.CONFIG, "record": {}}
        checkpoints.save(tests.at_step(state, step), {"next_step": step}, meta)
if index == 0:
    tests.flip_a_bit_of_the_arrays(folder / "2")
multihost_utils.sync_global_devices("damaged")
with Checkpoints(folder) as checkpoints:
    restored = checkpoints.restore(tests.toy_abstract(mesh), tests.CONFIG)
kernel, same = (one.params["predictor"]["out"]["kernel"].addressable_data(0) for one in (restored.state, state))
print(restored.meta["step"], restored.data["next_step"], bool((kernel == same).all()), flush=True)
"""


def test_two_processes_set_the_same_step_aside_and_read_the_same(tmp_path):
    folder = tmp_path / "checkpoints"
    processes = start_processes(TWO_PROCESSES, 2, folder, devices=1)
    said = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    assert said == ["1 1 True", "1 1 True"]
    assert len(list((tmp_path / "checkpoints-damaged").iterdir())) == 1
