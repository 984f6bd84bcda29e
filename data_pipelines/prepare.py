"""From a reader to ArrayRecord files, written through TFDS without TensorFlow, with the statistics of the same pass.

A prepared dataset is a folder `<base>/<name>/<version>` in TFDS' layout plus `statistics.json`. It is written beside
under a temporary name and renamed when whole, so that whatever carries that name can be read.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import pathlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from data_pipelines.card import DatasetCard, Example, Reader, num_tiles
from data_pipelines.features import check_example, complete_example, tfds_features
from data_pipelines.prepared import open_records, prepared_folder
from data_pipelines.statistics import SPLIT, DatasetStatistics, save_statistics

SHARD_BYTES = 512 * 2**20
GROUP_BYTES = 32 * 2**20  # TFDS rewrites its metadata after each group of examples, so that a group must not be one
_CANNOT_WRITE = tuple(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST", "EIO")
)
SMALLEST_SHARE = 0.5  # of the uncompressed size: with less space than that the disk is sure to run full


def prepare_dataset(reader: Reader, base: pathlib.Path, version: str) -> pathlib.Path:
    """Writes a reader's examples below `base` unless they are there already.

    Two processes may call this at once: the second waits and finds the first one's work. What a killed process left
    behind is removed.

    Args:
      reader: where the examples come from.
      base: folder that gets `<name>/<version>`.
      version: "major.minor.patch" of the reader's output.

    Returns:
      The prepared folder.

    Raises:
      OSError: the folder cannot be written or the disk is full; nothing stays behind.
      ValueError: an example is not as it should be, or there is no tile to take statistics from.
    """
    target = prepared_folder(base, reader.card.name, version)
    if target.is_dir():
        return target
    with _explained(reader.card.name, base):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{version}.lock")) as locked:
            if locked:
                _remove_leftovers(target)
            if not target.is_dir():
                _prepare_into(reader, target, version)
    return target


def _prepare_into(reader: Reader, target: pathlib.Path, version: str) -> None:
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=_leftover_prefix(target), dir=target.parent))
    try:
        _write(reader, temporary, version)
        temporary.chmod(0o755)
        _rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Renames; a folder that another machine put there in the meantime is as good as ours."""
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _write(reader: Reader, folder: pathlib.Path, version: str) -> None:
    card, splits = reader.card, reader.splits()
    if SPLIT not in splits:
        raise ValueError(f"dataset {card.name!r}: no tile of split {SPLIT!r}, which the statistics are taken from")
    first = reader.example(SPLIT, reader.keys(SPLIT)[0])
    _check_space(folder, num_tiles(reader) * _num_bytes(first))
    gatherer = DatasetStatistics(card)
    writer = _open_writer(card, folder, version, max(1, SHARD_BYTES // _num_bytes(first)))
    counts = _write_splits(reader, writer, gatherer)
    save_statistics(folder, card.name, gatherer.result())
    for split, count in counts.items():
        _check_written(card, folder, split, count)


def _write_splits(reader: Reader, writer: Any, gatherer: DatasetStatistics) -> dict[str, int]:
    import tqdm

    writer.initialize_splits(list(reader.splits()))
    counts = {}
    description = f"preparing {reader.card.name}"
    with tqdm.tqdm(total=num_tiles(reader), unit="tile", desc=description, mininterval=0.5) as bar:
        for split in reader.splits():
            counts[split] = 0
            for group in _groups(_checked(reader, split, gatherer, bar)):
                with _os_errors():
                    writer.add_examples({split: group})
                counts[split] += len(group)
    with _os_errors():
        writer.close_all()
    return counts


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """The record writer tells of a full disk by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        code = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(code, str(error)) from error


def _checked(reader: Reader, split: str, gatherer: DatasetStatistics, bar: Any) -> Iterator[Example]:
    seen: set[str] = set()
    for key in reader.keys(split):
        if key in seen:
            raise ValueError(f"dataset {reader.card.name!r}: tile {key!r} comes twice in split {split!r}")
        seen.add(key)
        example = complete_example(reader.card, reader.example(split, key))
        check_example(reader.card, key, example)
        gatherer.update(split, example)
        bar.update()
        yield example


def _groups(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while first := next(examples, None):
        count = min(63, GROUP_BYTES // _num_bytes(first))
        yield [first, *itertools.islice(examples, count)]


def _open_writer(card: DatasetCard, folder: pathlib.Path, version: str, shard_length: int) -> Any:
    """TFDS' sequential writer. A GeneratorBasedBuilder would hold a split in memory and, past 1 GB, need TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    identity = DatasetIdentity(
        name=card.name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=card.title,
        features=tfds.features.FeaturesDict(tfds_features(card)),
        homepage=card.url or None,
        citation=card.citation or None,
        license=card.licence or None,
    )
    return tfds.core.SequentialWriter(info, max_examples_per_shard=shard_length, file_format="array_record")


def _check_written(card: DatasetCard, folder: pathlib.Path, split: str, count: int) -> None:
    """Reads back the number of tiles and the last one: a writer that failed quietly must not be renamed to whole."""
    records = open_records(card.name, folder, split)
    if len(records) != count:
        raise OSError(errno.EIO, f"wrote {count} tiles of split {split!r} but only {len(records)} can be read back")
    records[count - 1]


def _num_bytes(example: Example) -> int:
    return max(1, sum(np.asarray(value).nbytes for value in example.values()))


def _check_space(folder: pathlib.Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < SMALLEST_SHARE * num_bytes:
        message = f"{free / 1e9:.2f} GB are free, the dataset takes about {num_bytes / 1e9:.2f} GB before compression"
        raise OSError(errno.ENOSPC, message)


@contextlib.contextmanager
def _explained(name: str, base: pathlib.Path) -> Iterator[None]:
    """Says which dataset was to be written where, whatever the file system or the record writer complains about."""
    remedy = "point $XDG_CACHE_HOME (or, for embedded data, --config.data.root) to a folder with space for it"
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        reason = error.strerror or error
        raise OSError(error.errno, f"dataset {name!r} cannot be written to {base}: {reason}; {remedy}") from error


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
    """Holds a lock that dies with its process; False where the file system has no locks."""
    with path.open("w") as file:
        yield _take_lock(file)


def _take_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            f"another process is preparing {pathlib.Path(file.name).parent}; waiting for it",
            file=sys.stderr,
            flush=True,
        )
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _leftover_prefix(target: pathlib.Path) -> str:
    """Names the machine too: on a shared file system, locks may not reach across machines."""
    return f".{target.name}.incomplete-{socket.gethostname()}-"


def _remove_leftovers(target: pathlib.Path) -> None:
    for path in target.parent.glob(f"{_leftover_prefix(target)}*"):
        shutil.rmtree(path, ignore_errors=True)
