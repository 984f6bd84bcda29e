"""The step as compiled programs: one for each kind of batch, counted, and compiled in the background ahead of need.

A program is fixed by the dataset, the patch size and the static sizes of dates and masks. XLA takes tens of seconds for
each, mostly on one core, so the programs of the next steps are compiled side by side.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import jax
from absl import logging

from anysat_jax.train.distributed import barrier

LOOKAHEAD = 2  # steps whose batches are on the devices, and whose programs are compiled, before they run
PROGRAMS_FOR_EACH = 4  # of one (dataset, patch size, bucket of dates): as many as there may be buckets of mask sizes
Key = tuple[str, float]
Signature = tuple[Any, ...]
Program = Callable[..., tuple[Any, dict[str, jax.Array]]]


class Fed(Protocol):
    """What a step is fed with, on the devices: a batch, and all that the step takes after the state."""

    batch: Any

    @property
    def inputs(self) -> tuple[Any, ...]: ...


class Feed(Protocol):
    """Where it comes from."""

    def next(self) -> Fed: ...


def signature_of(fed: Fed) -> Signature:
    """What tells one program from another."""
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(fed.inputs))
    return fed.batch.dataset, fed.batch.patch_size, shapes


class ProgramCount:
    """Counts the programs that the step is compiled into, by dataset and patch size."""

    def __init__(self, date_buckets: Mapping[str, int] | None = None) -> None:
        """Takes how many lengths the dates of a dataset's batches are padded to, by dataset; 1 for the others."""
        self.shapes: dict[Key, set[Signature]] = {}
        self._date_buckets = date_buckets or {}

    @property
    def total(self) -> int:
        return sum(len(shapes) for shapes in self.shapes.values())

    def add(self, signature: Signature) -> bool:
        """Whether the signature is new; remembers and logs it if so."""
        key = signature[:2]
        known = self.shapes.setdefault(key, set())
        if signature in known:
            return False
        known.add(signature)
        logging.info("compiling program %d: %s at %g m, its number %d", self.total, *key, len(known))
        most = PROGRAMS_FOR_EACH * max(1, self._date_buckets.get(key[0], 1))
        if len(known) > most:
            logging.warning(
                "%s at %g m has more than %d compiled programs: its batches do not keep their shapes", *key, most
            )
        return True


class StepPrograms:
    """Compiles and runs the step. Use as a context manager."""

    def __init__(
        self,
        step: Any,
        state: Any,
        threads: int = 2,
        date_buckets: Mapping[str, int] | None = None,
        constants: tuple[Any, ...] = (),
    ):
        """Takes a jitted step.

        Args:
          step: a function of (state, *constants, *inputs), see `Fed`, jitted.
          state: a state of the shapes and shardings that it will be called with; not kept.
          threads: programs compiled side by side.
          date_buckets: as for `ProgramCount`.
          constants: arrays on the devices that are the same for every step.
        """
        self._step = step
        self._state, self._constants = _abstract(state), constants
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="compile")
        self._programs: dict[Signature, concurrent.futures.Future[Program]] = {}
        self._met: set[Signature] = set()
        self.count = ProgramCount(date_buckets)

    def __enter__(self) -> "StepPrograms":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def compiling(self) -> bool:
        """Whether a program is being compiled right now: such a moment tells nothing about speed."""
        return any(not program.done() for program in self._programs.values())

    def prepare(self, fed: Fed) -> None:
        """Starts to compile what a step on `fed` needs, unless that was done."""
        signature = signature_of(fed)
        if self.count.add(signature):
            self._programs[signature] = self._pool.submit(self._compile, _abstract(fed.inputs))

    def run(self, state: Any, fed: Fed) -> tuple[Any, dict[str, jax.Array]]:
        """One step; waits for its program, which must have been prepared. The state's memory is taken over."""
        signature = signature_of(fed)
        program = self._programs[signature].result()
        if signature not in self._met:  # the first collective of a program does not wait long for a slow compiler
            self._met.add(signature)
            barrier()
        return program(state, *self._constants, *fed.inputs)

    def _compile(self, inputs: tuple[Any, ...]) -> Program:
        return self._step.lower(self._state, *_abstract(self._constants), *inputs).compile()


def look_ahead(ahead: collections.deque[Any], feed: Feed, programs: StepPrograms, count: int) -> None:
    """Fills the queue up to `count` steps, and has their programs compiled."""
    while len(ahead) < count:
        ahead.append(feed.next())
        programs.prepare(ahead[-1])


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


class Compiled:
    """Compiles a function for each kind of arguments that it is called with, and keeps the programs."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        """Takes a traceable function of arrays, and options of `jax.jit`."""
        self._function = jax.jit(function, **options)
        self._programs: dict[Hashable, Any] = {}
        self.compiling = False  # read by the watchdog's thread

    def __len__(self) -> int:
        """How many programs there are."""
        return len(self._programs)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; the first time with such structure, shapes, dtypes and places, compiles it."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        if kind not in self._programs:
            self._programs[kind] = self._compile(arguments)
        return self._programs[kind](*arguments)

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        self.compiling = True
        try:
            return self._function.lower(*arguments).compile()
        finally:
            self.compiling = False
