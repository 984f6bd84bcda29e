"""TFRecord files, also such as another library wrote, and each way in which they may be damaged."""

import gzip
import itertools

import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

from data_pipelines.archives import encode_example, parse_example, read_record, record_offsets, write_records

CONTENTS = [b"one", b"", b"x" * 1000]


@pytest.fixture
def path(tmp_path):
    write_records(tmp_path / "a.tfrecord", CONTENTS)
    return tmp_path / "a.tfrecord"


def read_all(path):
    offsets = record_offsets(path).tolist()
    return [read_record(path, *ends) for ends in itertools.pairwise(offsets)]


def test_records_come_back(path):
    assert read_all(path) == CONTENTS
    offsets = record_offsets(path)
    assert read_record(path, offsets[2], offsets[3]) == CONTENTS[2]


def test_files_of_another_library(tmp_path):
    writer = RecordWriter(str(tmp_path / "b.tfrecord"))
    for content in CONTENTS:
        writer.write(content)
    writer.close()
    assert read_all(tmp_path / "b.tfrecord") == CONTENTS


def damage(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or bytes(content))


def flip(place):
    def change(content):
        content[place] ^= 1

    return change


DAMAGES = {
    "empty": (lambda c: bytearray(), "is empty; download it again; expected an uncompressed"),
    "gzip": (gzip.compress, "is compressed with gzip; unpack it with gunzip"),
    "page": (lambda c: b"<html>not found</html>", "record 0 at byte 0 has no valid header"),
    "short": (lambda c: b"<html>", "record 0 at byte 0 has no valid header"),
    "cut in a record": (lambda c: c[:-5], r"record 2 ends at byte \d+, the file at \d+; download it again"),
    "cut in a header": (lambda c: c[: 19 + 5], "record 1 at byte 19 has no valid header"),
    "length": (flip(0), "record 0 at byte 0 has no valid header"),
    "checksum of the length": (flip(19 + 9), "record 1 at byte 19 has no valid header"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files(path, case):
    change, message = DAMAGES[case]
    if case == "empty":
        path.write_bytes(b"")
    else:
        damage(path, change)
    with pytest.raises(ValueError, match=rf"a\.tfrecord.*{message}"):
        record_offsets(path)


@pytest.mark.parametrize("place", [12, -1])
def test_damaged_content_and_its_checksum(path, place):
    damage(path, flip(place))
    with pytest.raises(ValueError, match=r"a\.tfrecord: the record at byte \d+ does not fit its checksum; download"):
        read_all(path)


def test_a_file_that_became_shorter(path):
    offsets = record_offsets(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="does not fit its checksum"):
        read_record(path, offsets[2], offsets[3])


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*a\.tfrecord; expected an uncompressed TFRecord file"):
        record_offsets(tmp_path / "a.tfrecord")


def test_examples_come_back():
    features = {"floats": np.array([[1.5, -2.0]]), "ints": np.array([3, -(2**40)]), "mask": np.ones(3, np.uint8)}
    found = parse_example(encode_example({**features, "text": b"Pinus", "none": np.zeros(0)}), "here")
    assert {name: (values.dtype, values.tolist()) for name, values in found.items()} == {
        "floats": (np.float32, [1.5, -2.0]),
        "ints": (np.int64, [3, -(2**40)]),
        "mask": (np.int64, [1, 1, 1]),
        "text": (object, [b"Pinus"]),
    }


def test_no_example():
    with pytest.raises(ValueError, match=r"here holds no tf\.train\.Example \(.*; download it again"):
        parse_example(b"\xff\xff\xff", "here")
