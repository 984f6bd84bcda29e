"""TensorBoard's log of a run."""

import os
import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

FLUSH_SECONDS = 30.0  # between two moments in which what was written is brought to the disk


class Board:
    """Writes numbers in the caller's thread.

    tensorboardX's own writer works in the background: on a full disk it dies there, and whoever hands it another number
    waits for ever.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Begins a file; TensorBoard then forgets what earlier files say of this step and of later ones.

        Args:
          folder: of all files of the run; made where it is not there.
          step: the first that is written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files by name: that of a later step comes later, whatever the clock says.
        self._writer = EventsWriter(str(folder / f"events.{step:09d}"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))
        self._flushed = time.monotonic()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one number.

        Raises:
          OSError: the disk takes no more.
        """
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Brings everything to the disk."""
        self._writer.close()
