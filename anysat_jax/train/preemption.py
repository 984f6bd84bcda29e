"""Being asked to stop: clusters send SIGTERM and wait a while before they kill."""

import signal
import threading
import types
from typing import Self


class StopRequest:
    """Within this context SIGTERM only sets `requested`; the loop then saves and ends by itself."""

    def __init__(self, enabled: bool = True):
        # With several processes JAX's coordinator listens to the signal, so that all of them stop after the same step.
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self.requested = False

    def __enter__(self) -> Self:
        if self._enabled:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._enabled:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
