"""Files inside tar archives, and archives that are damaged or mean harm."""

import io
import tarfile

import pytest

from data_pipelines.archives import read_member, tar_members


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
