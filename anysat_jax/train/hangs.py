"""Counts the hangs of a run that brought it no further, so that nobody starts it again and again for ever."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Self

from anysat_jax.train.summary import write_json

FILE = "hangs.json"
MOST = 3  # hangs in a row after which starting again is no use


@dataclasses.dataclass(frozen=True)
class Hangs:
    """Hangs in a row, over all starts of a run.

    Attributes:
      count: of those with no newer checkpoint between them.
      checkpoint: step of the newest whole checkpoint at the last of them; 0: there was none.
    """

    count: int = 0
    checkpoint: int = 0

    @classmethod
    def read(cls, workdir: pathlib.Path) -> Self:
        """What earlier starts left in the workdir; none where the file is not there, or cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads((workdir / FILE).read_bytes())
            return cls(int(values["count"]), int(values["checkpoint"]))
        return cls()

    def one_more(self, checkpoint: int) -> Self:
        """These and one more; the first again where a checkpoint came since.

        Args:
          checkpoint: step of the newest whole one now; 0: there is none.
        """
        return dataclasses.replace(
            self, count=1 if checkpoint > self.checkpoint else self.count + 1, checkpoint=checkpoint
        )

    @property
    def too_many(self) -> bool:
        """Whether a person should look before the next start."""
        return self.count >= MOST

    def write(self, workdir: pathlib.Path) -> None:
        """Leaves them for the next start.

        Raises:
          OSError: the workdir cannot be written.
        """
        write_json(workdir / FILE, dataclasses.asdict(self))


def newest_checkpoint(workdir: pathlib.Path) -> int:
    """Step of the newest whole checkpoint; 0 where there is none.

    It asks the disk alone, since whoever wrote checkpoints may be what hangs. One becomes whole by being renamed to its
    step.

    Raises:
      OSError: the folder cannot be read.
    """
    try:
        return max((int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), default=0)
    except FileNotFoundError:
        return 0
