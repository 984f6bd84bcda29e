"""Files inside uncompressed tar archives, read where they are: nothing is unpacked, so no name leads anywhere."""

import functools
import os
import pathlib
import posixpath
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from data_pipelines.files import explained

_EXPECTED = "an uncompressed tar archive"
_AGAIN = "download it again"


def tar_members(path: pathlib.Path) -> Mapping[str, tuple[int, int]]:
    """Where the regular files of an archive are: first byte and length, by name ("folder/file").

    Raises:
      FileNotFoundError, ValueError: the archive is missing, unreadable or cut off.
    """
    with explained(path, _EXPECTED):
        state = path.stat()
    return _members(path, (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=32)  # each lists thousands of files
def _members(path: pathlib.Path, state: tuple[int, int]) -> dict[str, tuple[int, int]]:
    with explained(path, _EXPECTED, tarfile.TarError), tarfile.open(path, "r:") as archive:
        found = {posixpath.normpath(m.name): (m.offset_data, m.size) for m in archive if m.isreg()}
        end = archive.offset
    _check_end(path, end, state[1])
    return found


def _check_end(path: pathlib.Path, end: int, size: int) -> None:
    """Where the last file ends there must be a block of zeros; tarfile takes any damaged header for the end."""
    with explained(path, _EXPECTED), path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError(f"{path} is cut off at byte {size}; expected {end + tarfile.BLOCKSIZE} or more; {_AGAIN}")
    if any(block):
        raise ValueError(f"{path} is damaged at byte {end}; expected a file's header, or the end; {_AGAIN}")


def read_member(path: pathlib.Path, name: str) -> bytes | None:
    """The content of a file in an archive; None if there is no such file.

    Raises:
      FileNotFoundError, ValueError: the archive is missing, unreadable or cut off.
    """
    place = tar_members(path).get(name)
    if place is None:
        return None
    with explained(path, _EXPECTED), path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), place[1], place[0])


_POLYNOMIAL = 0x82F63B78  # reflected
_PIECE = 64  # bytes
_MASK_DELTA = 0xA282EAD8


