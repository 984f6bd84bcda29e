"""Workers on the windows of a scene: threads that read ahead and write beside one device, or a Dask cluster."""

import collections
import concurrent.futures
import itertools
import time
from collections.abc import Sequence

import tqdm

from anysat_jax.errors import Preempted
from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.inference import Program
from anysat_jax.scenes.tiles import Window
from anysat_jax.scenes.work import Job, Rasters, compute_window, read_window, write_window
from anysat_jax.train.workdir import StopRequest

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
        box = window.cores.intersection(self._bounds)
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
            writing = writer.submit(write_window, job, rasters, read, result)
        if writing:
            writing.result()
        progress.bar.update(progress.bar.total - progress.bar.n)
        progress.ended = time.perf_counter()
    finally:
        progress.bar.close()
        readers.shutdown(cancel_futures=True)
        writer.shutdown()  # ends the current write
