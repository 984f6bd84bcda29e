"""Workers on the windows of a scene: threads that read ahead and write beside the devices, or a Dask cluster."""

import collections
import concurrent.futures
import dataclasses
import itertools
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import tqdm

from anysat_jax.api import AnySat
from anysat_jax.errors import Preempted
from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.inference import Program
from anysat_jax.scenes.tiles import Window
from anysat_jax.scenes.work import Job, Rasters, compute_window, make_part, read_window, write_window
from anysat_jax.sensors import Sensor, register
from anysat_jax.train.workdir import StopRequest
from anysat_jax.weights.exported import Exported
from data_pipelines.cluster import map_on_cluster

READERS = 2  # threads, each of which reads one window ahead


class Progress:
    """The line of progress in km2, the time spent, and the wish of the user to stop."""

    def __init__(self, bounds: Box, windows: Sequence[Window], stop: StopRequest):
        self._bounds, self._stop = bounds, stop
        form = "{percentage:3.0f}% of {total:.4g} km2 |{bar}| {elapsed}, {remaining} left, {rate_noinv_fmt}"
        total = sum(map(self.area, windows))
        self.bar = tqdm.tqdm(total=total, unit="km2", bar_format=form, mininterval=0.5, disable=not windows)
        self.started = time.perf_counter()
        self.waited = 0.0  # seconds
        self.ended: float | None = None

    def area(self, window: Window) -> float:
        """Returns the km2 of a window within the bounds."""
        box = window.cells.intersection(self._bounds)
        return box.width * box.height / 1e6

    def advance(self, area: float) -> None:
        """Shows that an area is computed.

        Raises:
          Preempted: the user or the machine asked the run to stop.
        """
        self.bar.update(min(area, self.bar.total - self.bar.n))  # sums of floats may be larger
        if self._stop.requested:
            raise Preempted("asked to stop: finished windows are kept; the same command goes on from there")

    @property
    def seconds(self) -> float:
        return max((self.ended or time.perf_counter()) - self.started, 1e-9)

    @property
    def waiting(self) -> float:
        """Fraction of the time in which the model waited for input."""
        return self.waited / self.seconds

    def summary(self) -> str:
        """Returns speed and waiting in words."""
        return f"{self.bar.n / self.seconds:.3g} km2/s, {self.waiting:.1%} of the time waiting for input"


def work_here(job: Job, rasters: Rasters, program: Program, windows: Sequence[Window], progress: Progress) -> None:
    """Computes windows one by one, while threads read the next ones and write the one before.

    Raises:
      Preempted: as `Progress.advance`.
      ValueError, OSError: a window cannot be read or written.
    """
    readers = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="read")
    writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="write")
    rest, ahead, writing = iter(windows), collections.deque(), None
    try:
        for window in itertools.islice(rest, READERS):
            ahead.append(readers.submit(read_window, job, window))
        while ahead:
            before = time.perf_counter()
            read = ahead.popleft().result()
            now = time.perf_counter()
            if writing is None:
                progress.started = now  # nothing could be done while the first one was read
            else:
                progress.waited += now - before
            if (window := next(rest, None)) is not None:
                ahead.append(readers.submit(read_window, job, window))
            area = progress.area(read.window)
            result = compute_window(job, program, read, lambda fraction, area=area: progress.advance(area * fraction))
            if writing:
                writing.result()
            part = make_part(job, rasters, read, result)
            del read, result  # may be most of the memory, while the next one is computed
            writing = writer.submit(write_window, job, rasters, part)
        if writing:
            writing.result()
        progress.bar.update(progress.bar.total - progress.bar.n)
        progress.ended = time.perf_counter()
    finally:
        progress.bar.close()
        readers.shutdown(cancel_futures=True)
        writer.shutdown()  # ends the current write


# ---------------------------------------------------------------- a cluster


@dataclasses.dataclass(frozen=True)
class ClusterJob:
    """Job, rasters and weights, as every worker of a cluster needs them."""

    job: Job
    rasters: Rasters
    weights: Any  # a path or name, which each worker loads, or the weights themselves
    sensors: tuple[Sensor, ...]  # which a worker may have to register
    compute_dtype: str | None
    fingerprint: str  # of the request


def work_on_cluster(shared: ClusterJob, windows: Sequence[Window], progress: Progress, address: str) -> None:
    """Computes windows on the workers of a Dask cluster, each of which has the first device of its process.

    Raises:
      Preempted: as `Progress.advance`; workers end the windows at which they are.
      ImportError, ConnectionError, WorkerDiedError: see `map_on_cluster`.
      ValueError, OSError: a window cannot be read or written, or a worker does not see the folder of the parts.
    """
    with progress.bar:
        for window in map_on_cluster(address, work_on_worker, windows, shared, lambda one: f"window {one.name}"):
            progress.advance(progress.area(window))
        progress.ended = time.perf_counter()


# Of a worker: the program of its last request. Two threads of a worker, of which one reads while the other computes,
# must not compile it twice.
_PROGRAMS: dict[str, Program] = {}
_LOADING = threading.Lock()


def work_on_worker(window: Window, shared: ClusterJob) -> None:
    """Computes a window in a worker of a cluster."""
    job = shared.job
    if not job.folder.is_dir():
        how = "the workers of a cluster need files and folders under the same paths"
        raise FileNotFoundError(f"{socket.gethostname()} does not see {job.folder}; {how}")
    for sensor in shared.sensors:
        register(sensor)
    with _LOADING:
        if shared.fingerprint not in _PROGRAMS:
            _PROGRAMS.clear()
            _PROGRAMS[shared.fingerprint] = job.program(load(shared.weights, shared.compute_dtype))
    read = read_window(job, window)
    result = compute_window(job, _PROGRAMS[shared.fingerprint], read)
    write_window(job, shared.rasters, make_part(job, shared.rasters, read, result))


def load(weights: Any, compute_dtype: str | None) -> Exported:
    """Returns weights, of a model, a path or a name, with another dtype of the computation if one is given."""
    if isinstance(weights, AnySat):
        weights = Exported(weights.config, jax.device_get(weights.params), None, weights.statistics, {})
    elif not isinstance(weights, Exported):
        from anysat_jax.weights.load import load_weights  # orbax takes seconds to import

        weights = load_weights(weights)[0]
    if compute_dtype is None:
        return weights
    return dataclasses.replace(weights, model=dataclasses.replace(weights.model, dtype=compute_dtype))
