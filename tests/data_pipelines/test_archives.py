"""Files inside tar archives and records of TFRecord files, also damaged ones and those of another library."""

import gzip
import io
import itertools
import tarfile

import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

from data_pipelines.archives import (
    encode_example,
    masked_crc32c,
    parse_example,
    read_member,
    read_record,
    record_offsets,
    tar_members,
    write_records,
)


def write_tar(path, contents, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_members_are_read_in_place(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"naip/1.png": b"one", "./naip/2.png": b"second"})
    assert set(tar_members(path)) == {"naip/1.png", "naip/2.png"}
    assert [read_member(path, f"naip/{n}.png") for n in (2, 1, 3)] == [b"second", b"one", None]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


def test_a_changed_archive_is_read_anew(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1": b"one"})
    assert read_member(path, "1") == b"one"
    write_tar(path, {"2": b"two" * 9000})
    assert read_member(path, "1") is None and read_member(path, "2") == b"two" * 9000


def test_links_and_folders_are_no_files(tmp_path):
    """A link out of the archive is never followed."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("naip/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("naip")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert not tar_members(tmp_path / "a.tar") and read_member(tmp_path / "a.tar", "naip/1.png") is None


def test_names_that_lead_out_are_only_names(tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = write_tar(tmp_path / "a.tar", {"../secret": b"other", "/etc/passwd": b"harmless"})
    assert read_member(path, "/etc/passwd") == b"harmless" and read_member(path, "../secret") == b"other"
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar cannot be read \(.*expected an uncompressed tar archive; download"):
        tar_members(tmp_path / "a.tar")


def test_archives_that_are_cut_off(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1": bytes(2000), "2": bytes(2000)})
    path.write_bytes(path.read_bytes()[:3500])
    with pytest.raises(ValueError, match=r"a\.tar (is cut off at byte 3500; expected 5072|cannot be read)"):
        tar_members(path)


def test_a_missing_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*a\.tar; expected an uncompressed tar archive"):
        tar_members(tmp_path / "a.tar")


@pytest.mark.parametrize("cut", [1736, 3072])
def test_archives_that_end_early_are_not_taken_for_smaller_ones(tmp_path, cut):
    """In the second file's header, and where the third one would begin."""
    path = write_tar(tmp_path / "a.tar", {name: bytes(700) for name in "123"})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"a\.tar (is cut off at byte {cut}|cannot be read).*download"):
        tar_members(path)


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", {name: bytes(700) for name in "123"})
    content = bytearray(path.read_bytes())
    content[1536:2048] = b"z" * 512
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar is damaged at byte 1536; expected a file's header, or the end"):
        tar_members(path)


def test_an_archive_of_nothing(tmp_path):
    assert not tar_members(write_tar(tmp_path / "a.tar", {}))


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
    with pytest.raises(ValueError, match=r"here is not a tf\.train\.Example \(.*; download it again"):
        parse_example(b"\xff\xff\xff", "here")


@pytest.mark.parametrize(("content", "checksum"), [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"", 0)])
def test_checksums_are_the_published_ones(content, checksum):
    """RFC 3720, B.4; TFRecord stores them rotated by 15 bits, plus a constant."""
    shifted = (masked_crc32c(content) - 0xA282EAD8) & 0xFFFFFFFF
    assert (shifted << 15 | shifted >> 17) & 0xFFFFFFFF == checksum
