"""Functions compiled once per kind of arguments, ahead of need for training steps, and counted.

The program of a step's gradients is fixed by the dataset, the patch size and the static sizes of dates and masks. XLA
takes tens of seconds for each, mostly on one core, so the programs of the next steps are compiled side by side.
"""

import concurrent.futures
import ctypes
import functools
import os
import time
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Self

import jax
from absl import logging

from anysat_jax.errors import Preempted
from anysat_jax.train.distributed import agree, stop_noticed
from anysat_jax.train.input import StepInput
from anysat_jax.train.workdir import StopRequest

PROGRAMS_PER_KIND = 4  # of a (dataset, patch size) for which the caller expects no number
THREADS = 2  # programs compiled side by side: the host needs its other cores for data
WAIT_SECONDS = 0.5  # between two reports while a step waits for its program
_C_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None
_POOL = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="compile")
Signature = tuple[Any, ...]
Program = Callable[..., Any]


def signature_of(inputs: StepInput) -> Signature:
    """Returns (dataset, patch size, shapes and dtypes), which determines the program of a step."""
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(inputs.inputs))
    return inputs.batch.dataset, inputs.batch.patch_size, shapes


def wait_for(program: concurrent.futures.Future[Program], on_wait: Callable[[], None] = lambda: None) -> Program:
    """Returns a program that is being compiled in a thread; calls `on_wait` now and then.

    Raises:
      Preempted: a stop of this process (see `StopRequest`), or of one of several, was requested meanwhile.
    """
    # XLA cannot be interrupted, but the thread that waits for it can.
    while not program.done():
        on_wait()
        if StopRequest.active is not None and (StopRequest.active.requested or stop_noticed()):
            raise Preempted("asked to stop while a program was compiled; the same command starts again from there")
        concurrent.futures.wait([program], WAIT_SECONDS)
    return program.result()


class Compiled:
    """A function compiled once per structure, shapes, dtypes and shardings of its arguments, when it is called."""

    def __init__(self, function: Any):
        """Takes a function of arrays made by `jax.jit`."""
        self._function = function
        self._programs: dict[Hashable, concurrent.futures.Future[Program]] = {}
        self._agreed: set[Hashable] = set()  # kinds of the programs that all processes have

    def __len__(self) -> int:
        """Returns the number of programs whose compilation has begun."""
        return len(self._programs)

    @property
    def compiling(self) -> bool:
        """Returns whether a program is being compiled now: then the time of a step is not its speed."""
        return any(not program.done() for program in list(self._programs.values()))  # a copy: the watchdog reads it too

    def __call__(self, *arguments: Any) -> Any:
        # Not by calling the jitted function, which would compile and run in one: a program that hangs would pass for
        # one that compiles.
        return self._wait(self.ahead(*arguments))(*arguments)

    def ahead(self, *arguments: Any) -> Hashable:
        """Starts to compile the program of these arrays, or of their shapes, unless that was done; returns its key."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        if kind not in self._programs:
            self._programs[kind] = _POOL.submit(self._compile, *arguments)
        return kind

    def _compile(self, *arguments: Any) -> Program:
        program = self._function.lower(*arguments).compile()
        # The allocator keeps what the compiler freed, 0.9 GB after a step of the base model; glibc gives it back.
        if trim := getattr(_C_LIBRARY, "malloc_trim", None):
            trim(0)
        return program

    def _wait(self, kind: Hashable, on_wait: Callable[[], None] = lambda: None) -> Program:
        wait = functools.partial(wait_for, self._programs[kind], on_wait)
        if kind in self._agreed:
            return wait()
        # The processes compile at their own speed, and the first collective of a program waits for all of them, but not
        # long: CPUs give up after 30 s. A stop in one of them meanwhile ends all before this call.
        self._agreed.add(kind)
        return agree(wait)


class StepPrograms(Compiled):
    """The programs of a training step's gradients, which are compiled ahead. Use as a context manager."""

    def __init__(
        self,
        step: Any,
        state: Any,
        *,
        constants: tuple[Any, ...] = (),
        expected: Mapping[tuple[str, float], int] = MappingProxyType({}),
        on_wait: Callable[[str], None] = lambda progress: None,
    ):
        """Takes a jitted function of (state, *constants, *inputs), see `StepInput`.

        Args:
          state: a state of the shapes and shardings that it will be called with; not kept.
          constants: arrays on the devices that are the same for every step.
          expected: largest number of programs of each (dataset, patch size), where it is known.
          on_wait: called at once and now and then while a step waits for its program, with the progress.
        """
        super().__init__(step)
        self._state, self._constants = abstract(state), constants
        self._expected, self._on_wait = expected, on_wait
        self._since = time.monotonic()  # when something began to compile after nothing did

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        for program in self._programs.values():  # those that wait for a thread: XLA itself cannot be interrupted
            program.cancel()

    def prepare(self, inputs: StepInput) -> None:
        """Starts to compile the program of a step, unless that was done."""
        signature = signature_of(inputs)
        if signature in self._programs:
            return
        if not self.compiling:
            self._since = time.monotonic()
        # Shapes only: a thread that waits for its turn must not keep a batch in the devices' memory.
        arguments = self._state, *abstract((*self._constants, *inputs.inputs))
        self._programs[signature] = _POOL.submit(self._compile, *arguments)
        kind = dataset, patch_size = signature[:2]
        count = sum(other[:2] == kind for other in self._programs)
        logging.info("compiling program %d: %s at %g m, its number %d", len(self), dataset, patch_size, count)
        if count > (most := self._expected.get(kind, PROGRAMS_PER_KIND)):
            text = "%s at %g m has more than %d compiled programs: the shapes of its batches vary"
            logging.warning(text, dataset, patch_size, most)

    def run(self, state: Any, inputs: StepInput) -> Any:
        """Returns the function's outputs; waits for its program, which must be prepared; raises as `wait_for`."""

        def show_progress() -> None:
            begun, seconds = len(self), time.monotonic() - self._since
            total = max(begun, sum(self._expected.values()))
            self._on_wait(f"compiling {begun} of {total} programs, {seconds:.0f} s")

        return self._wait(signature_of(inputs), show_progress)(state, *self._constants, *inputs.inputs)


def abstract(tree: Any) -> Any:
    """Returns shapes, dtypes and shardings of arrays, in the same structure."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
