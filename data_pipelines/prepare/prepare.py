"""From a reader to ArrayRecord files, written through TFDS without TensorFlow, with statistics and a report.

A prepared dataset is a folder `<base>/<name>/<version>` in TFDS' layout, with its card, plan, statistics and report. It
grows shard by shard in a working folder and is renamed when whole, so that whatever carries its name can be read, and
a run that ended early loses no finished shard.
"""

import builtins
import contextlib
import errno
import math
import multiprocessing
import multiprocessing.connection
import pathlib
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from anysat_jax.sensors import SENSORS, Sensor, get_sensor, register
from data_pipelines import card as card_json
from data_pipelines.card import DatasetCard, example_spec
from data_pipelines.prepare import report as preparation_report
from data_pipelines.prepare import storage as contents
from data_pipelines.prepare.plan import (
    FILE_NAME,
    Plan,
    Shard,
    chosen_keys,
    make_plan,
    num_bytes,
    plan_facts,
    probe_positions,
)
from data_pipelines.prepare.records import check_card, write_metadata
from data_pipelines.prepare.report import Part, Whole
from data_pipelines.prepare.shards import BadTileError, Progress, read_tile, write_shard
from data_pipelines.prepare.statistics import SPLIT, save_statistics
from data_pipelines.prepare.storage import LocalOutput, Output, RemoteOutput, check_contents, is_url, to_stderr
from data_pipelines.prepared import prepared_folder, save_lengths
from data_pipelines.reader import Reader


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


class ProgressBar:
    """Tiles, tiles/s, MB/s and remaining time, over all processes."""

    def __init__(self, description: str, total: int, done: int) -> None:
        """Args:
        description: what is going on.
        total: tiles in all.
        done: tiles that were there before; they do not count for the speed.
        """
        import tqdm

        self._bar: Any = tqdm.tqdm(total=total, initial=done, unit="tile", desc=description, mininterval=0.5)
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, tile: str) -> None:
        """Nothing to show before a tile is done."""

    def end(self, record_bytes: int) -> None:
        """One more tile, of so many bytes."""
        self._bytes += record_bytes
        elapsed = self._bar.format_dict["elapsed"]
        self._bar.set_postfix_str(f"{self._bytes / 1e6 / max(elapsed, 1e-3):.1f} MB/s", refresh=False)
        self._bar.update()


Say = Callable[[str], None]

SMALLEST_SHARE = 0.5  # of the expected size, which few tiles tell: with less space the disk is sure to run full
USUAL_DATES = 32  # of a series, to guess a tile's size where none could be read


