"""Converts raw data to ArrayRecord files, written through TFDS without TensorFlow, with statistics and a report.

A prepared dataset is a folder `<base>/<name>/<version>` in TFDS' layout, with its card, plan, statistics and report.
Shards are written one by one into a working folder, which is renamed when complete: a folder under the final name can
always be read, and an interrupted run loses no finished shard.
"""

import contextlib
import dataclasses
import errno
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from anysat_jax.sensors import get_sensor
from data_pipelines import card as card_json
from data_pipelines.card import DatasetCard, example_spec
from data_pipelines.prepare import report as preparation_report
from data_pipelines.prepare.plan import (
    PLAN_FILE,
    Plan,
    PlanFacts,
    Shard,
    chosen_keys,
    make_plan,
    num_bytes,
    plan_facts,
    probe_positions,
)
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
from data_pipelines.prepare.statistics import SPLIT, DatasetStats, ShardStats, save_statistics
from data_pipelines.prepare.storage import (
    Output,
    cache_folder,
    check_manifest,
    hold_lock,
    is_url,
    is_whole,
    local_name,
    read_file,
    temporary_name,
    to_stderr,
    upload,
    write_manifest,
    write_whole,
)
from data_pipelines.prepared import prepared_folder, save_lengths
from data_pipelines.reader import Reader

Say = Callable[[str], None]

