"""Work on the workers of a Dask cluster."""

import concurrent.futures
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
CONNECT_SECONDS = 30  # for a scheduler to answer, and then to have a worker


class WorkerDiedError(ChildProcessError):
    """A worker process, `pid` if known, ended before its work did."""

    pid: int | None = None


def call_portably(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function; errors of other packages, which may not survive pickling, become RuntimeErrors."""
    try:
        return function(*args)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("builtins", "anysat_jax", "data_pipelines"):
            raise
        portable = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            portable.add_note(note)
        raise portable from error


def map_on_cluster(
    address: str,
    function: Callable[[Item, Any], Any],
    items: Sequence[Item],
    shared: Any,
    name: Callable[[Item], str],
) -> Iterator[Item]:
    """Calls `function(item, shared)` on the workers of a Dask cluster; yields each item when it is done.

    The scheduler gives the items of a worker that dies to the others.

    Args:
      address: of the scheduler, "tcp://host:8786".
      function: of a module, as it is pickled by its name.
      shared: sent to each worker once.
      name: returns what an item is called in messages.

    Raises:
      ImportError: the package `distributed` is not installed.
      ConnectionError: the scheduler does not answer, or has no workers.
      WorkerDiedError: an item killed several workers in a row, or the scheduler ended; the message names the item.
      Exception: as `function`, of the first item that fails; the others are cancelled.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError("a cluster needs the package distributed: pip install 'anysat-jax[cluster]'") from error

    try:
        distributed.comm.resolve_address(address)  # a client of what is none would wait a minute when it is deleted
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address} ({error})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            how = f"start some on machines that see the same folders: dask worker {address} --nthreads 1"
            raise ConnectionError(f"the Dask scheduler at {address} has no workers; {how}") from error
        # A task, unlike scattered data, is repeated if the worker that holds its result dies.
        sent = client.submit(copy.copy, shared, pure=False)
        pool = client.get_executor(pure=False)
        futures = {pool.submit(call_portably, function, item, sent): item for item in items}
        for future in concurrent.futures.as_completed(futures):
            item = futures[future]
            try:
                future.result()
            except (distributed.KilledWorker, concurrent.futures.CancelledError) as error:
                reason = str(error) or "the scheduler ended"
                raise WorkerDiedError(f"the cluster at {address} gave up {name(item)}: {reason}") from error
            yield item
