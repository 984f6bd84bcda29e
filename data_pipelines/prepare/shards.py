"""Writing one shard: tiles are read, checked, counted and serialised into an ArrayRecord file."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from anysat_jax.sensors import Sensor, register
from data_pipelines.card import DatasetCard, Example
from data_pipelines.prepare.plan import Shard
from data_pipelines.prepare.records import check_example, complete_example, tfds_features
from data_pipelines.prepare.report import ShardStats, Skipped
from data_pipelines.prepare.storage import Output, move_whole, temporary_name, write_whole
from data_pipelines.reader import Reader
from data_pipelines.windows import block_card, split_example

# One record per group, for fast random access. Compression would save a tenth of noisy images and perhaps half of an
# optical series, and make records three times slower to read.
RECORD_OPTIONS = "group_size:1,uncompressed"
# Faults of the machine, which would spoil every other tile, too.
_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class BadTileError(ValueError):
    """A tile cannot be read, or is not what its card promises."""

    def __init__(self, dataset: str, split: str, tile: str, reason: str) -> None:
        super().__init__(dataset, split, tile, reason)
        self.dataset, self.split, self.tile, self.reason = dataset, split, tile, reason

    def __str__(self) -> str:
        return f"dataset {self.dataset!r}: tile {self.tile!r} of split {self.split!r}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """What all shards of a preparation share; it is pickled to worker processes.

    Attributes:
      sensors: the dataset's, which a worker process may have to register.
      reader: of the raw data.
      output: folder of the files.
      skip_bad: leave out tiles that cannot be read, and record them.
    """

    sensors: tuple[Sensor, ...]
    reader: Reader
    output: Output
    skip_bad: bool


def read_tile(reader: Reader, split: str, key: str) -> Example:
    """Reads a complete example that keeps the promises of its card.

    Raises:
      BadTileError: the tile cannot be read, or breaks a promise. Other errors of the reader are faults of its code.
    """
    card = reader.card
    try:
        example = complete_example(card, reader.example(split, key))
        check_example(card, key, example)
    except OSError as error:
        if error.errno in _MACHINE:
            raise
        raise BadTileError(card.name, split, key, str(error)) from error
    except ValueError as error:
        raise BadTileError(card.name, split, key, str(error)) from error
    except Exception as error:
        error.add_note(f"while reading tile {key!r} of split {split!r} of dataset {card.name!r}")
        raise
    return example


def write_shard(job: ShardJob, shard: Shard, on_tile: Callable[[], Any] = lambda: None) -> None:
    """Writes a shard under a temporary name, reads it back, and renames it; its statistics are written before.

    Args:
      job: reader, output and options.
      shard: the tiles to write.
      on_tile: called after each tile.

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
        _check_written(temporary, stats.examples * job.reader.card.blocks**2)
        stats.file_bytes = temporary.stat().st_size
        write_whole(output.parts / shard.stats_name, stats.to_json())
        move_whole(temporary, output.data / shard.file_name)
    finally:
        temporary.unlink(missing_ok=True)


def _write_records(job: ShardJob, shard: Shard, path: pathlib.Path, on_tile: Callable[[], Any]) -> ShardStats:
    from array_record.python.array_record_module import ArrayRecordWriter

    card = job.reader.card
    stats, serialise = ShardStats.empty(card, shard.split), Serialiser(card)
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
            on_tile()
    finally:
        with record_errors():
            writer.close()
    return stats


class Serialiser:
    """Encodes an example, or a block of one, as TFDS does, without TensorFlow; equal examples give equal bytes."""

    def __init__(self, card: DatasetCard) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import example_serializer

        self._features = tfds.features.FeaturesDict(tfds_features(block_card(card)))
        self._serialiser = example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, example: Example) -> bytes:
        message = self._serialiser.get_tf_example(self._features.encode_example(example))
        return message.SerializeToString(deterministic=True)  # else the order of fields differs between processes


def _check_written(path: pathlib.Path, count: int) -> None:
    """Counts the records and reads the last one, as the writer may fail without an error."""
    from array_record.python.array_record_module import ArrayRecordReader

    with record_errors():
        reader = ArrayRecordReader(os.fspath(path))
        try:
            found = reader.num_records()
            if found == count and count:
                reader.read([count - 1])
        finally:
            reader.close()
    if found != count:
        raise OSError(errno.EIO, f"wrote {count} tiles to {path.name} but only {found} can be read back")


@contextlib.contextmanager
def record_errors() -> Iterator[None]:
    """Converts the RuntimeErrors of the record writer and reader, also of a full disk, to OSErrors."""
    try:
        yield
    except RuntimeError as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT)
        code = next((code for code in codes if os.strerror(code) in str(error)), errno.EIO)
        raise OSError(code, str(error)) from error
