"""Prepared data elsewhere ("gs://", "s3://", "memory://", ...), by fsspec.

Shards are written on this machine and uploaded one by one, each after the record of what it holds, so that another
machine can go on. `dataset_info.json` comes last: where it is, the dataset is whole.
"""

import contextlib
import errno
import hashlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from data_pipelines.places import cache_folder, hold_lock, remove_temporary_files

LAST_FILE = "dataset_info.json"


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """File systems elsewhere raise errors of their own; here they become an OSError that names the address."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ImportError, ValueError) as error:
        raise type(error)(f"{url}: {error}") from error
    except Exception as error:
        raise OSError(errno.EREMOTEIO, f"{url}: {type(error).__name__}: {error}") from error


def open_url(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
      ValueError: nothing is known of addresses of this kind, or the address cannot be.
      ImportError: the package that this kind needs is not installed; the message names it.
      OSError: it cannot be reached.
    """
    import fsspec

    with remote_errors(url):
        file_system, path = fsspec.core.url_to_fs(url)
    return file_system, path.rstrip("/")


def list_files(file_system: Any, folder: str) -> dict[str, int]:
    """Names and bytes of the files of a folder; nothing where there is no folder."""
    return {name: size for name, kind, size in _entries(file_system, folder) if kind == "file"}


def list_folders(file_system: Any, folder: str) -> list[str]:
    """Names of the folders of a folder; nothing where it is not there."""
    return sorted(name for name, kind, _ in _entries(file_system, folder) if kind == "directory")


def _entries(file_system: Any, folder: str) -> Iterator[tuple[str, str, int]]:
    """Name, kind and bytes of what is in a folder, without the empty object that some buckets keep for the folder."""
    file_system.invalidate_cache()
    try:
        entries = file_system.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for one in entries:
        path = one["name"].strip("/")
        if path != folder.strip("/"):
            yield path.rsplit("/", 1)[-1], one["type"], one["size"] or 0


def local_name(url: str) -> str:
    """A folder's name for what this machine keeps of an address."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


class RemoteOutput:
    """An address `<base>/<name>/<version>` (an `Output`)."""

    def __init__(self, base: str, name: str, version: str) -> None:
        self.target = f"{base.rstrip('/')}/{name}/{version}"
        self._file_system, self._data = open_url(self.target)
        self._parts = f"{self._data.rsplit('/', 1)[0]}/.{version}.incomplete"
        self.scratch = cache_folder() / "uploads" / local_name(self.target)

    def is_whole(self) -> bool:
        with remote_errors(self.target):
            return LAST_FILE in list_files(self._file_system, self._data)

    def read_whole(self, name: str) -> bytes | None:
        return self._read(f"{self._data}/{name}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.scratch.with_suffix(".lock"), f"preparing {self.target}"):
            self._make_folders()
            remove_temporary_files(self.scratch)
            yield

    def read_part(self, name: str) -> bytes | None:
        return self._read(f"{self._parts}/{name}")

    def put_part(self, name: str, content: bytes) -> None:
        with remote_errors(self.target):
            self._file_system.pipe_file(f"{self._parts}/{name}", content)

    def put_data(self, path: pathlib.Path, name: str) -> None:
        size, address = path.stat().st_size, f"{self._data}/{name}"
        with remote_errors(self.target):
            self._file_system.put_file(str(path), address)
            self._file_system.invalidate_cache()
            found = self._file_system.size(address)
        if found != size:
            raise OSError(errno.EREMOTEIO, f"{self.target}/{name} has {found} bytes after an upload of {size}")
        path.unlink()

    def sizes(self) -> dict[str, int]:
        with remote_errors(self.target):
            return list_files(self._file_system, self._data)

    def start_anew(self) -> None:
        """Removes unfinished work, and a whole dataset that is to be replaced: first the file that says it is whole."""
        with remote_errors(self.target):
            if LAST_FILE in list_files(self._file_system, self._data):
                self._file_system.rm(f"{self._data}/{LAST_FILE}")
            self._remove(self._data)
        self.clear()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._make_folders()

    def publish(self, folder: pathlib.Path) -> None:
        for path in sorted(folder.iterdir(), key=lambda one: (one.name == LAST_FILE, one.name)):
            self.put_data(path, path.name)
        self.clear()

    def clear(self) -> None:
        with remote_errors(self.target):
            self._remove(self._parts)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.scratch).free

    def _make_folders(self) -> None:
        with remote_errors(self.target):
            for folder in (self._data, self._parts):
                self._file_system.makedirs(folder, exist_ok=True)

    def _remove(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file_system.rm(folder, recursive=True)

    def _read(self, address: str) -> bytes | None:
        with remote_errors(self.target):
            try:
                return self._file_system.cat_file(address)
            except FileNotFoundError:
                return None
