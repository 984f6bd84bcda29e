"""The step as compiled programs: one for each kind of batch, counted, and compiled in the background ahead of need.

A program is fixed by the dataset, the patch size and the static sizes of dates and masks. XLA takes tens of seconds for
each, mostly on one core, so the programs of the next steps are compiled side by side.
"""

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from anysat_jax.train.feed import Fed
from anysat_jax.train.state import TrainState

PROGRAMS_FOR_EACH = 4  # of one (dataset, patch size, bucket of dates): as many as there may be buckets of mask sizes
Key = tuple[str, float]
Signature = tuple[Any, ...]
Program = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def signature_of(fed: Fed) -> Signature:
    """What tells one program from another."""
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves((fed.batch, fed.masks)))
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

    def __init__(self, step: Any, state: TrainState, threads: int = 2, date_buckets: Mapping[str, int] | None = None):
        """Takes a jitted step.

        Args:
          step: `jax.jit(make_train_step(...))`.
          state: a state of the shapes and shardings that it will be called with; not kept.
          threads: programs compiled side by side.
          date_buckets: as for `ProgramCount`.
        """
        self._step = step
        self._state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="compile")
        self._programs: dict[Signature, concurrent.futures.Future[Program]] = {}
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
            batch, masks = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                (fed.batch, fed.masks),
            )
            self._programs[signature] = self._pool.submit(self._compile, batch, masks)

    def run(self, state: TrainState, fed: Fed) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step; waits for its program, which must have been prepared. The state's memory is taken over."""
        return self._programs[signature_of(fed)].result()(state, fed.batch, fed.masks)

    def _compile(self, batch: Any, masks: Any) -> Program:
        return self._step.lower(self._state, batch, masks).compile()
