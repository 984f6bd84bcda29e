"""Files inside uncompressed tar archives, read where they are: nothing is unpacked, so no name leads anywhere."""

import functools
import os
import pathlib
import posixpath
import tarfile
from collections.abc import Mapping

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
