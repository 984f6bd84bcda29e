"""Worker processes that each write whole shards; one that dies is noticed and named.

Processes are spawned, not forked: a fork beside JAX' threads may hang. Each has a pipe of its own, so that a process
killed at any moment leaves no lock behind, and the end of its pipe tells of its end.
"""

import builtins
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anysat_jax.sensors import SENSORS, Sensor, get_sensor, register
from data_pipelines.card import Reader
from data_pipelines.output import Output
from data_pipelines.plan import Shard
from data_pipelines.shards import BadTileError, Progress, write_shard


class WorkerDiedError(ChildProcessError):
    """A worker process ended before its work did."""


def how_it_ended(code: int | None) -> str:
    """What a process's exit code says; below 0 it is the signal that killed it."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    out_of_memory = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{out_of_memory}"


class _Worker:
    """A process, its pipe, and what it is at."""

    def __init__(self, job: tuple[Any, ...], sensors: Sequence[Sensor]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, tuple(sensors)), daemon=True)
        self.process.start()
        other.close()  # so that the pipe ends with the process
        self.shard: Shard | None = None
        self.tile: str | None = None
        with contextlib.suppress(BrokenPipeError):  # a process that died at once is noticed when it is waited for
            self.connection.send(job)

    def give(self, shard: Shard | None, keys: Sequence[str]) -> None:
        """Gives it a shard to write; None sends it home."""
        self.shard, self.tile = shard, None
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((shard, keys))

    def dead(self) -> WorkerDiedError:
        """What is to be said of its end."""
        self.process.join(10)
        how = how_it_ended(self.process.exitcode)
        at = "while it started"
        if self.shard is not None:
            at = f"while it wrote {self.shard.file_name}" + (f", at tile {self.tile!r}" if self.tile else "")
        return WorkerDiedError(f"worker process {self.process.pid} {how} {at}")

    def end(self) -> None:
        """Stops it, whatever it is at."""
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        self.connection.close()


def write_shards(
    reader: Reader,
    shards: Sequence[Shard],
    keys: Mapping[str, Sequence[str]],
    output: Output,
    *,
    workers: int,
    skip_bad: bool,
    progress: Progress,
) -> None:
    """Writes shards in worker processes.

    Args:
      reader: of the raw data; it is pickled.
      shards: what is to be written.
      keys: of all tiles, by split.
      output: gets the files.
      workers: how many processes, at most one for each shard.
      skip_bad: leaves out tiles that cannot be read, and records them.
      progress: is told of each tile.

    Raises:
      WorkerDiedError: a process died; the message names the tile that it was at.
      BadTileError, OSError: as `write_shard`; errors of the reader keep their built-in type.
    """
    waiting = list(reversed(shards))
    sensors = [get_sensor(name) for name in reader.card.sensors]
    with _workers(min(workers, len(shards)), (reader, output, skip_bad), sensors) as team:
        for one in team:
            _next_shard(one, waiting, keys)
        while busy := {one.connection: one for one in team if one.shard is not None}:
            for connection in multiprocessing.connection.wait(list(busy)):
                if _hear(busy[connection], progress):
                    _next_shard(busy[connection], waiting, keys)


@contextlib.contextmanager
def _workers(count: int, job: tuple[Any, ...], sensors: Sequence[Sensor]) -> Iterator[list[_Worker]]:
    team: list[_Worker] = []
    try:
        for _ in range(count):
            team.append(_Worker(job, sensors))
        yield team
        for one in team:
            one.process.join(5)
    finally:
        for one in team:
            one.end()


def _next_shard(worker: _Worker, waiting: list[Shard], keys: Mapping[str, Sequence[str]]) -> None:
    shard = waiting.pop() if waiting else None
    worker.give(shard, keys[shard.split][shard.start : shard.stop] if shard else ())


def _hear(worker: _Worker, progress: Progress) -> bool:
    """Takes one message of a worker; whether it finished its shard."""
    try:
        kind, *content = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        raise worker.dead() from None
    if kind == "begin":
        worker.tile = content[0]
        progress.begin(content[0])
    elif kind == "end":
        progress.end(content[0])
    elif kind == "failed":
        raise _rebuilt(*content)
    return kind == "done"


def _rebuilt(name: str, arguments: tuple[Any, ...], trace: str) -> BaseException:
    """The error of a worker. Only names and plain values come through the pipe."""
    if name == BadTileError.__name__:
        return BadTileError(*arguments)
    kind = getattr(builtins, name, None)
    error = kind(*arguments) if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(*arguments)
    error.add_note(f"in a worker process:\n{trace}")
    return error


def _serve(connection: Any, sensors: tuple[Sensor, ...]) -> None:
    """A worker's life: registers sensors first, as what comes next may need them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    for sensor in sensors:
        if sensor.name not in SENSORS:
            register(sensor)
    try:
        reader, output, skip_bad = connection.recv()
        while (given := connection.recv())[0] is not None:
            write_shard(reader, given[0], given[1], output, skip_bad=skip_bad, progress=_Wire(connection))
            connection.send(("done",))
    except (BrokenPipeError, ConnectionResetError, EOFError):  # the parent is gone
        return
    except Exception as error:
        connection.send(("failed", *_described(error), traceback.format_exc()))


def _described(error: Exception) -> tuple[str, tuple[Any, ...]]:
    """Name and arguments of an error, such that the parent can make it again."""
    if isinstance(error, BadTileError):
        return type(error).__name__, error.args
    if isinstance(error, OSError):
        return "OSError", (error.errno, str(error.strerror or error))
    plain = type(error).__name__ in dir(builtins) and not isinstance(error, UnicodeError)
    text = str(error) if plain else f"{type(error).__name__}: {error}"
    return (type(error).__name__ if plain else "RuntimeError"), (text,)


class _Wire:
    """Progress, told to the parent."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def begin(self, tile: str) -> None:
        self._connection.send(("begin", tile))

    def end(self, record_bytes: int) -> None:
        self._connection.send(("end", record_bytes))
