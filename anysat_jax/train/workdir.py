"""A run's folder: found writable, held by one run at a time, and given back when the run ends."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax

from anysat_jax.train import distributed
from anysat_jax.train.errors import StorageError
from anysat_jax.train.lock import FILE, Lock, token_in
from anysat_jax.train.storage import explained


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a run's folder and keeps every other run out of it; one in which nothing was written goes again.

    Args:
      workdir: the same for all processes of the run, on a file system that they share.

    Raises:
      StorageError: the folder cannot be made or written, at once or later on, or another run holds it.
      ConfigError: the processes do not see the same folder.
    """
    made, lock = not workdir.exists(), Lock(workdir)
    try:
        distributed.on_all(lambda: _take(workdir, lock))
        distributed.check_same(
            lambda: {f"the name in {workdir / FILE}": token_in(workdir)},
            "give a --workdir on a file system that all machines share",
        )
        with explained(workdir):
            yield workdir
    finally:
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # something was written, or another process was first
                workdir.rmdir()


def _take(workdir: pathlib.Path, lock: Lock) -> None:
    """The first process takes the folder for all."""
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        raise StorageError(
            f"the workdir {workdir} cannot be written ({error.strerror or error}); give another --workdir"
        ) from error
