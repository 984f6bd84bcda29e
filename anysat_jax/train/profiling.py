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
from collections.abc import Iterator, Sequence
from typing import Any, Self

import jax
import numpy as np
from absl import logging

Interval = tuple[float, float]  # begin and end, nanoseconds
STEP, INPUT = "train", "input"  # names in a profile: of a step, and of waiting for a batch
# Names of HLO on TPUs and CPUs, and of NCCL's kernels on GPUs.
COLLECTIVES = re.compile(
    r"all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|nccl"
    r"|^(send|recv)\b",
    re.IGNORECASE,
)
CONTAINERS = re.compile(r"^(while|conditional|call)([.\d]|$)")  # their parts are events of their own
TOP = 12  # operations on the page


@dataclasses.dataclass(frozen=True)
class TimeFractions:
    """Fractions of the time of a trace: means over the devices, which add up to 1."""

    steps: int  # traced
    devices: int  # with at least one operation
    seconds: float  # from the first step to the end of the last
    compute: float
    communication: float
    input: float
    host: float
    hidden: float  # communication beside which the device computed; within `compute`
    operations: dict[str, float]  # the longest operations by name, as fractions of the time of all operations


def read_trace(path: pathlib.Path) -> TimeFractions:
    """Reads a trace, an .xplane.pb file; raises as `time_fractions`, or BrokenProcessPool if its reader crashed."""
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
    compute: dict[str, list[Interval]] = collections.defaultdict(list)
    communication: dict[str, list[Interval]] = collections.defaultdict(list)
    operations: collections.Counter[str] = collections.Counter()
    for device, event in _operations(profile):
        (communication if COLLECTIVES.search(event.name) else compute)[device].append(_interval(event))
        operations[_short(event.name)] += event.duration_ns * 1e-9
    steps, waits = _host_intervals(profile, STEP), _host_intervals(profile, INPUT)
    if not steps:
        raise ValueError("the trace has no step of training")
    devices = sorted({*compute, *communication})
    # Devices run behind the host, which dispatches: the last operations end after the host's last step.
    ends = [end for each in (steps, *compute.values(), *communication.values()) for _, end in each]
    window = min(begin for begin, _ in steps), max(ends)
    parts = [_parts(compute[one], communication[one], waits, window) for one in devices] or [(0.0, 0.0, 0.0, 1.0, 0.0)]
    total = max(operations.total(), 1e-12)
    top = {name: spent / total for name, spent in operations.most_common(TOP)}
    seconds = (window[1] - window[0]) * 1e-9
    return TimeFractions(len(steps), len(devices), seconds, *np.mean(parts, axis=0).tolist(), top)


def _parts(
    compute: list[Interval], communication: list[Interval], waits: list[Interval], window: Interval
) -> list[float]:
    """Returns the fractions compute, communication, input, host and hidden of the window of one device."""
    each = [np.array(one, np.float64).reshape(-1, 2).clip(*window) for one in (compute, communication, waits)]
    edges = np.unique(np.concatenate([window, *(one.ravel() for one in each)]))
    # Nothing begins or ends between two edges. A stretch is covered if more intervals have begun there than ended.
    computes, communicates, waiting = (
        np.searchsorted(np.sort(one[:, 0]), edges[:-1], "right")
        > np.searchsorted(np.sort(one[:, 1]), edges[:-1], "right")
        for one in each
    )
    idle = ~computes & ~communicates
    kinds = (computes, communicates & ~computes, idle & waiting, idle & ~waiting, computes & communicates)
    return [float(np.diff(edges)[kind].sum()) / (window[1] - window[0]) for kind in kinds]


def _operations(profile: Any) -> Iterator[tuple[str, Any]]:
    """Yields device and event of every operation: threads of the host for a CPU, a line of its own for a TPU."""
    for plane in profile.planes:
        lines = list(plane.lines)
        if plane.name.startswith("/device:"):
            # A TPU's other lines repeat its operations, as steps and modules; a GPU has one line for each stream.
            chosen = [line for line in lines if line.name == "XLA Ops"]
            chosen = chosen or [line for line in lines if line.name.startswith("Stream")]
            found = [(plane.name, event) for line in chosen for event in line.events]
        elif plane.name.startswith("/host:CPU"):
            events = [(dict(event.stats), event) for line in lines for event in line.events]
            found = [(f"cpu {stats.get('device_ordinal', 0)}", event) for stats, event in events if "hlo_op" in stats]
        else:
            continue
        yield from (one for one in found if not CONTAINERS.match(_short(one[1].name)))


def _short(name: str) -> str:
    """Returns the name of an operation; the events of a TPU have their whole line of HLO as a name."""
    return name.partition(" = ")[0].lstrip("%")


def _host_intervals(profile: Any, name: str) -> list[Interval]:
    """Returns the intervals of the host's events of a name, such as "train" for "train#step_num=3#"."""
    lines = (line for plane in profile.planes if plane.name.startswith("/host:CPU") for line in plane.lines)
    return [_interval(event) for line in lines for event in line.events if event.name.partition("#")[0] == name]


def _interval(event: Any) -> Interval:
    return event.start_ns, event.start_ns + event.duration_ns


def describe(found: TimeFractions) -> str:
    """Returns the page."""
    each = 1000 * found.seconds / found.steps
    meanings = {
        "compute": f"{found.hidden:.1%} beside hidden communication",
        "communication": "that nothing is computed beside",
        "input": "idle while the host waited for a batch: more data.num_workers, or fewer dates",
        "host": "idle for another reason: dispatch, logging, checkpoints",
    }
    fractions = {name: getattr(found, name) for name in meanings}
    lines = [
        f"{found.steps} steps on {found.devices} devices, {each:.1f} ms each; shares of it, means of the devices:",
        "",
        *(f"  {name:14}{one:7.1%}  {each * one:9.1f} ms a step  {meanings[name]}" for name, one in fractions.items()),
        "",
        "The longest operations, and their share of the time of all:",
        "",
        *(f"  {fraction:7.1%}  {name}" for name, fraction in found.operations.items()),
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
        """Does not trace yet. `steps` are the first and the last; None: no profile."""
        self._folder, self._enabled = workdir / "profile", enabled and bool(steps)
        self._first, self._last = steps or (0, 0)
        self._tracing = False

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
        """Within this context a step, numbered from 1, is dispatched with a state."""
        self.pause(number - 1, state)
        if self._enabled and not self._tracing and self._first <= number <= self._last:
            jax.block_until_ready(state)  # a trace begins when the steps before it are computed
            shutil.rmtree(self._folder, ignore_errors=True)  # of an earlier start
            # Without Python's own calls: the page needs none, and tracing them hooks into every thread of the process.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number) if self._tracing else contextlib.nullcontext():
            yield

    def pause(self, number: int, state: Any) -> None:
        """Ends a trace if the latest step, with its output state, is the last: something else may follow it."""
        if self._tracing and number >= self._last:
            jax.block_until_ready(state)  # so that the trace contains whole steps
            self._stop()

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