def crc32c(content: bytes) -> int:
    """CRC-32C of some bytes."""
    state = np.frombuffer(content, np.uint8)
    head = np.full(min(4, state.size), 0xFF, np.uint8)
    start = 0xFFFFFFFF >> (8 * head.size) if head.size < 4 else 0  # what the start value leaves to texts below 4 bytes
    pieces, levels = 1, 0
    while pieces * _PIECE < state.size:
        pieces, levels = 2 * pieces, levels + 1
    padded = np.zeros(pieces * _PIECE, np.uint8)  # zeros in front change nothing
    first = padded.size - state.size
    padded[first:] = state
    padded[first : first + head.size] ^= head
    sums = _of_rows(padded.reshape(pieces, _PIECE))
    for level in range(levels):
        sums = _moved(sums[0::2], _shift_table(level)) ^ sums[1::2]
    return int(sums[0]) ^ start ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as TFRecord files store it."""
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def masked_crcs(rows: UInt8[np.ndarray, "N 8"]) -> UInt32[np.ndarray, "N"]:
    """Masked CRC-32C of many texts of eight bytes (the lengths of records) at once."""
    rows = rows.copy()
    rows[:, :4] ^= 0xFF
    sums = ~_of_rows(rows)
    return (sums >> np.uint32(15) | sums << np.uint32(17)) + np.uint32(_MASK_DELTA)


def _of_rows(rows: UInt8[np.ndarray, "N length"]) -> UInt32[np.ndarray, "N"]:
    """Checksums of all rows without start and end constants."""
    table, sums = _byte_table(), np.zeros(len(rows), np.uint32)
    for column in np.ascontiguousarray(rows.T):
        sums = table[(sums ^ column) & np.uint32(0xFF)] ^ sums >> np.uint32(8)
    return sums


def _moved(sums: UInt32[np.ndarray, "N"], table: UInt32[np.ndarray, "4 256"]) -> UInt32[np.ndarray, "N"]:
    """Checksums moved on past zeros, byte by byte of the checksum."""
    moved = table[0][sums & np.uint32(0xFF)]
    for i in (1, 2, 3):
        moved = moved ^ table[i][sums >> np.uint32(8 * i) & np.uint32(0xFF)]
    return moved


@functools.cache
def _byte_table() -> UInt32[np.ndarray, "256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table


@functools.cache
def _shift_table(level: int) -> UInt32[np.ndarray, "4 256"]:
    """Where each byte of a checksum moves past `_PIECE` * 2^level zeros."""
    if level:
        before = _shift_table(level - 1)
        return np.stack([_moved(row, before) for row in before])
    sums = np.arange(256, dtype=np.uint32)[None] << np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None]
    for _ in range(_PIECE):
        sums = _byte_table()[sums & np.uint32(0xFF)] ^ sums >> np.uint32(8)
    return sums


HEADER, FOOTER = 12, 4  # bytes
_EXPECTED_of_tfrecord = "an uncompressed TFRecord file"


def record_offsets(path: pathlib.Path) -> Int64[np.ndarray, "N+1"]:
    """Where each record starts, and where the last one ends; only the headers are read, and their checksums compared.

    Raises:
      FileNotFoundError, ValueError: the file is missing, empty, cut off, compressed, or none of TFRecords.
    """
    with explained(path, _EXPECTED_of_tfrecord), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        places, headers = _walk(file.fileno(), size)
    if not headers or headers[0][:2] == b"\x1f\x8b":
        found = "is compressed with gzip; unpack it with gunzip" if headers else f"is empty; {_AGAIN}"
        raise ValueError(f"{path} {found}; expected {_EXPECTED}")
    _check_headers(path, places, headers)
    if places[-1] != size:
        raise ValueError(f"{path}: record {len(headers) - 1} ends at byte {places[-1]}, the file at {size}; {_AGAIN}")
    return np.asarray(places, np.int64)


def _walk(handle: int, size: int) -> tuple[list[int], list[bytes]]:
    """The header of each record, where they start, and where the last record ends."""
    places, headers = [0], []
    while places[-1] < size:
        headers.append(os.pread(handle, HEADER, places[-1]))
        places.append(places[-1] + int.from_bytes(headers[-1][:8], "little") + HEADER + FOOTER)
    return places, headers


def _check_headers(path: pathlib.Path, starts: Sequence[int], headers: Sequence[bytes]) -> None:
    whole = [header for header in headers if len(header) == HEADER]
    rows = np.frombuffer(b"".join(whole), np.uint8).reshape(-1, HEADER)
    found = rows[:, 8:].copy().view("<u4")[:, 0]
    wrong = np.flatnonzero(found != masked_crcs(rows[:, :8]))
    if wrong.size or len(whole) < len(headers):
        number = int(wrong[0]) if wrong.size else len(whole)
        what = f"{path}: record {number} at byte {starts[number]} has no valid header"
        raise ValueError(f"{what}; expected {_EXPECTED}; {_AGAIN}")


def read_record(path: pathlib.Path, start: int, end: int) -> bytes:
    """The content of the record between two offsets.

    Raises:
      FileNotFoundError, ValueError: the file is missing or shorter than it was, or the checksum does not fit.
    """
    with explained(path, _EXPECTED_of_tfrecord), path.open("rb", buffering=0) as file:
        record = os.pread(file.fileno(), end - start, start)
    content, footer = record[HEADER:-FOOTER], record[-FOOTER:]
    if len(record) != end - start or masked(crc32c(content)) != int.from_bytes(footer, "little"):
        raise ValueError(f"{path}: the record at byte {start} does not fit its checksum; {_AGAIN}")
    return content


def write_records(path: pathlib.Path, contents: Iterable[bytes]) -> None:
    """Writes a TFRecord file."""
    with path.open("wb") as file:
        for content in contents:
            length = len(content).to_bytes(8, "little")
            for part in (length, content):
                file.write(part + masked(crc32c(part)).to_bytes(4, "little"))


def parse_example(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The features of a `tf.train.Example` by name, all of them one-dimensional.

    Args:
      content: the serialised message.
      where: file and record, for the error.

    Returns:
      float32, int64, or an object array of bytes; features without any value are left out.

    Raises:
      ValueError: it is no such message.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _message().FromString(content).features.feature
    except DecodeError as error:
        raise ValueError(f"{where} holds no tf.train.Example ({error}); expected one; {_AGAIN}") from error
    found = {name: _values(feature) for name, feature in features.items() if feature.WhichOneof("kind")}
    return {name: values for name, values in found.items() if values.size}


def _values(feature: Any) -> np.ndarray:
    kind = feature.WhichOneof("kind")
    dtype = {"float_list": np.float32, "int64_list": np.int64, "bytes_list": object}[kind]
    return np.array(getattr(feature, kind).value, dtype)


def encode_example(features: Mapping[str, Any]) -> bytes:
    """A `tf.train.Example` of arrays of floats or integers, flattened, and of bytes."""
    example = _message()()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.value.extend(np.asarray(value, np.float32).ravel().tolist())
        else:
            feature.int64_list.value.extend(np.asarray(value, np.int64).ravel().tolist())
    return example.SerializeToString()


def _message() -> Any:
    """The message's class, which TFDS carries so that it can do without TensorFlow."""
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return tf_example_generated_pb2.Example