class Preparation:
    """Makes a whole dataset of whatever is there; to be called under the output's lock."""

    def __init__(
        self,
        reader: Reader,
        keys: Mapping[str, Sequence[str]],
        facts: Mapping[str, Any],
        output: Output,
        *,
        workers: int,
        skip_bad: bool,
        say: Say,
    ) -> None:
        """Args:
        reader: of the raw data.
        keys: of the tiles to write, by split.
        facts: all that decides what is written.
        output: gets the files.
        workers: processes; 0: this one.
        skip_bad: leaves out tiles that cannot be read, and records them.
        say: is told what happens.
        """
        self.reader, self.keys, self.facts, self.output = reader, keys, facts, output
        self.workers, self.skip_bad, self.say = workers, skip_bad, say

    def __call__(self) -> None:
        """Runs.

        Raises:
          OSError, ValueError: as `prepare_dataset`.
        """
        plan = self._take_up() or self._start()
        shards = plan.shards()
        missing = self._missing(shards)
        if len(missing) < len(shards):
            self.say(f"{self.reader.card.name}: {len(shards) - len(missing)} of {len(shards)} shards are there already")
        self._check_space(plan, missing)
        with self._advice(shards):
            self._write(missing)
        self._finish(plan)

    def _take_up(self) -> Plan | None:
        """The plan of the run that left its shards here; None where there was none, or one of something else."""
        content = self.output.read_part(FILE_NAME)
        if content is None:
            return None
        try:
            left = Plan.from_json(content)
        except ValueError:
            return None
        if left.facts == self.facts:
            return left
        others = ", ".join(sorted(key for key in self.facts if left.facts[key] != self.facts[key]))
        self.say(f"{self.output.target}: an unfinished run differs in {others}; its shards are not used")
        return None

    def _start(self) -> Plan:
        if self.output.is_whole():
            self.say(f"{self.output.target} holds only the first tiles of each split and will be replaced")
        self.output.start_anew()
        plan = make_plan(self.facts, self._tile_bytes())
        self.output.put_part(FILE_NAME, plan.to_json().encode())
        return plan

    def _tile_bytes(self) -> int:
        """The mean size of a few tiles; where none can be read, what the card lets expect."""
        sizes = []
        keys = self.keys[SPLIT]
        for position in probe_positions(len(keys)):
            try:
                with self._advice([]):
                    sizes.append(num_bytes(read_tile(self.reader, SPLIT, keys[position])))
            except ValueError:
                if not self.skip_bad:
                    raise
        return sum(sizes) // len(sizes) if sizes else _usual_bytes(self.reader.card)

    def _missing(self, shards: Sequence[Shard]) -> list[Shard]:
        sizes = self.output.sizes()
        return [shard for shard in shards if not self._is_written(shard, sizes.get(shard.file_name))]

    def _is_written(self, shard: Shard, size: int | None) -> bool:
        """Whether a shard is there, whole, and without gaps that this run may be able to fill."""
        content = None if size is None else self.output.read_part(shard.part_name)
        if content is None:
            return False
        try:
            part = Part.from_bytes(self.reader.card, shard.split, content)
        except ValueError:
            return False
        has_gaps = bool(part.skipped) and (not self.skip_bad or not part.examples)
        return part.file_bytes == size and not has_gaps

    def _check_space(self, plan: Plan, missing: Sequence[Shard]) -> None:
        remaining = sum(shard.stop - shard.start for shard in missing) * plan.tile_bytes
        free = self.output.free_bytes()
        needed = SMALLEST_SHARE * (remaining if isinstance(self.output.target, pathlib.Path) else 0)
        if free < needed:
            message = f"{free / 1e9:.2f} GB are free, what is missing takes about {remaining / 1e9:.2f} GB"
            raise OSError(errno.ENOSPC, message)

    def _write(self, missing: Sequence[Shard]) -> None:
        name, total = self.reader.card.name, sum(map(len, self.keys.values()))
        done = total - sum(shard.stop - shard.start for shard in missing)
        with ProgressBar(f"preparing {name}", total, done) as bar:
            common: dict[str, Any] = dict(skip_bad=self.skip_bad, progress=bar)
            if self.workers and missing:
                write_shards(self.reader, missing, self.keys, self.output, workers=self.workers, **common)
                return
            for shard in missing:
                keys = self.keys[shard.split][shard.start : shard.stop]
                write_shard(self.reader, shard, keys, self.output, **common)

    @contextlib.contextmanager
    def _advice(self, shards: Sequence[Shard]) -> Iterator[None]:
        """Says how to go on after a bad tile or a dead worker."""
        try:
            yield
        except BadTileError as error:
            kept = self._kept(shards)
            how = "mend or fetch the file and start again, or leave such tiles out: --skip-bad (skip_bad=True)"
            raise ValueError(f"{error}. {kept}; {how}") from error
        except WorkerDiedError as error:
            how = "start again, with fewer workers if memory ran out"
            raise WorkerDiedError(f"dataset {self.reader.card.name!r}: {error}. {self._kept(shards)}; {how}") from error

    def _kept(self, shards: Sequence[Shard]) -> str:
        return f"{len(shards) - len(self._missing(shards))} finished shards are kept"

    def _finish(self, plan: Plan) -> None:
        """Merges the parts in the order of the shards, adds what describes the whole, and publishes it."""
        whole = Whole(self.reader.card, self._parts(plan))
        self._check_examples(whole)
        report = preparation_report.make_report(self.reader.card, plan, whole)
        folder = self.output.scratch / "description"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _describe(folder, self.reader.card, plan, whole, report)
        sizes = self.output.sizes()
        shards = {shard.file_name: sizes[shard.file_name] for shard in plan.shards()}
        (folder / contents.FILE_NAME).write_text(contents.contents_json(shards, folder), encoding="utf-8")
        self.output.publish(folder)
        self.say(preparation_report.report_text(report))

    def _parts(self, plan: Plan) -> Iterator[Part]:
        for shard in plan.shards():
            yield Part.from_bytes(self.reader.card, shard.split, self.output.read_part(shard.part_name) or b"")

    def _check_examples(self, whole: Whole) -> None:
        for split, lengths in whole.shard_lengths.items():
            if not sum(lengths):
                reasons = "; ".join(dict.fromkeys(one.reason for one in whole.skipped if one.split == split))[:500]
                raise ValueError(
                    f"dataset {self.reader.card.name!r}: not one tile of split {split!r} could be read ({reasons}); "
                    "check the source"
                )


def _describe(folder: pathlib.Path, card: DatasetCard, plan: Plan, whole: Whole, report: dict[str, Any]) -> None:
    """Writes the files that stand beside the shards."""
    write_metadata(folder, card, plan.facts["version"], whole.shard_lengths, whole.record_bytes, plan.limit)
    save_statistics(folder, card.name, whole.statistics.result())
    save_lengths(folder, whole.lengths)
    texts = {
        card_json.FILE_NAME: card_json.to_json(card),
        FILE_NAME: plan.to_json(),
        preparation_report.FILE_NAME: preparation_report.report_json(report),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _usual_bytes(card: DatasetCard) -> int:
    arrays = example_spec(card).values()
    return sum(math.prod(USUAL_DATES if n is None else n for n in shape) * dtype.itemsize for shape, dtype in arrays)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EREMOTEIO)
