"""Shards: one is written from its tiles; many by processes of this machine, or by the workers of a Dask cluster."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import multiprocessing
import multiprocessing.resource_tracker
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from anysat_jax.sensors import Sensor, register
from data_pipelines.card import Example
from data_pipelines.cluster import WorkerDiedError, call_portably, map_on_cluster
from data_pipelines.prepare.leaks import footprint
from data_pipelines.prepare.plan import Shard
from data_pipelines.prepare.records import Serialiser, check_example, check_written, complete_example, record_errors
from data_pipelines.prepare.statistics import SPLIT, SensorStatistics, ShardStats, Skipped, sensor_statistics
from data_pipelines.prepare.storage import Output, move_whole, temporary_name, write_whole
from data_pipelines.reader import Reader
from data_pipelines.units import check_values
from data_pipelines.windows import split_example

# One record per group, for fast random access. Compression would save a tenth of noisy images and perhaps half of an
# optical series, and make records three times slower to read.
RECORD_OPTIONS = "group_size:1,uncompressed"


class BadTileError(ValueError):
    """A tile cannot be read, or is not what its card promises."""

    # As arguments of the exception, which is pickled by them on its way from a worker process.
    def __init__(self, dataset: str, split: str, tile: str, reason: str) -> None:
        super().__init__(dataset, split, tile, reason)
        self.reason = reason

    def __str__(self) -> str:
        dataset, split, tile, reason = self.args
        return f"dataset {dataset!r}: tile {tile!r} of split {split!r}: {reason}"


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Reader, output and options of all shards of a preparation; it is pickled to worker processes."""

    sensors: tuple[Sensor, ...]  # the dataset's, which a worker process may have to register
    reader: Reader
    output: Output
    skip_bad: bool


def read_tile(reader: Reader, split: str, key: str) -> Example:
    """Reads a complete example that keeps the promises of its card, with values that its units allow.

    Raises:
      BadTileError: the tile cannot be read, or breaks a promise. Other errors of the reader are faults of its code.
    """
    card = reader.card
    try:
        example = reader.example(split, key)
        check_example(card, key, example)
        example = check_values(card, f"{getattr(reader, 'root', card.name)}, tile {key!r}", example)
    except (OSError, ValueError) as error:
        # Faults of the machine would spoil every other tile, too.
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise BadTileError(card.name, split, key, str(error)) from error
    except Exception as error:
        error.add_note(f"while reading tile {key!r} of split {split!r} of dataset {card.name!r}")
        raise
    return complete_example(card, example)


def training_statistics(reader: Reader, watch: Callable[[Sequence[str]], Iterable[str]]) -> dict[str, SensorStatistics]:
    """Returns the statistics of the tiles of the split "train", of which `watch` shows the progress.

    Raises:
      ValueError: the reader has no such tiles.
      BadTileError: a tile cannot be read; see `read_tile`.
    """
    stats = ShardStats.empty(reader.card)
    if SPLIT not in reader.splits():
        raise ValueError(f"{reader.card.name} has no tile in the split {SPLIT!r}, of which statistics are taken")
    for key in watch(reader.keys(SPLIT)):
        stats.update(read_tile(reader, SPLIT, key), 0)
    return sensor_statistics({SPLIT: stats})


def write_shard(job: ShardJob, shard: Shard, on_tile: Callable[[], Any] = lambda: None) -> None:
    """Writes a shard under a temporary name, reads it back, and renames it; calls `on_tile` after each tile.

    Raises:
      BadTileError: a tile cannot be read, and `job.skip_bad` is False.
      OSError: the shard cannot be written or read back, or this machine does not see the output's folder.
    """
    for sensor in job.sensors:
        register(sensor)
    output = job.output
    if not output.parts.is_dir():
        how = "the workers of a cluster need the folder under the same path"
        raise FileNotFoundError(f"{socket.gethostname()} does not see {output.parts}; {how}")
    temporary = output.parts / temporary_name(shard.file_name)
    try:
        stats = _write_records(job, shard, temporary, on_tile)
        check_written(temporary, stats.examples * job.reader.card.blocks**2)
        stats.file_bytes = temporary.stat().st_size
        # Statistics first: a shard under its final name always has them.
        write_whole(output.parts / shard.stats_name, stats.to_json())
        move_whole(temporary, output.data / shard.file_name)
    finally:
        temporary.unlink(missing_ok=True)


