"""Real processes: the losses of one, stopped and gone on with as other processes, and refusals that all of them say."""

import shutil
import signal

import pytest

from data_pipelines import load
from data_pipelines.prepare.prepare import prepare_dataset
from tests.train import tiny_mini
from tests.train.clusters import Cluster, assert_same_losses, rows, run
from tests.train.clusters import tiny_mini as flags
from tests.train.fake_run import SmallReader


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Data and compiled programs of all runs."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def straight(shared):
    """The run of one process with one device, of the fake dataset."""
    run(1, 1, flags("fake", shared, shared / "straight"), XDG_CACHE_HOME=str(shared))
    return shared / "straight"


def stop_one_of_two(shared, workdir):
    """Stops a run of two processes on the way; returns the step that both saved."""
    cluster = Cluster(
        [flags("fake", shared, workdir, "--config.mesh.fsdp=2")] * 2, devices=2, XDG_CACHE_HOME=str(shared)
    )
    cluster.wait_for_step(workdir, 2)
    cluster.members[1].terminate()
    codes, said = cluster.end()
    assert codes == [75, 75], "\n".join(said)
    (step,) = [int(one.name) for one in (workdir / "checkpoints").iterdir() if one.name.isdigit()]
    assert all(f"saved step {step}" in text for text in said)
    return step


def test_one_of_two_is_asked_to_stop_and_both_save(shared, tmp_path):
    assert stop_one_of_two(shared, tmp_path) == len(rows(tmp_path)) < 80


@pytest.mark.slow
def test_what_two_saved_another_goes_on_with(shared, straight, tmp_path):
    stop_one_of_two(shared, tmp_path)
    run(1, 1, flags("fake", shared, tmp_path), XDG_CACHE_HOME=str(shared))  # whose program `straight` compiled
    assert_same_losses(tmp_path, straight)


def prepared(folder, tiles):
    prepare_dataset(SmallReader({"train": tiles, "val": 3}), folder, "1.0.0")
    return folder


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("none", "process 1 ("),
        ("other", "dataset 'fake_run'.tiles.train is 7 in process 0 ("),
        ("seed", "config.seed is 0 in process 0 ("),
    ],
)
def test_what_one_process_lacks_is_refused_by_all(tmp_path, second, message):
    roots = [prepared(tmp_path / "first", 7), tmp_path / second]
    roots[1].mkdir()
    if second == "other":
        prepared(roots[1], 9)
    config = ["--config=configs/pretrain.py:prepared,fake_run", f"--workdir={tmp_path / 'run'}"]
    own = [[*config, f"--config.data.root={root}"] for root in roots]
    if second == "seed":
        own[1].append("--config.seed=1")
    codes, said = Cluster(own, devices=1).end()
    assert codes == [1, 1] and all("Traceback" not in text and "compiling" not in text for text in said)
    complaints = [[line for line in text.splitlines() if line.startswith("anysat_jax: ")] for text in said]
    if second == "none":  # the one that lacks it says so in its own words
        assert "unknown dataset 'fake_run'" in complaints[1][0] and "unknown dataset 'fake_run'" in complaints[0][0]
    else:
        assert complaints[0] == complaints[1]
    assert message in complaints[0][0]


@pytest.fixture(scope="module")
def all_straight(shared):
    """The run of one process with one device, of all five datasets."""
    config = tiny_mini.get_config()
    config.data.root = str(shared)
    load.open_datasets(config.data)
    run(1, 1, flags("all", shared, shared / "all"), XDG_CACHE_HOME=str(shared))
    assert {row["dataset"] for row in rows(shared / "all")} == set(config.data.datasets)
    return shared / "all"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "mesh"), [(2, 4, "fsdp=2"), (4, 2, "fsdp=4")])
def test_several_processes_have_the_losses_of_one(shared, all_straight, tmp_path, processes, devices, mesh):
    run(processes, devices, flags("all", shared, tmp_path, f"--config.mesh.{mesh}"), XDG_CACHE_HOME=str(shared))
    assert_same_losses(tmp_path, all_straight)


@pytest.fixture(scope="module")
def half(shared):
    """The run of two processes, asked to stop on the way."""
    cluster = Cluster(
        [flags("all", shared, shared / "half", "--config.mesh.fsdp=2")] * 2, devices=4, XDG_CACHE_HOME=str(shared)
    )
    cluster.wait_for_step(shared / "half", 6)
    for member in cluster.members:
        member.terminate()
    assert cluster.end()[0] == [75, 75] and 6 <= len(rows(shared / "half")) < 16
    return shared / "half"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "mesh"), [(1, 8, "fsdp=4"), (4, 1, "tensor=2")])
def test_what_two_saved_is_gone_on_with_by_others(shared, all_straight, half, tmp_path, processes, devices, mesh):
    shutil.copytree(half, tmp_path / "run")
    own = flags("all", shared, tmp_path / "run", f"--config.mesh.{mesh}")
    run(processes, devices, own, XDG_CACHE_HOME=str(shared))
    assert_same_losses(tmp_path / "run", all_straight)


@pytest.mark.slow
def test_where_one_is_killed_the_other_ends_and_the_run_goes_on(shared, straight, tmp_path):
    own = flags("fake", shared, tmp_path, "--config.checkpoint_every=3")
    cluster = Cluster([own] * 2, devices=1, XDG_CACHE_HOME=str(shared))
    cluster.wait_for_step(tmp_path, 5)
    cluster.members[1].kill()
    codes, said = cluster.end()
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 75), said[0]
    run(2, 1, own, XDG_CACHE_HOME=str(shared))
    assert_same_losses(tmp_path, straight)


@pytest.mark.slow
def test_where_one_reads_damaged_records_the_other_ends_too(tmp_path):
    roots = [prepared(tmp_path / "whole", 16), tmp_path / "damaged"]
    shutil.copytree(*roots)
    (shard,) = roots[1].rglob("*-train*")
    content = bytearray(shard.read_bytes())
    for place in range(16_000, len(content), 9_000):  # behind what is read at the start, in nearly every tile
        content[place] ^= 1
    shard.write_bytes(content)
    config = ["--config=configs/pretrain.py:prepared,fake_run", f"--workdir={tmp_path / 'run'}"]
    config += ["--config.model.preset=tiny", "--config.model.depth=1", "--config.model.predictor_depth=1"]
    codes, said = Cluster([[*config, f"--config.data.root={root}"] for root in roots], devices=1).end()
    assert codes[1] == 1 and codes[0] not in (0, 75), said
    assert "cannot be read" in said[1] and f"delete {roots[1]}" in said[1] and "Traceback" not in said[1]
