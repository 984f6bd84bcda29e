"""Which rows of every batch a process reads."""

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Share:
    """Some of the equal runs of rows that every batch is cut into; the default is the whole batch.

    A batch has the same rows whoever reads them, so that what is drawn for a row, such as its masks, does not depend on
    the number of processes. Processes whose devices hold the same rows have the same share.

    Attributes:
      parts: numbers of the runs, rising.
      count: runs in a batch.

    Raises:
      ValueError: no parts, or one that is none of `count`.
    """

    parts: tuple[int, ...] = (0,)
    count: int = 1

    def __post_init__(self) -> None:
        if not self.parts or not all(0 <= part < self.count for part in self.parts):
            raise ValueError(f"the parts {self.parts} of a batch are not among its {self.count}")

    def rows(self, batch_size: int) -> Int[np.ndarray, "b"]:
        """Numbers of the rows in the whole batch; `count` divides `batch_size`."""
        return np.arange(batch_size).reshape(self.count, -1)[list(self.parts)].reshape(-1)


WHOLE = Share()
