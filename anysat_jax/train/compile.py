"""Functions compiled once per kind of arguments, ahead of need for training steps, and counted.

A step's program is fixed by the dataset, the patch size and the static sizes of dates and masks. XLA takes tens of
seconds for each, mostly on one core, so the programs of the next steps are compiled side by side.
"""

import concurrent.futures
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Self

import jax
from absl import logging

from anysat_jax.train.distributed import barrier
from anysat_jax.train.input import StepInput

PROGRAMS_PER_KIND = 4  # of one (dataset, patch size, bucket of dates): as many as there may be buckets of mask sizes
WAIT_SECONDS = 0.5  # between two reports while a step waits for its program
Signature = tuple[Any, ...]
Program = Callable[..., Any]


def signature_of(inputs: StepInput) -> Signature:
    """Returns (dataset, patch size, shapes and dtypes), which determines the program of a step."""
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(inputs.inputs))
    return inputs.batch.dataset, inputs.batch.patch_size, shapes


class CompileProgress(NamedTuple):
    """Programs whose compilation has begun, all that are known or expected, and seconds since something compiles."""

    begun: int
    total: int
    seconds: float

    def __str__(self) -> str:
        return f"compiling {self.begun} of {self.total} programs, {self.seconds:.0f} s"


class Compiled:
    """A function compiled once per structure, shapes, dtypes and shardings of its arguments, when it is called."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        """Takes a traceable function of arrays, and options of `jax.jit`."""
        self._function = jax.jit(function, **options)
        self._programs: dict[Hashable, Program] = {}
        self.compiling = False  # read by the watchdog's thread

    def __len__(self) -> int:
        """Returns the number of programs."""
        return len(self._programs)

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        if kind not in self._programs:
            self.compiling = True
            try:
                self._programs[kind] = compile_program(self._function, *arguments)
            finally:
                self.compiling = False
        return self._programs[kind](*arguments)


def compile_program(function: Any, *arguments: Any) -> Program:
    """Returns a jitted function's program for arrays, or for their shapes, dtypes and shardings."""
    return function.lower(*arguments).compile()


class StepPrograms:
    """Compiles the programs of a training step in the background, and runs them. Use as a context manager."""

    def __init__(
        self,
        step: Any,
        state: Any,
        *,
        constants: tuple[Any, ...] = (),
        date_buckets: Mapping[str, int] | None = None,
        expected: int = 0,
        on_wait: Callable[[CompileProgress], None] = lambda progress: None,
        threads: int = 2,
    ):
        """Takes a jitted step.

        Args:
          step: jitted function of (state, *constants, *inputs), see `StepInput`.
          state: a state of the shapes and shardings that it will be called with; not kept.
          constants: arrays on the devices that are the same for every step.
          date_buckets: number of lengths that the dates of a dataset's batches are padded to, by dataset; 1 for others.
          expected: number of programs of the whole run, where it is known.
          on_wait: called at once and now and then while a step waits for its program.
          threads: programs compiled side by side.
        """
        self._step = step
        self._state, self._constants = _abstract(state), constants
        self._date_buckets, self._expected, self._on_wait = date_buckets or {}, expected, on_wait
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="compile")
        self._programs: dict[Signature, concurrent.futures.Future[Program]] = {}
        self._run: set[Signature] = set()
        self._since = time.monotonic()  # when something began to compile after nothing did

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Returns the number of programs whose compilation has begun."""
        return len(self._programs)

    @property
    def compiling(self) -> bool:
        """Returns whether a program is being compiled now: then the time of a step is not its speed."""
        return any(not program.done() for program in list(self._programs.values()))

    @property
    def progress(self) -> CompileProgress:
        return CompileProgress(len(self), max(len(self), self._expected), time.monotonic() - self._since)

    def prepare(self, inputs: StepInput) -> None:
        """Starts to compile the program of a step, unless that was done."""
        signature = signature_of(inputs)
        if signature in self._programs:
            return
        if not self.compiling:
            self._since = time.monotonic()
        self._programs[signature] = self._pool.submit(self._compile, _abstract(inputs.inputs))
        self._log_new(*signature[:2])

    def run(self, state: Any, inputs: StepInput) -> tuple[Any, dict[str, jax.Array]]:
        """Returns the step's outputs; waits for its program, which must be prepared. The state is donated."""
        signature = signature_of(inputs)
        program = self._programs[signature]
        while not program.done():
            self._on_wait(self.progress)
            concurrent.futures.wait([program], WAIT_SECONDS)
        compiled = program.result()
        if signature not in self._run:  # the first collective of a program does not wait long for a slow compiler
            self._run.add(signature)
            barrier()
        return compiled(state, *self._constants, *inputs.inputs)

    def _compile(self, inputs: tuple[Any, ...]) -> Program:
        return compile_program(self._step, self._state, *_abstract(self._constants), *inputs)

    def _log_new(self, dataset: str, patch_size: float) -> None:
        of_kind = sum(signature[:2] == (dataset, patch_size) for signature in self._programs)
        logging.info("compiling program %d: %s at %g m, its number %d", len(self), dataset, patch_size, of_kind)
        most = PROGRAMS_PER_KIND * max(1, self._date_buckets.get(dataset, 1))
        if of_kind > most:
            logging.warning(
                "%s at %g m has more than %d compiled programs: the shapes of its batches vary",
                dataset,
                patch_size,
                most,
            )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
