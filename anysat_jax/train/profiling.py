"""Profile of a few steps: a trace for TensorBoard or Perfetto, and a page with the fractions of the time by cause.

A device computes, communicates without computing beside it, waits for input, or is idle for another reason (host).
"""

import collections
import concurrent.futures.process
import contextlib
import dataclasses
import multiprocessing
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from jaxtyping import Float64

from anysat_jax.train.input import INPUT

Intervals = Float64[np.ndarray, "n 2"]
"""Disjoint time intervals in order: begin and end of each, nanoseconds."""


def union(intervals: Iterable[tuple[float, float]]) -> Intervals:
    """Returns the union of intervals that may overlap."""
    merged: list[list[float]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        elif end > begin:
            merged.append([begin, end])
    return np.array(merged, np.float64).reshape(-1, 2)


def intersection(first: Intervals, second: Intervals) -> Intervals:
    """Returns the intersection of two sets of intervals."""
    found, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        begin, end = max(first[i, 0], second[j, 0]), min(first[i, 1], second[j, 1])
        if begin < end:
            found.append((begin, end))
        i, j = (i + 1, j) if first[i, 1] < second[j, 1] else (i, j + 1)
    return np.array(found, np.float64).reshape(-1, 2)


def difference(first: Intervals, second: Intervals) -> Intervals:
    """Returns the intervals of the first set without those of the second."""
    edges = np.concatenate([[-np.inf], second.ravel(), [np.inf]]).reshape(-1, 2)
    return intersection(first, edges)


def length(intervals: Intervals) -> float:
    """Returns the total length."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())


STEP = "train"
COLLECTIVES = re.compile(
    r"all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|nccl"
    r"|^(send|recv)\b",
    re.IGNORECASE,
)
CONTAINERS = re.compile(r"^(while|conditional|call)([.\d]|$)")  # their parts are events of their own
TOP = 12  # operations on the page


@dataclasses.dataclass(frozen=True)
class TimeFractions:
    """Fractions of the time of a trace: means over the devices, which add up to 1.

    Attributes:
      steps: traced.
      devices: with at least one operation.
      seconds: from the first step to the end of the last.
      compute, communication, input, host: see the top of this file.
      hidden: communication beside which the device computed; within `compute`.
      operations: the longest operations by name, as fractions of the time of all operations.
    """

    steps: int
    devices: int
    seconds: float
    compute: float
    communication: float
    input: float
    host: float
    hidden: float
    operations: dict[str, float]


@dataclasses.dataclass
class Events:
    """Intervals of the operations of one device."""

    compute: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    communication: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def read_trace(path: pathlib.Path) -> TimeFractions:
    """Reads a trace, an .xplane.pb file.

    Raises:
      ValueError: it has no step.
      BrokenProcessPool: its reader crashed.
    """
    # In a process of its own: jaxlib 0.12 aborts where a process reads a trace after it has recorded one.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as reader:
        return reader.submit(_read_here, path).result()


def _read_here(path: pathlib.Path) -> TimeFractions:
    return time_fractions(jax.profiler.ProfileData.from_file(str(path)))


def time_fractions(profile: Any) -> TimeFractions:
    """Returns the fractions of a profile of planes of lines of events, as in `jax.profiler.ProfileData`.

    Raises:
      ValueError: it has no step.
    """
    devices: dict[str, Events] = {}
    operations: collections.Counter[str] = collections.Counter()
    for device, event in _operations(profile):
        kind = "communication" if COLLECTIVES.search(event.name) else "compute"
        getattr(devices.setdefault(device, Events()), kind).append(_interval(event))
        operations[_short(event.name)] += event.duration_ns * 1e-9
    steps, waits = _host_intervals(profile, STEP), _host_intervals(profile, INPUT)
    if not steps:
        raise ValueError("the trace has no step of training")
    ends = [end for one in devices.values() for _, end in (*one.compute, *one.communication)]
    window = np.array([[min(begin for begin, _ in steps), max([*(end for _, end in steps), *ends])]])
    parts = [_parts(one, union(waits), window) for one in devices.values()] or [np.array([0.0, 0.0, 0.0, 1.0, 0.0])]
    compute, communication, waiting, host, hidden = np.mean(parts, axis=0).tolist()
    seconds = float(length(window)) * 1e-9
    total = max(operations.total(), 1e-12)
    top = {name: spent / total for name, spent in operations.most_common(TOP)}
    return TimeFractions(len(steps), len(devices), seconds, compute, communication, waiting, host, hidden, top)


def _parts(events: Events, waits: Intervals, window: Intervals) -> Float64[np.ndarray, "5"]:
    compute = intersection(union(events.compute), window)
    communication = intersection(union(events.communication), window)
    exposed = difference(communication, compute)
    idle = difference(difference(window, compute), exposed)
    waiting = length(intersection(idle, waits))
    hidden = length(communication) - length(exposed)
    return np.array([length(compute), length(exposed), waiting, length(idle) - waiting, hidden]) / length(window)


def _operations(profile: Any) -> Iterator[tuple[str, Any]]:
    """Yields device and event of every operation: threads of the host for a CPU, a line of its own for a TPU."""
    for plane in profile.planes:
        lines = list(plane.lines)
        if plane.name.startswith("/device:"):
            chosen = [line for line in lines if line.name == "XLA Ops"]
            chosen = chosen or [line for line in lines if line.name.startswith("Stream")]
            yield from ((plane.name, event) for line in chosen for event in line.events if not _contains(event))
        elif plane.name.startswith("/host:CPU"):
            for event in (event for line in lines for event in line.events):
                found = dict(event.stats)
                if "hlo_op" in found and not _contains(event):
                    yield f"cpu {found.get('device_ordinal', 0)}", event


def _contains(event: Any) -> bool:
    return CONTAINERS.match(_short(event.name)) is not None


def _short(name: str) -> str:
    """Returns the name of an operation; the events of a TPU have their whole line of HLO as a name."""
    return name.partition(" = ")[0].lstrip("%")


def _host_intervals(profile: Any, name: str) -> list[tuple[float, float]]:
    """Returns the intervals of the host's events of a name, such as "train" for "train#step_num=3#"."""
    lines = (line for plane in profile.planes if plane.name.startswith("/host:CPU") for line in plane.lines)
    return [_interval(event) for line in lines for event in line.events if event.name.partition("#")[0] == name]


def _interval(event: Any) -> tuple[float, float]:
    return event.start_ns, event.start_ns + event.duration_ns


def describe(found: TimeFractions) -> str:
    """Returns the page."""
    each = 1000 * found.seconds / found.steps
    lines = [
        f"{found.steps} steps on {found.devices} devices, {each:.1f} ms each; shares of it, means of the devices:",
        "",
        *(
            f"  {name:14}{fraction:7.1%}  {each * fraction:9.1f} ms a step  {meaning}"
            for name, fraction, meaning in (
                ("compute", found.compute, f"{found.hidden:.1%} beside hidden communication"),
                ("communication", found.communication, "that nothing is computed beside"),
                (
                    "input",
                    found.input,
                    "idle while the host waited for a batch: more data.num_workers, or fewer dates",
                ),
                ("host", found.host, "idle for another reason: dispatch, logging, checkpoints"),
            )
        ),
        "",
        "The longest operations, and their share of the time of all:",
        "",
    ]
    lines += [f"  {fraction:7.1%}  {name}" for name, fraction in found.operations.items()]
    lines += [
        "",
        "The trace lies beside this file, in plugins/profile: open it in TensorBoard (plugin xprof) or Perfetto.",
    ]
    return "\n".join(lines) + "\n"


SUMMARY = "summary.txt"


class Profiler:
    """Traces the steps of a range, below `<workdir>/profile`.

    A run that is resumed within the range traces the rest of it. The range should begin after the steps in which
    programs are compiled.
    """

    def __init__(self, workdir: pathlib.Path, steps: Sequence[int] | None, enabled: bool = True):
        """Does not trace yet.

        Args:
          workdir: of the run.
          steps: the first and the last; None: no profile.
          enabled: whether this process traces itself.
        """
        self._folder, self._enabled = workdir / "profile", enabled and bool(steps)
        self._first, self._last = steps or (0, 0)
        self._tracing, self._state = False, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._tracing:
            self._stop()

    def disturbs(self, number: int) -> bool:
        """Returns whether a trace begins or ends before a step, so that its time does not count."""
        return self._enabled and number in (self._first, self._last + 1)

    @contextlib.contextmanager
    def step(self, number: int, state: Any) -> Iterator[None]:
        """Within this context a step is dispatched.

        Args:
          number: of the step, from 1.
          state: its input; a trace begins and ends when that is computed, so that it contains whole steps.
        """
        if self._tracing and number > self._last:
            jax.block_until_ready(state)
            self._stop()
        if self._enabled and not self._tracing and self._first <= number <= self._last:
            jax.block_until_ready(state)
            self._start()
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number) if self._tracing else contextlib.nullcontext():
            yield

    def pause(self, number: int, state: Any) -> None:
        """Ends a trace whose last step was made, before something else than a step, such as an evaluation.

        Args:
          number: of the latest step.
          state: its output.
        """
        if self._tracing and number >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def _start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # of an earlier start
        # Without Python's own calls: the page needs none, and tracing them hooks into every thread of the process.
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._tracing = True

    def _stop(self) -> None:
        self._tracing, self._enabled = False, False
        jax.profiler.stop_trace()
        (path,) = self._folder.glob("plugins/profile/*/*.xplane.pb")
        try:
            text = describe(read_trace(path))
        except concurrent.futures.process.BrokenProcessPool:
            logging.warning("%s could not be read: its reader crashed; TensorBoard or Perfetto may open it", path)
            return
        (self._folder / SUMMARY).write_text(text, encoding="utf-8")
        logging.info("profile of steps %d to %d, in %s:\n%s", self._first, self._last, self._folder, text)
