"""Files inside uncompressed tar archives, and records of TFRecord files, read in place: nothing is unpacked."""

import functools
import os
import pathlib
import posixpath
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Int64

from data_pipelines.files import explained

TAR, TFRECORD = "an uncompressed tar archive", "an uncompressed TFRecord file"  # for errors
REMEDY = "download it again"


def tar_members(path: pathlib.Path) -> Mapping[str, tuple[int, int]]:
    """Returns the first byte and the length of each regular file of an archive, by name ("folder/file").

    Raises:
      FileNotFoundError, ValueError: the archive is missing, unreadable or cut off.
    """
    with explained(path, TAR):
        state = path.stat()
    return _members(path, (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=32)  # each lists thousands of files
def _members(path: pathlib.Path, state: tuple[int, int]) -> dict[str, tuple[int, int]]:
    with explained(path, TAR, tarfile.TarError), tarfile.open(path, "r:") as archive:
        found = {posixpath.normpath(m.name): (m.offset_data, m.size) for m in archive if m.isreg()}
        end = archive.offset
    with explained(path, TAR), path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    # A block of zeros ends an archive, but tarfile takes any damaged header for the end.
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError(f"{path} is cut off at byte {state[1]}; expected {end + tarfile.BLOCKSIZE} or more; {REMEDY}")
    if any(block):
        raise ValueError(f"{path} is damaged at byte {end}; expected a file's header, or the end; {REMEDY}")
    return found


def read_member(path: pathlib.Path, name: str) -> bytes | None:
    """Returns the content of a file in an archive; None if there is no such file.

    Raises:
      FileNotFoundError, ValueError: the archive is missing, unreadable or cut off.
    """
    place = tar_members(path).get(name)
    if place is None:
        return None
    with explained(path, TAR), path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), place[1], place[0])


HEADER, FOOTER = 12, 4  # bytes: length and its checksum before a record, the content's checksum after it


def record_offsets(path: pathlib.Path) -> Int64[np.ndarray, "N+1"]:
    """Returns the first byte of each record of a TFRecord file, and the end of the last one.

    Only the headers are read, and their checksums compared.

    Raises:
      FileNotFoundError, ValueError: the file is missing, empty, cut off, compressed, or not of TFRecords.
    """
    offsets = [0]
    with explained(path, TFRECORD), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        valid, header = size > 0, b""
        while valid and offsets[-1] < size:
            header = os.pread(file.fileno(), HEADER, offsets[-1])
            length, checksum = header[:8], int.from_bytes(header[8:], "little")
            # A length without its checksum could lead anywhere in the file.
            if valid := len(header) == HEADER and masked_crc32c(length) == checksum:
                offsets.append(offsets[-1] + int.from_bytes(length, "little") + HEADER + FOOTER)
    if not size or header.startswith(b"\x1f\x8b"):
        found = "is compressed with gzip; unpack it with gunzip" if size else f"is empty; {REMEDY}"
        raise ValueError(f"{path} {found}; expected {TFRECORD}")
    if not valid:
        where = f"record {len(offsets) - 1} at byte {offsets[-1]}"
        raise ValueError(f"{path}: {where} has no valid header; expected {TFRECORD}; {REMEDY}")
    if offsets[-1] != size:
        raise ValueError(f"{path}: record {len(offsets) - 2} ends at byte {offsets[-1]}, the file at {size}; {REMEDY}")
    return np.asarray(offsets, np.int64)


def masked_crc32c(content: bytes) -> int:
    """Returns the checksum of some bytes as TFRecord files store it: CRC-32C, rotated, plus a constant."""
    # Masked, as the checksum of bytes that hold their own checksum would be weak.
    checksum = google_crc32c.value(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(path: pathlib.Path, start: int, end: int) -> bytes:
    """Returns the content of the record between two offsets.

    Raises:
      FileNotFoundError, ValueError: the file is missing or shorter than it was, or the checksum does not match.
    """
    with explained(path, TFRECORD), path.open("rb", buffering=0) as file:
        record = os.pread(file.fileno(), end - start, start)
    content, footer = record[HEADER:-FOOTER], record[-FOOTER:]
    if len(record) != end - start or masked_crc32c(content) != int.from_bytes(footer, "little"):
        raise ValueError(f"{path}: the record at byte {start} does not fit its checksum; {REMEDY}")
    return content


def write_records(path: pathlib.Path, contents: Iterable[bytes]) -> None:
    """Writes a TFRecord file."""
    with path.open("wb") as file:
        for content in contents:
            for part in (len(content).to_bytes(8, "little"), content):
                file.write(part + masked_crc32c(part).to_bytes(4, "little"))


def parse_example(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Returns the features of a `tf.train.Example` by name: (n,) float32, int64, or object arrays of bytes, n > 0.

    Raises:
      ValueError: it is not such a message.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _message().FromString(content).features.feature
    except DecodeError as error:
        raise ValueError(f"{where} is not a tf.train.Example ({error}); expected one; {REMEDY}") from error
    dtypes, found = {"float_list": np.float32, "int64_list": np.int64, "bytes_list": object}, {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        if kind and (values := np.array(getattr(feature, kind).value, dtypes[kind])).size:
            found[name] = values
    return found


def encode_example(features: Mapping[str, Any]) -> bytes:
    """Returns a `tf.train.Example` of arrays of floats or integers, flattened, and of bytes."""
    example = _message()()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.value.extend(np.asarray(value, np.float32).ravel().tolist())
        else:
            feature.int64_list.value.extend(np.asarray(value, np.int64).ravel().tolist())
    # Otherwise the order of the features, which are a map, changes from run to run.
    return example.SerializeToString(deterministic=True)


def _message() -> Any:
    """Returns the message's class, which TFDS includes so that it needs no TensorFlow."""
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return tf_example_generated_pb2.Example
