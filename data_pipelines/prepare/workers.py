"""Worker processes: one function over many items, by `concurrent.futures` on this machine or by a Dask cluster."""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Function = Callable[[Shared, Item], Any]

CONNECT_SECONDS = 30  # for a scheduler to answer, and then to have a worker


class WorkerDiedError(ChildProcessError):
    """A worker process ended before its work did.

    Attributes:
      pid: the process, if known.
    """

    pid: int | None = None


def how_it_ended(code: int | None) -> str:
    """Describes a process's exit code; a negative one is the signal that killed it."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    out_of_memory = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{out_of_memory}"


def run_in_processes(function: Function, shared: Shared, items: Sequence[Item], count: int) -> Iterator[Item]:
    """Calls `function(shared, item)` in processes of this machine; yields each item when it is done.

    Args:
      function: a function of a module, which the processes import.
      shared: sent once to each process.
      items: of the calls.
      count: processes.

    Raises:
      WorkerDiedError: a process was killed; the others are ended, too.
      Exception: of the first call that fails; the processes are ended, whatever they are at.
    """
    others, workers = set(multiprocessing.active_children()), set()
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(shared,)
    )
    try:
        futures = {}
        for item in items:
            futures[pool.submit(_call_shared, function, item)] = item
            workers |= set(multiprocessing.active_children()) - others
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise _death(workers) from error
    except BaseException:
        for process in workers:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _death(workers: set[Any]) -> WorkerDiedError:
    # The pool ends the others by SIGTERM once it misses one.
    codes = {process.pid: process.exitcode for process in workers}
    pid = next((pid for pid, code in codes.items() if code not in (None, 0, -signal.SIGTERM)), None)
    if pid is None:
        return WorkerDiedError("a worker process ended")
    died = WorkerDiedError(f"worker process {pid} {how_it_ended(codes[pid])}")
    died.pid = pid
    return died


_SHARED: list[Any] = []  # of a worker process


def _start_worker(shared: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    # A worker waits for its next task for ever, also when its parent was killed.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _SHARED.append(shared)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call_shared(function: Function, item: Any) -> Any:
    return _call(function, _SHARED[0], item)


def _call(function: Function, shared: Any, item: Any) -> Any:
    """Calls a function; errors of other packages, which may not survive pickling, become RuntimeErrors."""
    try:
        return function(shared, item)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("builtins", __name__.partition(".")[0]):
            raise
        portable = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            portable.add_note(note)
        raise portable from error


def run_on_cluster(function: Function, shared: Shared, items: Sequence[Item], address: str) -> Iterator[Item]:
    """Calls `function(shared, item)` on the workers of a Dask cluster; yields each item when it is done.

    The scheduler gives the items of a worker that dies to the others.

    Args:
      function: a function of a module, which the workers import.
      shared: sent once to each worker.
      items: of the calls.
      address: of the scheduler, "tcp://host:8786".

    Raises:
      ImportError: the package `distributed` is not installed.
      ConnectionError: the scheduler does not answer, or has no worker.
      WorkerDiedError: an item killed several workers in a row, or the scheduler ended; the message names the item.
      Exception: of the first call that fails; the other items are cancelled.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError("a cluster needs the package distributed: pip install 'anysat-jax[cluster]'") from error

    with _connect(distributed, address) as client:
        job = client.submit(_same, shared, pure=False)  # a task, which is run again if the worker that holds it dies
        executor = client.get_executor(pure=False)
        submit = functools.partial(executor.submit, _call, function, job)
        futures = {submit(item): item for item in items}
        for future in concurrent.futures.as_completed(futures):
            try:
                future.result()
            except (distributed.KilledWorker, concurrent.futures.CancelledError) as error:
                reason = str(error) or "the scheduler ended"
                raise WorkerDiedError(f"the cluster at {address} gave up {futures[future]}: {reason}") from error
            yield futures[future]


def _connect(distributed: Any, address: str) -> Any:
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address} ({error})") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        client.close()
        how = f"start some on machines that see the same folders: dask worker {address} --nthreads 1"
        raise ConnectionError(f"the Dask scheduler at {address} has no workers; {how}") from error
    return client


def _same(shared: Shared) -> Shared:
    return shared
