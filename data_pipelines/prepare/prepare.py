"""Converts raw data to ArrayRecord files, written through TFDS without TensorFlow, with statistics and a report.

A prepared dataset is a folder `<base>/<name>/<version>` in TFDS' layout, with its card, plan, statistics and report.
Shards are written one by one into a working folder, which is renamed when complete: a folder under the final name can
always be read, and an interrupted run loses no finished shard.
"""

import contextlib
import dataclasses
import errno
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from anysat_jax.errors import reason
from anysat_jax.sensors import get_sensor
from data_pipelines import card as card_json
from data_pipelines.card import DatasetCard, example_spec
from data_pipelines.prepare import report as preparation_report
from data_pipelines.prepare import storage
from data_pipelines.prepare.plan import PLAN_FILE, Plan, PlanFacts, Shard, make_plan, plan_facts, probe_positions
from data_pipelines.prepare.records import check_card, write_metadata
from data_pipelines.prepare.shards import (
    BadTileError,
    ShardJob,
    WorkerDiedError,
    read_tile,
    write_in_processes,
    write_on_cluster,
    write_shard,
)
from data_pipelines.prepare.statistics import SPLIT, ShardStats, merge, save_statistics, sensor_statistics
from data_pipelines.prepare.storage import Output, is_url, read_file, to_stderr
from data_pipelines.prepared import save_lengths
from data_pipelines.reader import Reader

