"""Disks that cannot be written: full, read-only, gone. Whatever a library makes of it, it is said in one sentence."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from anysat_jax.train.errors import StorageError

REFUSALS = tuple(
    os.strerror(getattr(errno, name))
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
)
"""What a disk answers that cannot be written, in the words that libraries of every language hand on."""


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Says in one sentence that the disk took no more.

    Raises:
      StorageError: instead of an OSError in writing below the folder.
    """
    try:
        yield
    except OSError as error:
        reason, where = refusal(error), error.filename or workdir
        if reason is None or not pathlib.Path(str(where)).is_relative_to(workdir):
            raise
        raise StorageError(
            f"{where} cannot be written ({reason}); make room, or give another --workdir; the checkpoints that were "
            "whole still are, and the same command goes on from the last"
        ) from error


def refusal(error: BaseException | None) -> str | None:
    """What the disk answered, if an error, or what it came from, tells of a disk that cannot be written."""
    while error is not None:
        if found := [words for words in REFUSALS if words in str(error)]:
            return found[0]
        error = error.__cause__ or error.__context__
    return None