_CANNOT_WRITE = (*_FULL, *_BROKEN, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def prepare_dataset(
    reader: Reader,
    base: pathlib.Path | str,
    version: str,
    *,
    workers: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    source: str | None = None,
    say: Say = to_stderr,
) -> pathlib.Path | str:
    """Writes a reader's examples below `base` unless they are there already.

    A run that was killed or failed leaves its finished shards, and the next one with the same arguments goes on from
    them; of leftovers with other arguments nothing is taken. The result does not depend on `workers` or on
    interruptions. Two processes may call this at once: the second waits and finds the first one's work.

    Args:
      reader: where the examples come from.
      base: folder, or fsspec's address of one ("gs://bucket/folder"), that gets `<name>/<version>`.
      version: "major.minor.patch" of the reader's output.
      workers: processes that write shards; 0: this process does. A script that asks for some must be importable, with
        `if __name__ == "__main__":` around what it does.
      limit: takes only the first tiles of each split, and says so in the report and in the description. A later run
        with another limit, or none, replaces the result.
      skip_bad: leaves out tiles that cannot be read or are not as the card promises, and reports them.
      source: where the raw data are, for the report.
      say: is told what happens, and the report at the end.

    Returns:
      The prepared folder; its address where `base` is one.

    Raises:
      OSError: it cannot be written, the disk is full, or a worker process died; finished shards stay.
      ValueError: a tile is not as it should be (finished shards stay), there is no tile to take statistics from, or
        what is there already is of other tiles, of another card, or without a limit.
    """
    card = reader.card
    check_card(card)
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be 0 (this process) or more")
    keys = chosen_keys(reader, limit)
    facts = plan_facts(reader, version, keys, limit, source)
    if SPLIT not in keys:
        raise ValueError(f"dataset {card.name!r}: no tile of split {SPLIT!r}, which the statistics are taken from")
    with _explained(card.name, base):
        output = _open_output(base, card.name, version)
        if not is_finished(output, card, facts):
            _run(Preparation(reader, keys, facts, output, workers=workers, skip_bad=skip_bad, say=say))
    return output.target


def _open_output(base: pathlib.Path | str, name: str, version: str) -> Output:
    if is_url(base):
        return RemoteOutput(str(base), name, version)
    return LocalOutput(prepared_folder(pathlib.Path(base), name, version))


def _run(preparation: Preparation) -> None:
    output, card, facts = preparation.output, preparation.reader.card, preparation.facts
    try:
        with output.lock():
            if is_finished(output, card, facts):  # another process did it while this one waited
                output.clear()
            else:
                preparation()
    except OSError:
        # Without locks, another process may have finished the same work and renamed the folder under our hands.
        if not is_finished(output, card, facts):
            raise


def is_finished(output: Output, card: DatasetCard, facts: Mapping[str, Any]) -> bool:
    """Whether the dataset is there as `facts` (see `plan_facts`) want it.

    Raises:
      ValueError: what is there is something else, and is not to be replaced without being asked.
      FileNotFoundError, ValueError: what is there lost a file, or one was changed.
    """
    if not output.is_whole():
        return False
    there = _plan_there(output).facts
    if there["limit"] not in (None, facts["limit"]):
        return False  # a sample of the data, which this run replaces
    if there["limit"] != facts["limit"]:
        raise ValueError(f"{output.target} holds all tiles, and a run with a limit does not replace it; {_REMEDY}")
    if there["card"] != facts["card"]:
        stored = (output.read_whole(card_json.FILE_NAME) or b"").decode(errors="replace")
        wanted = card_json.essentials(card)
        differences = "; ".join(card_json.differing(card_json.from_json(stored, str(output.target))[1], wanted))
        raise ValueError(f"{output.target} was prepared for another card of {card.name!r}: {differences}; {_REMEDY}")
    if there["keys"] != facts["keys"]:
        tiles = f"it was made of {there['tiles']}, now there are {facts['tiles']}"
        raise ValueError(f"{output.target} was prepared from other tiles ({tiles}); {_REMEDY}")
    if isinstance(output.target, pathlib.Path):
        check_contents(output.target)
    return True


_REMEDY = "delete it to prepare the dataset anew, or choose another folder"


def _plan_there(output: Output) -> Plan:
    content = output.read_whole(FILE_NAME)
    if content is None:
        raise ValueError(f"{output.target} was not prepared by this release: it has no {FILE_NAME}; {_REMEDY}")
    try:
        return Plan.from_json(content)
    except ValueError as error:
        raise ValueError(f"{output.target}/{FILE_NAME}: {error}; {_REMEDY}") from error


@contextlib.contextmanager
def _explained(name: str, base: pathlib.Path | str) -> Iterator[None]:
    """Says which dataset was to be written where, whatever the file system or the record writer complains about."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        reason = error.strerror or error
        what = f"dataset {name!r} cannot be written to {base}: {reason}; {_remedy(error.errno)}"
        raise OSError(error.errno, what) from error


def _remedy(number: int) -> str:
    place = "(--out; in training, $XDG_CACHE_HOME or --config.data.root)"
    if number in _FULL:
        return f"finished shards stay: free some space and start again, or choose a folder with space for it {place}"
    if number in _BROKEN:
        return f"finished shards stay: start again, or choose another folder {place}"
    return f"choose a folder that can be written {place}"