SPACE_FRACTION = 0.5  # of the estimated size: with less free space the disk is certain to run full
USUAL_DATES = 32  # of a series, to estimate a tile's size where no tile can be read

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EREMOTEIO)
_CANNOT_WRITE = (*_FULL, *_BROKEN, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_REMEDY = "delete it to prepare the dataset anew, or choose another folder"


def prepare_dataset(reader: Reader, base: pathlib.Path | str, version: str, **options: Any) -> pathlib.Path | str:
    """Writes a reader's examples below `base` unless they are there already; the arguments are fields of `Preparation`.

    Returns the prepared folder; its address if `base` is one.

    A run that was killed or failed keeps its finished shards, and the next one with the same arguments continues from
    them; shards of other arguments are not used. The result depends neither on `workers` or `cluster` nor on
    interruptions. If two processes call this at once, the second waits and finds the first one's work.

    Raises:
      OSError: the folder cannot be written, the disk is full, or a worker process died; finished shards are kept.
      ValueError: a tile is not what its card promises (finished shards are kept), no tile is left for the statistics,
        held-out tiles are in the training split, too, and `refuse_leaks`, or the folder holds other tiles, another
        card, or a dataset without a limit.
      ImportError: `cluster` needs a package that is not installed.
    """
    return Preparation(reader, base, version, **options).run()


@dataclasses.dataclass(frozen=True)
class Preparation:
    """One run of `prepare_dataset`."""

    reader: Reader  # of the raw data
    # Folder, or an address of fsspec ("gs://bucket/folder"), that gets `<name>/<version>`. For an address the dataset
    # is written into the cache first, then uploaded.
    base: pathlib.Path | str
    version: str  # "major.minor.patch" of the reader's output
    _: dataclasses.KW_ONLY
    # Processes that write shards; 0: this process. A script that uses some must be importable, with
    # `if __name__ == "__main__":` around its work.
    workers: int = 0
    # Address of a Dask scheduler, whose workers write the shards instead. They need this package, the raw data and the
    # output folder under the same paths.
    cluster: str | None = None
    # Takes only the first tiles of each split, which the report and the description mention. A later run with another
    # limit, or none, replaces the result.
    limit: int | None = None
    skip_bad: bool = False  # leaves out tiles that cannot be read or break a promise of the card, and reports them
    # Refuses a dataset in which held-out tiles have the bytes or the ground of training tiles.
    refuse_leaks: bool = False
    source: str | None = None  # where the raw data are, for the report
    say: Callable[[str], None] = to_stderr  # receives messages and, at the end, the report

    def __post_init__(self) -> None:
        check_card(self.card)
        if self.workers < 0 or (self.workers and self.cluster):
            raise ValueError(f"workers is {self.workers}; it must be 0 (this process) or more, and 0 with a cluster")

    @property
    def card(self) -> DatasetCard:
        return self.reader.card

    @functools.cached_property
    def facts(self) -> PlanFacts:
        return plan_facts(self.reader, self.version, self.limit, self.source)

    @functools.cached_property
    def output(self) -> Output:
        uploads = storage.cache_folder() / "uploads" / storage.local_name(self._address())
        target = (uploads if is_url(self.base) else pathlib.Path(self.base)) / self.card.name / self.version
        # The workers of a cluster run in other folders.
        return Output(target.absolute() if self.cluster else target)

    def _address(self) -> str:
        return f"{str(self.base).rstrip('/')}/{self.card.name}/{self.version}"

    def run(self) -> pathlib.Path | str:
        """Prepares the dataset; see `prepare_dataset`."""
        name, facts, target, address = self.card.name, self.facts, self.output.target, self._address()
        if SPLIT not in facts.tiles:
            raise ValueError(f"dataset {name!r}: no tile of split {SPLIT!r}, which the statistics are taken from")
        with _explained(name, self.base):
            if not is_url(self.base):
                self._prepare()
                if self.refuse_leaks:  # of a folder that was finished before, too
                    self._check_leaks(preparation_report.read_report(target))
                return target
            with storage.hold_lock(target.with_name(f".{self.version}.upload.lock"), f"preparing {address}"):
                if not is_finished(address, self.card, facts):
                    self._prepare()
                    storage.upload(target, address)
                    shutil.rmtree(target)
        return address

    def _prepare(self) -> None:
        """Prepares a local folder unless it is finished: lock, plan, shards, statistics, then the final name."""
        output = self.output
        if is_finished(output.target, self.card, self.facts):
            return
        try:
            with output.lock():
                # Another process may have done it while this one waited.
                if is_finished(output.target, self.card, self.facts):
                    output.clear()
                    return
                plan = self._resumable_plan() or self._new_plan()
                shards, missing = plan.shards(), self._missing_shards(plan)
                if len(missing) < len(shards):
                    there = len(shards) - len(missing)
                    self.say(f"{self.card.name}: {there} of {len(shards)} shards are there already")
                needed, free = sum(map(len, missing)) * plan.tile_bytes, shutil.disk_usage(output.parts).free
                if free < SPACE_FRACTION * needed:
                    message = f"{free / 1e9:.2f} GB are free, what is missing takes about {needed / 1e9:.2f} GB"
                    raise OSError(errno.ENOSPC, message)
                with self._advice(plan):
                    self._write_shards(missing, sum(map(len, shards)))
                report = self._describe(plan)
                output.publish()
                self.say(preparation_report.report_text(report))
        except OSError:
            # Without locks, another process may have finished the same work and renamed the folder.
            if not is_finished(output.target, self.card, self.facts):
                raise

    def _resumable_plan(self) -> Plan | None:
        """Reads the plan of an interrupted run; None if there was none, or one of other facts."""
        output = self.output
        try:
            left = Plan.from_json(read_file(output.parts, PLAN_FILE) or b"")
        except ValueError:
            return None
        names = sorted(field.name for field in dataclasses.fields(PlanFacts))
        if others := [name for name in names if getattr(left.facts, name) != getattr(self.facts, name)]:
            self.say(f"{output.target}: an unfinished run differs in {', '.join(others)}; its shards are not used")
            return None
        return left

    def _new_plan(self) -> Plan:
        output, keys, sizes = self.output, self.reader.keys(SPLIT), []
        if storage.is_whole(output.target):
            self.say(f"{output.target} holds only the first tiles of each split and will be replaced")
        output.start_anew()
        for position in probe_positions(self.facts.tiles[SPLIT]):
            try:
                with self._advice(None):
                    tile = read_tile(self.reader, SPLIT, keys[position])
                sizes.append(max(1, sum(np.asarray(value).nbytes for value in tile.values())))
            except ValueError:
                if not self.skip_bad:
                    raise
        arrays = example_spec(self.card).values()
        usual = sum(math.prod(n or USUAL_DATES for n in shape) * dtype.itemsize for shape, dtype in arrays)
        plan = make_plan(self.facts, sum(sizes) // len(sizes) if sizes else usual)
        storage.write_whole(output.parts / PLAN_FILE, plan.to_json().encode())
        return plan

    def _missing_shards(self, plan: Plan) -> list[Shard]:
        """Returns the shards without a complete file, or with gaps that this run may be able to fill."""
        output, missing = self.output, []
        sizes = {path.name: path.stat().st_size for path in output.data.iterdir()}
        for shard in plan.shards():
            try:
                stats = ShardStats.from_json(read_file(output.parts, shard.stats_name) or b"")
                has_gaps = bool(stats.skipped) and (not self.skip_bad or not stats.examples)
                # Shards of earlier releases have no footprints.
                known = len(stats.footprints) == stats.examples
                complete = sizes.get(shard.file_name) == stats.file_bytes and known and not has_gaps
            except ValueError:
                complete = False
            if not complete:
                missing.append(shard)
        return missing

    def _write_shards(self, missing: Sequence[Shard], total: int) -> None:
        """Writes the missing shards of `total` tiles, with a progress bar: per tile here, per shard on workers."""
        done, sensors = total - sum(map(len, missing)), tuple(get_sensor(name) for name in self.card.sensors)
        job = ShardJob(sensors, self.reader, self.output, self.skip_bad)
        # The mean speed (smoothing=0) predicts the time left better, as the tiles of a worker's shard come at once.
        options: dict[str, Any] = dict(total=total, initial=done, unit="tile", mininterval=0.5, smoothing=0)
        with tqdm.tqdm(desc=f"preparing {self.card.name}", **options) as bar:
            if not missing or not (self.workers or self.cluster):
                for shard in missing:
                    write_shard(job, shard, bar.update)
                return
            count, address = min(self.workers, len(missing)), self.cluster
            many = write_on_cluster(job, missing, address) if address else write_in_processes(job, missing, count)
            # Closed at an error here, too, so that no worker outlives it.
            with contextlib.closing(many) as finished:
                for shard in finished:
                    bar.update(len(shard))

    def _describe(self, plan: Plan) -> dict[str, Any]:
        """Merges the shards' statistics in order and writes the files beside the shards; returns the report."""
        output, card, shards = self.output, self.card, plan.shards()
        splits: dict[str, ShardStats] = {}
        shard_lengths: dict[str, list[int]] = {}
        for shard in shards:
            stats = ShardStats.from_json((output.parts / shard.stats_name).read_bytes())
            shard_lengths.setdefault(shard.split, []).append(stats.examples)
            splits[shard.split] = merge(splits[shard.split], stats) if shard.split in splits else stats
        for split, one in splits.items():
            if not one.examples:
                reasons = "; ".join(dict.fromkeys(tile.reason for tile in one.skipped))[:500]
                what = f"not one tile of split {split!r} could be read ({reasons})"
                raise ValueError(f"dataset {card.name!r}: {what}; check the source")
        report = preparation_report.make_report(card, plan, splits)
        self._check_leaks(report)
        sizes = {split: one.record_bytes for split, one in splits.items()}
        write_metadata(output.data, card, plan.facts, shard_lengths, sizes)
        save_statistics(output.data, card.name, sensor_statistics(splits))
        save_lengths(output.data, {split: one.lengths for split, one in splits.items()})
        for name, text in (
            (card_json.FILE_NAME, card_json.to_json(card)),
            (PLAN_FILE, plan.to_json()),
            (preparation_report.REPORT_FILE, preparation_report.report_json(report)),
        ):
            (output.data / name).write_text(text, encoding="utf-8")
        storage.write_manifest(output.data, [shard.file_name for shard in shards])
        return report

    def _check_leaks(self, report: dict[str, Any]) -> None:
        if self.refuse_leaks and (leaks := preparation_report.leaks_text(report)):
            remedy = "take them out of one of the splits, or prepare without --refuse-leaks (refuse_leaks=True)"
            raise ValueError(f"dataset {self.card.name!r}: {leaks}; {remedy}")

    @contextlib.contextmanager
    def _advice(self, plan: Plan | None) -> Iterator[None]:
        """Adds to the error of a bad tile or a dead worker what was kept and how to continue."""
        try:
            yield
        except (BadTileError, WorkerDiedError) as error:
            shards = plan.shards() if plan else []
            kept = f"{len(shards) - len(self._missing_shards(plan)) if plan else 0} finished shards are kept"
            if isinstance(error, BadTileError):
                how = "mend or fetch the file and start again, or leave such tiles out: --skip-bad (skip_bad=True)"
                raise ValueError(f"{error}. {kept}; {how}") from error
            # The file that a killed process leaves names the shard that it was writing.
            names = [one.file_name for one in shards]
            left = [name for name in names if (self.output.parts / storage.temporary_name(name, error.pid)).exists()]
            at = f" while it wrote {left[0]}" if error.pid and left else ""
            how = "start again, with fewer workers if memory ran out"
            raise WorkerDiedError(f"dataset {self.card.name!r}: {error}{at}. {kept}; {how}") from error


def is_finished(target: pathlib.Path | str, card: DatasetCard, facts: PlanFacts) -> bool:
    """Returns whether a folder or an address holds the dataset that `facts` describe.

    Raises:
      ValueError: it holds something else, which must not be replaced without notice.
      FileNotFoundError, ValueError: a file of the folder is missing or was changed.
    """
    if not storage.is_whole(target):
        return False
    content = read_file(target, PLAN_FILE)
    if content is None:
        raise ValueError(f"{target} was not prepared by this release: it has no {PLAN_FILE}; {_REMEDY}")
    try:
        there = Plan.from_json(content).facts
    except ValueError as error:
        raise ValueError(f"{target}/{PLAN_FILE}: {error}; {_REMEDY}") from error
    if there.limit not in (None, facts.limit):
        # A sample of the data, which this run replaces.
        return False
    if there.limit != facts.limit:
        raise ValueError(f"{target} holds all tiles, and a run with a limit does not replace it; {_REMEDY}")
    if there.card != facts.card:
        stored = (read_file(target, card_json.FILE_NAME) or b"").decode(errors="replace")
        card_json.check_essentials(str(target), card_json.from_json(stored, str(target))[1], card)
    if there.keys != facts.keys:
        tiles = f"it was made of {there.tiles}, now there are {facts.tiles}"
        raise ValueError(f"{target} was prepared from other tiles ({tiles}); {_REMEDY}")
    if isinstance(target, pathlib.Path):
        storage.check_manifest(target)
    return True


@contextlib.contextmanager
def _explained(name: str, base: pathlib.Path | str) -> Iterator[None]:
    """Adds the dataset, the folder and a remedy to errors of writing."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        place = "(--out; in training, $XDG_CACHE_HOME or --config.data.root)"
        remedy = f"choose a folder that can be written {place}"
        if error.errno in _FULL:
            space = "free some space and start again, or choose a folder with space for it"
            remedy = f"finished shards stay: {space} {place}"
        elif error.errno in _BROKEN:
            remedy = f"finished shards stay: start again, or choose another folder {place}"
        what = f"dataset {name!r} cannot be written to {base}: {reason(error)}; {remedy}"
        raise OSError(error.errno, what) from error