def _write_records(job: ShardJob, shard: Shard, path: pathlib.Path, on_tile: Callable[[], Any]) -> ShardStats:
    from array_record.python.array_record_module import ArrayRecordWriter

    card = job.reader.card
    stats, serialise = ShardStats.empty(card), Serialiser(card)
    with record_errors():
        writer = ArrayRecordWriter(os.fspath(path), RECORD_OPTIONS)
    try:
        for key in job.reader.keys(shard.split)[shard.start : shard.stop]:
            try:
                example = read_tile(job.reader, shard.split, key)
            except BadTileError as error:
                if not job.skip_bad:
                    raise
                stats.skipped.append(Skipped(shard.split, key, error.reason))
            else:
                records = [serialise(block) for block in split_example(card, example)]
                with record_errors():
                    for record in records:
                        writer.write(record)
                stats.update(example, sum(map(len, records)))
                stats.footprints.append(footprint(card, example))
            on_tile()
    finally:
        with record_errors():
            writer.close()
    return stats


def how_it_ended(code: int | None) -> str:
    """Describes a process's exit code; a negative one is the signal that killed it."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    out_of_memory = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{out_of_memory}"


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Starts the processes of this context without Ctrl-C, which a terminal sends to all: their parent ends them."""
    # The tracker would unblock the signal when it starts. What a stopped run leaves in shared memory it removes, with
    # warnings that would hide the sentence of the run.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    multiprocessing.resource_tracker.ensure_running()
    # Blocked and not ignored: this process receives it in another thread, or afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_in_processes(job: ShardJob, shards: Sequence[Shard], count: int) -> Iterator[Shard]:
    """Writes shards in `count` processes of this machine; yields each when it is written.

    Raises:
      WorkerDiedError: a process was killed; the others are ended, too.
      BadTileError, OSError: as `write_shard`, of the first shard that fails; the processes are ended at once.
    """
    # Not fork: threads of JAX, gRPC or HDF5 may hold locks, which a forked child would wait for without end.
    others, workers = set(multiprocessing.active_children()), set()
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(job,)
    )
    try:
        futures = {}
        with without_interrupts():
            for shard in shards:
                futures[pool.submit(_write_portably, shard)] = shard
                workers |= set(multiprocessing.active_children()) - others
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        # Exit codes are certain once the pool's own thread has waited for its processes. It ends the others by SIGTERM
        # once it misses one.
        pool.shutdown()
        codes = {process.pid: process.exitcode for process in workers}
        pid = next((pid for pid, code in codes.items() if code not in (None, 0, -signal.SIGTERM)), None)
        died = WorkerDiedError(f"worker process {pid} {how_it_ended(codes[pid])}" if pid else "a worker process ended")
        died.pid = pid
        raise died from error
    except BaseException:
        for process in workers:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# Of a worker process: sent once, as a reader's list of keys may take megabytes.
_JOB: list[ShardJob] = []


def _start_worker(job: ShardJob) -> None:
    def exit_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    # Otherwise a worker whose parent was killed waits for its next shard for ever.
    threading.Thread(target=exit_with_parent, daemon=True).start()
    _JOB.append(job)


def _write_portably(shard: Shard, job: ShardJob | None = None) -> None:
    call_portably(write_shard, job or _JOB[0], shard)


def write_on_cluster(job: ShardJob, shards: Sequence[Shard], address: str) -> Iterator[Shard]:
    """Writes shards on the workers of a Dask cluster; yields each when it is written.

    Raises:
      ImportError, ConnectionError, WorkerDiedError: see `map_on_cluster`.
      BadTileError, OSError: as `write_shard`, of the first shard that fails; the others are cancelled.
    """
    return map_on_cluster(address, _write_portably, shards, job, lambda shard: shard.file_name)
