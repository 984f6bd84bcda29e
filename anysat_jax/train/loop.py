"""The step loop of all training jobs."""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from jax.sharding import Mesh

from anysat_jax.errors import Preempted
from anysat_jax.peak import peak_flops
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.compile import Compiled, StepPrograms, abstract
from anysat_jax.train.config import RunConfig
from anysat_jax.train.input import DeviceFeed, StepInput
from anysat_jax.train.metrics_log import MetricsLog, StepColumns
from anysat_jax.train.monitor import Hook, Meter, StepMonitor
from anysat_jax.train.optimizer import TrainStep
from anysat_jax.train.profiling import Profiler
from anysat_jax.train.record import RunRecord
from anysat_jax.train.sharding import replicated
from anysat_jax.train.status import JobStatus
from anysat_jax.train.workdir import StopRequest

# While the devices compute a step the next one is copied; one more gives a new program a head start on its step.
LOOKAHEAD = 2  # steps whose inputs are on the devices, and whose programs are compiled, before they run


@dataclasses.dataclass(repr=False, eq=False)
class StepLoop:
    """Runs compiled steps with inputs prefetched to the devices. Use as a context manager and iterate over it.

    Iterating yields the number of updates after each step; `state` and `position` are those after it. The caller does
    what happens between steps: evaluate, save, stop. It may replace `state`, and use `monitor`, `meter`, `log` and
    `stop`, the request by SIGTERM or Ctrl-C of this process.
    """

    config: RunConfig
    function: TrainStep  # not jitted
    state: Any  # on the mesh; its memory is donated to the first step
    batches: Any  # see `DeviceFeed`, as the next
    to_inputs: Callable[[Any, int], tuple[Any, ...]]
    _: dataclasses.KW_ONLY
    mesh: Mesh
    total: int  # updates of the whole run
    record: RunRecord  # the steps after `record.steps` are made, and each is added
    position: dict[str, Any] | None  # see `DeviceFeed`
    columns: StepColumns  # what is logged of each step
    workdir: pathlib.Path
    status: JobStatus
    constants: tuple[Any, ...] = ()  # arrays on the devices, the same for every step, such as frozen parameters
    hooks: Sequence[Hook] = ()  # see `StepMonitor`, as the next two
    describe_samples: Callable[[StepInput, Mapping[str, Any]], str] | None = None
    count_flops: Callable[[StepInput], float] | None = None
    # See `StepPrograms`.
    expected_programs: Mapping[tuple[str, float], int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        config, mesh, is_first = self.config, self.mesh, jax.process_index() == 0
        self.step, self._ahead = self.record.steps, collections.deque()
        self._first = self.step  # of this start; what it began with is saved, or can be made again
        peak = peak_flops(mesh.devices.flat[0].device_kind) if self.count_flops else None
        self.meter = Meter(peak and peak * mesh.size)
        # A program is compiled for one sharding of the state, so that each step must return it in that sharding.
        shardings, same = jax.tree.map(lambda leaf: leaf.sharding, self.state), replicated(mesh)
        gradients = jax.jit(self.function.gradients, out_shardings=(same, shardings.params))
        # Without donation two states would be in memory: parameters, teacher and both moments of AdamW.
        self._update = Compiled(jax.jit(self.function.update, donate_argnums=0, out_shardings=(shardings, same)))
        with contextlib.ExitStack() as resources:  # closed at once if one of them cannot be opened
            open_ = resources.enter_context
            batches = open_(contextlib.closing(self.batches))
            self._feed = DeviceFeed(batches, self.to_inputs, step=self.step, position=self.position)
            every = {"total_steps": self.total, "log_every": config.log_every}
            self.log = open_(MetricsLog(self.workdir, self.columns, step=self.step, **every, enabled=is_first))
            # With several processes JAX's coordinator receives SIGTERM, so that all stop after the same step.
            self.stop = open_(StopRequest(enabled=jax.process_count() == 1))
            on_wait, expected = self.log.show_waiting, self.expected_programs
            self._programs = open_(
                StepPrograms(gradients, self.state, constants=self.constants, expected=expected, on_wait=on_wait)
            )
            self._function = TrainStep(self._programs.run, self._update, self.function.losses)
            self._profiler = open_(Profiler(self.workdir, config.profile.steps, enabled=is_first))
            self._watchdog = open_(self.status.watchdog("step", lambda: self._compiling))
            self._resources = resources.pop_all()
        self.monitor = StepMonitor(
            self.record,
            self.log,
            self.columns,
            self.state.params,
            self.meter,
            count_flops=self.count_flops,
            max_nonfinite=config.max_nonfinite_steps,
            describe_samples=self.describe_samples,
            hooks=(*self.hooks, self._watchdog, self.status),
        )

    def __enter__(self) -> Self:
        self.status.set_state("running", step=self.step)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._resources.__exit__(*error)

    def __iter__(self) -> Iterator[int]:
        while self.step < self.total:
            left, step = self.total - self.step, self.step + 1
            self._look_ahead(min(LOOKAHEAD, left))
            inputs = self._ahead.popleft()
            self.record.programs = len(self._programs)
            # Compilers take the cores that prepare batches, so even a step whose own program is there is slower.
            if self._compiling or self._profiler.disturbs(step):
                self.meter.exclude()
            # A copy within a step would wait for the devices: everything must have been put there beforehand.
            try:
                with self._profiler.step(step, self.state), jax.transfer_guard_host_to_device("disallow"):
                    self.state, metrics = self._function(self.state, inputs)
            except Preempted:  # while it was compiled: the caller saves the last step that was made, if there is one
                self.stop.requested = True  # also where another process received the signal
                if self.step > self._first:
                    yield self.step
                raise
            self.step, self.position = step, inputs.position
            self._look_ahead(min(LOOKAHEAD, left - 1))  # while the devices compute
            self.monitor.after_step(step, inputs, metrics)
            yield step

    def _look_ahead(self, count: int) -> None:
        while len(self._ahead) < count:
            self._ahead.append(self._feed.next())
            self._programs.prepare(self._ahead[-1])
            if not len(self._update):  # behind the first gradients, which take longer
                state, loss = abstract(self.state), jax.ShapeDtypeStruct((), "float32", sharding=replicated(self.mesh))
                self._update.ahead(state, dict.fromkeys(self.function.losses, loss), state.params)

    @property
    def _compiling(self) -> bool:
        return self._programs.compiling or self._update.compiling

    def should_stop(self, checkpoints: Checkpoints) -> bool:
        """Returns whether the run received a stop signal; several processes must all call it, and agree on the step."""
        return self.stop.requested or (jax.process_count() > 1 and checkpoints.preempted(self.step))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context no step runs, as during an evaluation: profiler, watchdog and throughput pause."""
        self.monitor.flush()
        self._profiler.pause(self.step, self.state)
        with self._watchdog.paused():
            yield
        self.meter.reset_timer()
