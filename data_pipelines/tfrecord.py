"""TFRecord files and the `tf.train.Example` records in them, without TensorFlow.

A record is: its length (uint64), the length's masked CRC-32C (uint32), the content, the content's masked CRC-32C.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_pipelines.crc32c import crc32c, masked, masked_crcs
from data_pipelines.files import explained

HEADER, FOOTER = 12, 4  # bytes
_EXPECTED = "an uncompressed TFRecord file"
_AGAIN = "download it again"


def record_offsets(path: pathlib.Path) -> Int64[np.ndarray, "N+1"]:
    """Where each record starts, and where the last one ends; only the headers are read, and their checksums compared.

    Raises:
      FileNotFoundError, ValueError: the file is missing, empty, cut off, compressed, or none of TFRecords.
    """
    with explained(path, _EXPECTED), path.open("rb", buffering=0) as file:
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
    with explained(path, _EXPECTED), path.open("rb", buffering=0) as file:
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