SPACE_FRACTION = 0.5  # of the estimated size: with less free space the disk is certain to run full
USUAL_DATES = 32  # of a series, to estimate a tile's size where no tile can be read

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EREMOTEIO)
_CANNOT_WRITE = (*_FULL, *_BROKEN, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_REMEDY = "delete it to prepare the dataset anew, or choose another folder"


def prepare_dataset(
    reader: Reader,
    base: pathlib.Path | str,
    version: str,
    *,
    workers: int = 0,
    cluster: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    source: str | None = None,
    say: Say = to_stderr,
) -> pathlib.Path | str:
    """Writes a reader's examples below `base` unless they are there already.

    A run that was killed or failed keeps its finished shards, and the next one with the same arguments continues from
    them; shards of other arguments are not used. The result depends neither on `workers` or `cluster` nor on
    interruptions. If two processes call this at once, the second waits and finds the first one's work.

    Args:
      reader: of the raw data.
      base: folder, or an address of fsspec ("gs://bucket/folder"), that gets `<name>/<version>`. For an address the
        dataset is written into the cache first, then uploaded.
      version: "major.minor.patch" of the reader's output.
      workers: processes that write shards; 0: this process. A script that uses some must be importable, with
        `if __name__ == "__main__":` around its work.
      cluster: address of a Dask scheduler, whose workers write the shards instead. They need this package, the raw data
        and the output folder under the same paths.
      limit: takes only the first tiles of each split, which the report and the description mention. A later run with
        another limit, or none, replaces the result.
      skip_bad: leaves out tiles that cannot be read or break a promise of the card, and reports them.
      source: where the raw data are, for the report.
      say: receives messages and, at the end, the report.

    Returns:
      The prepared folder; its address if `base` is one.

    Raises:
      OSError: the folder cannot be written, the disk is full, or a worker process died; finished shards are kept.
      ValueError: a tile is not what its card promises (finished shards are kept), no tile is left for the statistics,
        or the folder holds other tiles, another card, or a dataset without a limit.
      ImportError: `cluster` needs a package that is not installed.
    """
    card = reader.card
    check_card(card)
    if workers < 0 or (workers and cluster):
        raise ValueError(f"workers is {workers}; it must be 0 (this process) or more, and 0 with a cluster")
    keys = chosen_keys(reader, limit)
    facts = plan_facts(reader, version, keys, limit, source)
    if SPLIT not in keys:
        raise ValueError(f"dataset {card.name!r}: no tile of split {SPLIT!r}, which the statistics are taken from")
    remote = f"{str(base).rstrip('/')}/{card.name}/{version}" if is_url(base) else None
    folder = cache_folder() / "uploads" / local_name(remote) if remote else pathlib.Path(base)
    target = prepared_folder(folder, card.name, version)
    output = Output(target.absolute() if cluster else target)  # the workers of a cluster run in other folders
    job = ShardJob(tuple(get_sensor(name) for name in card.sensors), reader, output, skip_bad)
    with _explained(card.name, base):
        if remote is None:
            _prepare(job, facts, keys, workers, cluster, say)
            return target
        with hold_lock(target.with_name(f".{version}.upload.lock"), f"preparing {remote}"):
            if not is_finished(remote, card, facts):
                _prepare(job, facts, keys, workers, cluster, say)
                upload(target, remote)
                shutil.rmtree(target)
    return remote


def _prepare(
    job: ShardJob, facts: PlanFacts, keys: dict[str, list[str]], workers: int, cluster: str | None, say: Say
) -> None:
    """Prepares a local folder unless it is finished: lock, plan, shards, statistics, then the final name."""
    output, card = job.output, job.reader.card
    if is_finished(output.target, card, facts):
        return
    try:
        with output.lock():
            if is_finished(output.target, card, facts):  # another process did it while this one waited
                output.clear()
                return
            plan = _resumable_plan(output, facts, say) or _new_plan(job, facts, keys[SPLIT], say)
            missing = _missing_shards(job, plan)
            if len(missing) < len(plan.shards()):
                there = len(plan.shards()) - len(missing)
                say(f"{card.name}: {there} of {len(plan.shards())} shards are there already")
            _check_space(output, missing, plan)
            with _advice(job, plan):
                _write_shards(job, missing, sum(map(len, plan.shards())), workers, cluster)
            report = _describe(job, plan)
            output.publish()
            say(preparation_report.report_text(report))
    except OSError:
        # Without locks, another process may have finished the same work and renamed the folder.
        if not is_finished(output.target, card, facts):
            raise


def is_finished(target: pathlib.Path | str, card: DatasetCard, facts: PlanFacts) -> bool:
    """Returns whether a folder or an address holds the dataset that `facts` describe.

    Raises:
      ValueError: it holds something else, which must not be replaced without notice.
      FileNotFoundError, ValueError: a file of the folder is missing or was changed.
    """
    if not is_whole(target):
        return False
    content = read_file(target, PLAN_FILE)
    if content is None:
        raise ValueError(f"{target} was not prepared by this release: it has no {PLAN_FILE}; {_REMEDY}")
    try:
        there = Plan.from_json(content).facts
    except ValueError as error:
        raise ValueError(f"{target}/{PLAN_FILE}: {error}; {_REMEDY}") from error
    if there.limit not in (None, facts.limit):
        return False  # a sample of the data, which this run replaces
    if there.limit != facts.limit:
        raise ValueError(f"{target} holds all tiles, and a run with a limit does not replace it; {_REMEDY}")
    if there.card != facts.card:
        stored = (read_file(target, card_json.FILE_NAME) or b"").decode(errors="replace")
        wanted = card_json.essentials(card)
        differences = "; ".join(card_json.differing(card_json.from_json(stored, str(target))[1], wanted))
        raise ValueError(f"{target} was prepared for another card of {card.name!r}: {differences}; {_REMEDY}")
    if there.keys != facts.keys:
        tiles = f"it was made of {there.tiles}, now there are {facts.tiles}"
        raise ValueError(f"{target} was prepared from other tiles ({tiles}); {_REMEDY}")
    if isinstance(target, pathlib.Path):
        check_manifest(target)
    return True


def _resumable_plan(output: Output, facts: PlanFacts, say: Say) -> Plan | None:
    """Reads the plan of an interrupted run; None if there was none, or one of other facts."""
    try:
        left = Plan.from_json(read_file(output.parts, PLAN_FILE) or b"")
    except ValueError:
        return None
    names = sorted(field.name for field in dataclasses.fields(facts))
    if others := [name for name in names if getattr(left.facts, name) != getattr(facts, name)]:
        say(f"{output.target}: an unfinished run differs in {', '.join(others)}; its shards are not used")
        return None
    return left


def _new_plan(job: ShardJob, facts: PlanFacts, keys: Sequence[str], say: Say) -> Plan:
    output = job.output
    if is_whole(output.target):
        say(f"{output.target} holds only the first tiles of each split and will be replaced")
    output.start_anew()
    sizes = []
    for position in probe_positions(len(keys)):
        try:
            with _advice(job, None):
                sizes.append(num_bytes(read_tile(job.reader, SPLIT, keys[position])))
        except ValueError:
            if not job.skip_bad:
                raise
    plan = make_plan(facts, sum(sizes) // len(sizes) if sizes else _usual_bytes(job.reader.card))
    write_whole(output.parts / PLAN_FILE, plan.to_json().encode())
    return plan


def _usual_bytes(card: DatasetCard) -> int:
    arrays = example_spec(card).values()
    return sum(math.prod(USUAL_DATES if n is None else n for n in shape) * dtype.itemsize for shape, dtype in arrays)


def _missing_shards(job: ShardJob, plan: Plan) -> list[Shard]:
    """Returns the shards without a complete file, or with gaps that this run may be able to fill."""
    missing, sizes = [], {path.name: path.stat().st_size for path in job.output.data.iterdir()}
    for shard in plan.shards():
        try:
            stats = ShardStats.from_json(read_file(job.output.parts, shard.stats_name) or b"")
            has_gaps = bool(stats.skipped) and (not job.skip_bad or not stats.examples)
            complete = sizes.get(shard.file_name) == stats.file_bytes and not has_gaps
        except ValueError:
            complete = False
        if not complete:
            missing.append(shard)
    return missing


def _check_space(output: Output, missing: Sequence[Shard], plan: Plan) -> None:
    needed, free = sum(map(len, missing)) * plan.tile_bytes, shutil.disk_usage(output.parts).free
    if free < SPACE_FRACTION * needed:
        message = f"{free / 1e9:.2f} GB are free, what is missing takes about {needed / 1e9:.2f} GB"
        raise OSError(errno.ENOSPC, message)


def _write_shards(job: ShardJob, missing: Sequence[Shard], total: int, workers: int, cluster: str | None) -> None:
    """Writes the missing shards of `total` tiles, with a progress bar: per tile here, per shard on workers."""
    import tqdm

    done = total - sum(map(len, missing))
    # The mean speed (smoothing=0) predicts the time left better, as the tiles of a worker's shard come at once.
    options: dict[str, Any] = dict(total=total, initial=done, unit="tile", mininterval=0.5, smoothing=0)
    with tqdm.tqdm(desc=f"preparing {job.reader.card.name}", **options) as bar:
        if not missing or not (workers or cluster):
            for shard in missing:
                write_shard(job, shard, bar.update)
            return
        if cluster:
            finished = write_on_cluster(job, missing, cluster)
        else:
            finished = write_in_processes(job, missing, min(workers, len(missing)))
        with contextlib.closing(finished):
            for shard in finished:
                bar.update(len(shard))


def _describe(job: ShardJob, plan: Plan) -> dict[str, Any]:
    """Merges the shards' statistics in order and writes the files beside the shards; returns the report."""
    output, card, shards = job.output, job.reader.card, plan.shards()
    parts = (ShardStats.from_json((output.parts / one.stats_name).read_bytes()) for one in shards)
    stats = DatasetStats.merged(card, parts)
    for split, one in stats.splits.items():
        if not one.examples:
            reasons = "; ".join(dict.fromkeys(tile.reason for tile in one.skipped))[:500]
            raise ValueError(
                f"dataset {card.name!r}: not one tile of split {split!r} could be read ({reasons}); check the source"
            )
    report = preparation_report.make_report(card, plan, stats)
    record_bytes = {split: one.record_bytes for split, one in stats.splits.items()}
    write_metadata(output.data, card, plan.facts.version, stats.shard_lengths, record_bytes, plan.limit)
    save_statistics(output.data, card.name, stats.sensor_statistics())
    save_lengths(output.data, stats.lengths)
    texts = {
        card_json.FILE_NAME: card_json.to_json(card),
        PLAN_FILE: plan.to_json(),
        preparation_report.REPORT_FILE: preparation_report.report_json(report),
    }
    for name, text in texts.items():
        (output.data / name).write_text(text, encoding="utf-8")
    write_manifest(output.data, [shard.file_name for shard in shards])
    return report


@contextlib.contextmanager
def _advice(job: ShardJob, plan: Plan | None) -> Iterator[None]:
    """Adds to the error of a bad tile or a dead worker what was kept and how to continue."""
    try:
        yield
    except (BadTileError, WorkerDiedError) as error:
        shards = plan.shards() if plan else []
        kept = f"{len(shards) - len(_missing_shards(job, plan)) if plan else 0} finished shards are kept"
        if isinstance(error, BadTileError):
            how = "mend or fetch the file and start again, or leave such tiles out: --skip-bad (skip_bad=True)"
            raise ValueError(f"{error}. {kept}; {how}") from error
        # The file that a killed process leaves names the shard that it was writing.
        names = [one.file_name for one in shards]
        left = [name for name in names if (job.output.parts / temporary_name(name, error.pid)).exists()]
        at = f" while it wrote {left[0]}" if error.pid and left else ""
        how = "start again, with fewer workers if memory ran out"
        raise WorkerDiedError(f"dataset {job.reader.card.name!r}: {error}{at}. {kept}; {how}") from error


@contextlib.contextmanager
def _explained(name: str, base: pathlib.Path | str) -> Iterator[None]:
    """Adds the dataset, the folder and a remedy to errors of writing."""
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
