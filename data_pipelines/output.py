"""Where prepared data go: finished shards wait in a working folder until the whole folder gets its name."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Protocol

from data_pipelines.places import hold_lock, move_whole, remove_temporary_files, sync, write_whole


class Output(Protocol):
    """One dataset's place, on this machine or elsewhere. It is pickled to worker processes.

    Attributes:
      target: where the dataset is once it is whole.
      scratch: a folder of this machine for unfinished files.
    """

    target: pathlib.Path | str
    scratch: pathlib.Path

    def is_whole(self) -> bool:
        """Whether the dataset is there; what is there is always whole."""

    def read_whole(self, name: str) -> bytes | None:
        """A file of the whole dataset; None where it has none of that name."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes away, and makes sure that there is a place for unfinished work."""

    def read_part(self, name: str) -> bytes | None:
        """A record of unfinished work; None where there is none of that name."""

    def put_part(self, name: str, content: bytes) -> None:
        """Keeps a record of unfinished work."""

    def put_data(self, path: pathlib.Path, name: str) -> None:
        """Takes a finished file from `scratch`."""

    def sizes(self) -> dict[str, int]:
        """Names and bytes of the finished files."""

    def start_anew(self) -> None:
        """Removes unfinished work."""

    def publish(self, folder: pathlib.Path) -> None:
        """Adds the files of a folder and makes the dataset whole; a whole one that is there already is replaced."""

    def clear(self) -> None:
        """Removes what unfinished work left beside a whole dataset."""

    def free_bytes(self) -> int:
        """How much more can be written in `scratch`."""


class LocalOutput:
    """A folder `<base>/<name>/<version>`, renamed from `.<version>.incomplete` when whole (an `Output`)."""

    def __init__(self, target: pathlib.Path) -> None:
        self.target = target
        self._working = target.with_name(f".{target.name}.incomplete")
        self._data = self._working / "data"
        self.scratch = self._working / "parts"

    def is_whole(self) -> bool:
        return self.target.is_dir()

    def read_whole(self, name: str) -> bytes | None:
        return _read(self.target / name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.target.with_name(f".{self.target.name}.lock"), f"preparing {self.target}"):
            self._make_folders()
            remove_temporary_files(self.scratch)
            yield

    def read_part(self, name: str) -> bytes | None:
        return _read(self.scratch / name)

    def put_part(self, name: str, content: bytes) -> None:
        write_whole(self.scratch / name, content)

    def put_data(self, path: pathlib.Path, name: str) -> None:
        move_whole(path, self._data / name)

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._data.iterdir()}

    def start_anew(self) -> None:
        self.clear()
        self._make_folders()

    def publish(self, folder: pathlib.Path) -> None:
        for path in sorted(folder.iterdir()):
            move_whole(path, self._data / path.name)
        replaced = self._working / "replaced"
        if self.target.is_dir():
            self.target.rename(replaced)
        self._data.rename(self.target)
        sync(self.target.parent)
        self.clear()

    def clear(self) -> None:
        shutil.rmtree(self._working, ignore_errors=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.scratch).free

    def _make_folders(self) -> None:
        for folder in (self._data, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)


def _read(path: pathlib.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
