"""A Dask cluster of two workers gives the same bytes as one process, also when one of them is killed."""

import dataclasses
import os
import pathlib
import signal
import sys

import pytest

from anysat_jax.scenes import run, tiles
from anysat_jax.scenes.inference import Product
from anysat_jax.scenes.reading import RasterBand, Stack
from anysat_jax.scenes.workers import ClusterJob, work_on_worker
from tests.dask_cluster import count_workers, start_cluster, wait_until
from tests.scenes.fake_scenes import model, save_model, write_stack


@dataclasses.dataclass(frozen=True)
class DyingBand:
    """A band that kills the first worker of a cluster that reads it."""

    band: RasterBand
    marker: pathlib.Path

    def __getattr__(self, name):
        if name in ("band", "marker"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.band, name)

    def read(self, rows, columns):
        if any("dask_worker" in word for word in sys.orig_argv) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.band.read(rows, columns)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with start_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "MOST_CELLS", 2)
    (tmp_path / "out").mkdir()
    stack = write_stack(tmp_path, "s2", 60, 60)
    weights = save_model(tmp_path / "tiny.safetensors", model("s2"))
    return tmp_path, stack, weights, dict(patch_size=20, resolution=20, tile=160, dtype="int8", say=lambda line: None)


def test_the_same_bytes_with_a_worker_that_is_killed(scene, cluster):
    folder, stack, weights, options = scene
    address, workers = cluster
    wait_until(lambda: count_workers(address) == 2)
    first, *others = stack.acquisitions
    dying = dataclasses.replace(first, bands=(DyingBand(first.bands[0], folder / "marker"), *first.bands[1:]))
    whole = run.embed({"s2": stack}, weights, folder / "out" / "whole.tif", **options)
    shared = run.embed({"s2": Stack("s2", (dying, *others))}, weights, folder / "out" / "shared.tif", cluster=address,
                       **options)  # fmt: skip
    assert [process.poll() for process in workers].count(-signal.SIGKILL) == 1
    assert shared.output.read_bytes() == whole.output.read_bytes()
    assert shared.input.read_bytes() == whole.input.read_bytes()
    assert "km2/s" in shared.summary


def test_a_worker_that_does_not_see_the_folder_says_so(scene):
    folder, stack, weights, _ = scene
    product = Product("patch", 20, 32, 32)
    opened = run._open({"s2": stack}, weights, run.Options(patch_size=20, tile=160))
    plan = run._plan(opened, product, folder / "x.tif")
    shared = ClusterJob(plan[0], None, weights, (), None, "")
    with pytest.raises(FileNotFoundError, match=r"does not see .*x.tif.parts; the workers of a cluster need files"):
        work_on_worker(None, shared)


def test_a_scheduler_that_does_not_answer_is_named_and_windows_are_kept(scene):
    folder, stack, weights, options = scene
    with pytest.raises(ConnectionError, match="^no Dask scheduler answers at nonsense"):
        run.embed({"s2": stack}, weights, folder / "out" / "x.tif", cluster="nonsense", **options)
    assert (folder / "out" / "x.tif.parts" / "sample.json").exists()
