"""A profile of a few steps: a trace for TensorBoard or Perfetto, and a page that says where the time goes."""

import contextlib
import pathlib
import shutil
import types
from collections.abc import Iterator, Sequence
from typing import Any, Self

import jax
from absl import logging

from anysat_jax.train.trace import STEP, describe, read_trace

SUMMARY = "summary.txt"


class Profiler:
    """Within this context the steps from the first to the last of a range are traced, below `<workdir>/profile`.

    A run that goes on within the range traces what is left of it. Choose steps after those in which programs are
    compiled.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._tracing:
            self._stop()

    def disturbs(self, number: int) -> bool:
        """Whether a trace begins or ends before a step: such a moment tells nothing about speed."""
        return self._enabled and number in (self._first, self._last + 1)

    @contextlib.contextmanager
    def step(self, number: int, state: Any) -> Iterator[None]:
        """Within this context a step is dispatched.

        Args:
          number: of the step, from 1.
          state: what the step is given; a trace begins and ends when it is there, so that it holds whole steps.
        """
        if self._tracing and number > self._last:
            jax.block_until_ready(state)
            self._stop()
        if self._enabled and not self._tracing and self._first <= number <= self._last:
            jax.block_until_ready(state)
            self._start()
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number) if self._tracing else contextlib.nullcontext():
            yield

    def rest(self, number: int, state: Any) -> None:
        """To be called before something else than a step is done, such as an evaluation.

        A trace whose last step was made ends, so that it does not hold what follows.

        Args:
          number: of the latest step.
          state: what it gave.
        """
        if self._tracing and number >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def _start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # of an earlier start
        # Without Python's own calls: the page needs none, and following them hooks into every thread of the process.
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._tracing = True

    def _stop(self) -> None:
        self._tracing, self._enabled = False, False
        jax.profiler.stop_trace()
        (path,) = self._folder.glob("plugins/profile/*/*.xplane.pb")
        text = describe(read_trace(path))
        (self._folder / SUMMARY).write_text(text, encoding="utf-8")
        logging.info("profile of steps %d to %d, in %s:\n%s", self._first, self._last, self._folder, text)
