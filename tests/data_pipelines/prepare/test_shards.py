"""Shards written by processes of this machine and by a Dask cluster: the same bytes; dead and failing workers."""

import signal
import subprocess
import sys

import pytest

from data_pipelines import cluster as cluster_module
from data_pipelines.prepare import plan as plan_module
from data_pipelines.prepare.plan import Shard
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.shards import ShardJob, WorkerDiedError, write_shard
from data_pipelines.prepare.storage import Output
from data_pipelines.prepared import PreparedDataset
from tests.conftest import REPOSITORY
from tests.dask_cluster import count_workers, start_cluster, wait_until
from tests.data_pipelines.fake_reader import CARD, FakeReader
from tests.data_pipelines.odd_readers import DiesOnce, Fails, StrangeError, assert_holds, contents


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of three tiles."""
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)


def prepare(reader, base, workers=0, **options):
    return prepare_dataset(reader, base, "1.0.0", workers=workers, say=lambda _: None, **options)


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, capsys):
    alone = prepare(FakeReader(), tmp_path / "alone", 0)
    shown = capsys.readouterr().err
    together = prepare(FakeReader(), tmp_path / "together", 2)
    assert contents(together) == contents(alone)
    assert "10/10" in shown and "10/10" in capsys.readouterr().err


def test_a_killed_worker_is_named_and_the_next_start_goes_on(tmp_path):
    reader = DiesOnce(tmp_path / "marker")
    message = r"'fake_tiles': worker process \d+ was killed by SIGKILL; perhaps .* memory while it wrote "
    with pytest.raises(WorkerDiedError, match=f"{message}fake_tiles-train.*00002-of-00003.*kept; start again"):
        prepare(reader, tmp_path, 1)
    folder = prepare(reader, tmp_path, 1)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", range(7))


@pytest.mark.parametrize(
    ("reader", "kind", "message"),
    [
        (Fails(FileNotFoundError, "no a.tif"), ValueError, r"tile 'train2' of split 'train': no a\.tif.*--skip-bad"),
        (Fails(TypeError, "a fault"), TypeError, "a fault"),
        (Fails(StrangeError, "what", "where"), RuntimeError, "StrangeError: what at where"),
    ],
)
def test_errors_of_workers_keep_type_and_message(tmp_path, reader, kind, message):
    with pytest.raises(kind, match=message) as caught:
        prepare(reader, tmp_path, 1)
    if kind is not ValueError:
        assert "while reading tile 'train2'" in caught.value.__notes__[0]
    assert not (tmp_path / "fake_tiles" / "1.0.0").exists()


NEVER_ENDS = """
import pathlib, signal, sys
from data_pipelines.prepare import plan
from data_pipelines.prepare.prepare import prepare_dataset
from tests.data_pipelines.odd_readers import NeverEnds
if __name__ == "__main__":
    plan.SHARD_BYTES = 25_000
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as the command does: a shell's background jobs ignore it
    prepare_dataset(NeverEnds(sys.argv[1]), pathlib.Path(sys.argv[2]), "1.0.0", workers=2)
"""


def is_running(pid):
    """Returns whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    (tmp_path / "pids").mkdir()
    command = [sys.executable, "-c", NEVER_ENDS, str(tmp_path / "pids"), str(tmp_path / "out")]
    parent = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert all(map(is_running, pids))
    parent.send_signal(number)
    parent.wait(30)
    wait_until(lambda: not any(map(is_running, pids)), 30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a scheduler and its two workers."""
    with start_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def test_a_cluster_writes_the_same_bytes_also_when_a_worker_is_killed(tmp_path, cluster, capsys):
    address, processes = cluster
    wait_until(lambda: count_workers(address) == 2)
    reader = DiesOnce(tmp_path / "marker")
    folder = prepare(reader, tmp_path / "cluster", cluster=address)
    assert [process.poll() for process in processes].count(-signal.SIGKILL) == 1
    assert reader.opened == 3 and "10/10" in capsys.readouterr().err  # read here only to estimate the size of a tile
    assert contents(folder) == contents(prepare(reader, tmp_path / "alone"))


def test_errors_of_a_cluster_name_the_tile(tmp_path, cluster):
    with pytest.raises(ValueError, match=r"tile 'train2' of split 'train': cut\. \d finished shards are kept; mend"):
        prepare(Fails(ValueError, "cut"), tmp_path, cluster=cluster[0])


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    job = ShardJob((), FakeReader(), Output(tmp_path / "fake_tiles" / "1.0.0"), skip_bad=False)
    with pytest.raises(
        FileNotFoundError, match=r"does not see .*/fake_tiles/.*; the workers of a cluster need the folder"
    ):
        write_shard(job, Shard("fake_tiles", "train", 0, 1, 0, 7))


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ConnectionError, match="^no Dask scheduler answers at tcp://127.0.0.1:9 "):
        prepare(FakeReader(), tmp_path, cluster="tcp://127.0.0.1:9")


def test_an_address_that_is_none_is_refused_at_once(tmp_path):
    with pytest.raises(ConnectionError, match=r"^no Dask scheduler answers at nonsense \(missing port number in"):
        prepare(FakeReader(), tmp_path, cluster="nonsense")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"needs the package distributed: pip install 'anysat-jax\[cluster\]'"):
        prepare(FakeReader(), tmp_path, cluster="tcp://127.0.0.1:8786")
