"""Writing one shard: read, check, count, serialise, and give the whole file to the output."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from data_pipelines.card import DatasetCard, Example
from data_pipelines.prepare.plan import Shard
from data_pipelines.prepare.records import check_example, complete_example, tfds_features
from data_pipelines.prepare.report import Part, Skipped
from data_pipelines.prepare.storage import Output, temporary_name
from data_pipelines.reader import Reader
from data_pipelines.windows import block_card, split_example

# One record a group: random access is quick. Compression would save a tenth of noisy images and perhaps half of an
# optical series, and make records three times slower to read.
RECORD_OPTIONS = "group_size:1,uncompressed"
# What the machine lacks, which no other tile would have either.
_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class BadTileError(ValueError):
    """A tile cannot be read, or is not as its card promises."""

    def __init__(self, dataset: str, split: str, tile: str, reason: str) -> None:
        super().__init__(dataset, split, tile, reason)
        self.dataset, self.split, self.tile, self.reason = dataset, split, tile, reason

    def __str__(self) -> str:
        return f"dataset {self.dataset!r}: tile {self.tile!r} of split {self.split!r}: {self.reason}"


class Progress(Protocol):
    """Is told of each tile."""

    def begin(self, tile: str) -> None:
        """The tile is about to be read."""

    def end(self, record_bytes: int) -> None:
        """It is written, in so many bytes, or left out."""


def read_tile(reader: Reader, split: str, key: str) -> Example:
    """A complete example that keeps the promises of its card.

    Raises:
      BadTileError: it cannot be read, or breaks a promise. Other errors of the reader are not of the tile.
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


def write_shard(
    reader: Reader, shard: Shard, keys: Sequence[str], output: Output, *, skip_bad: bool, progress: Progress
) -> None:
    """Writes a shard under a temporary name, reads it back and gives it to the output, its part first.

    Args:
      reader: of the raw data.
      shard: what is written.
      keys: of its tiles.
      output: gets the files.
      skip_bad: leaves out tiles that cannot be read, and records them.
      progress: is told of each tile.

    Raises:
      BadTileError: a tile cannot be read, and is not to be left out.
      OSError: the shard cannot be written, or not be read back.
    """
    temporary = output.scratch / temporary_name(shard.file_name)
    try:
        part = _write_records(reader, shard, keys, temporary, skip_bad=skip_bad, progress=progress)
        _check_written(temporary, part.examples * reader.card.blocks**2)
        part.file_bytes = temporary.stat().st_size
        output.put_part(shard.part_name, part.to_bytes())
        output.put_data(temporary, shard.file_name)
    finally:
        temporary.unlink(missing_ok=True)


def _write_records(
    reader: Reader, shard: Shard, keys: Sequence[str], path: pathlib.Path, *, skip_bad: bool, progress: Progress
) -> Part:
    from array_record.python.array_record_module import ArrayRecordWriter

    part, serialise = Part(reader.card, shard.split), Serialiser(reader.card)
    with record_errors():
        writer = ArrayRecordWriter(os.fspath(path), RECORD_OPTIONS)
    try:
        for key in keys:
            progress.begin(key)
            size = _write_tile(reader, shard.split, key, writer, serialise, part, skip_bad=skip_bad)
            progress.end(size)
    finally:
        with record_errors():
            writer.close()
    return part


def _write_tile(
    reader: Reader, split: str, key: str, writer: Any, serialise: "Serialiser", part: Part, *, skip_bad: bool
) -> int:
    try:
        example = read_tile(reader, split, key)
    except BadTileError as error:
        if not skip_bad:
            raise
        part.skipped.append(Skipped(split, key, error.reason))
        return 0
    size = 0
    for block in split_example(reader.card, example):
        record = serialise(block)
        with record_errors():
            writer.write(record)
        size += len(record)
    part.update(example, size)
    return size


class Serialiser:
    """TFDS' own encoding of an example, or of a block of it, as bytes; TensorFlow is not needed.

    Equal examples give equal bytes.
    """

    def __init__(self, card: DatasetCard) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import example_serializer

        self._features = tfds.features.FeaturesDict(tfds_features(block_card(card)))
        self._serialiser = example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, example: Example) -> bytes:
        message = self._serialiser.get_tf_example(self._features.encode_example(example))
        return message.SerializeToString(deterministic=True)  # else the order of the fields differs between processes


def _check_written(path: pathlib.Path, count: int) -> None:
    """A writer that failed quietly must not pass for whole: counts the records, and reads the last one."""
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
    """The record writer tells of a full disk by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT)
        code = next((code for code in codes if os.strerror(code) in str(error)), errno.EIO)
        raise OSError(code, str(error)) from error
