"""Places on this machine: the cache, locks that die with their process, files that are whole once they are there."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any, Protocol

from data_pipelines.prepare.plan import FILE_NAME as PLAN


def cache_folder() -> pathlib.Path:
    """Where prepared data go by default: `$XDG_CACHE_HOME/anysat_jax`, or `~/.cache/anysat_jax`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "anysat_jax"


def to_stderr(line: str) -> None:
    """Says something beside the progress bar."""
    print(line, file=sys.stderr, flush=True)


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address like "gs://bucket/folder" rather than a folder of this machine."""
    return isinstance(place, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", place) is not None


def temporary_name(name: str) -> str:
    """For a file that this process has not finished; it names the machine, too."""
    return f"{name}.{socket.gethostname()}-{os.getpid()}.tmp"


def remove_temporary_files(folder: pathlib.Path) -> None:
    """What killed processes of this machine left unfinished; other machines may share the folder."""
    for path in folder.glob(f"*.{socket.gethostname()}-*.tmp"):
        path.unlink(missing_ok=True)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there only when whole, also after a power cut."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(content)
        move_whole(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_whole(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Brings a finished file to the disk, then under its name."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: pathlib.Path, work: str) -> Iterator[None]:
    """Holds a lock that dies with its process; goes on without where the file system has no locks.

    Args:
      path: the lock's file; its folder must be there.
      work: what is done under the lock, for those who wait.
    """
    with path.open("w") as file:
        _take_lock(file, work)
        yield


def _take_lock(file: IO[str], work: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        to_stderr(f"another process is {work}; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return


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


def remote_versions(base: str, name: str) -> list[str]:
    """Versions of a dataset that are whole at `<base>/<name>`, the oldest first.

    Raises:
      OSError: the address cannot be reached.
    """
    file_system, folder = open_url(f"{base.rstrip('/')}/{name}")
    with remote_errors(base):
        folders = [one for one in list_folders(file_system, folder) if re.fullmatch(r"\d+\.\d+\.\d+", one)]
        whole = [one for one in folders if LAST_FILE in list_files(file_system, f"{folder}/{one}")]
    return sorted(whole, key=lambda version: tuple(map(int, version.split("."))))


def mirror(base: str, name: str, version: str) -> pathlib.Path:
    """Copies `<base>/<name>/<version>` into the cache, unless the same is there already.

    An interrupted copy goes on where it stood; files of the right size are not fetched again.

    Returns:
      The local folder.

    Raises:
      FileNotFoundError: there is no whole dataset at that address.
      OSError: it cannot be fetched or written.
    """
    url = f"{base.rstrip('/')}/{name}/{version}"
    file_system, folder = open_url(url)
    with remote_errors(url):
        files = list_files(file_system, folder)
        if LAST_FILE not in files:
            raise FileNotFoundError(f"no prepared dataset at {url}: it has no {LAST_FILE}")
        plan = file_system.cat_file(f"{folder}/{PLAN}")
    output = LocalOutput(cache_folder() / "mirrors" / local_name(base.rstrip("/")) / name / version)
    if _is_copy(output, files, plan):
        return output.target
    with output.lock():
        if not _is_copy(output, files, plan):
            _fetch_all(file_system, folder, url, output, files, plan)
        output.clear()
    return output.target


def _is_copy(output: LocalOutput, files: dict[str, int], plan: bytes) -> bool:
    """Whether the local folder has the same files by name and size, of the same plan."""
    if not output.is_whole() or output.read_whole(PLAN) != plan:
        return False
    return {path.name: path.stat().st_size for path in output.target.iterdir()} == files


def _fetch_all(
    file_system: Any, folder: str, url: str, output: LocalOutput, files: dict[str, int], plan: bytes
) -> None:
    import tqdm

    if output.read_part(PLAN) != plan:
        output.start_anew()
        output.put_part(PLAN, plan)
    done = {name: size for name, size in output.sizes().items() if files.get(name) == size}
    missing = [name for name in files if name not in done]
    _check_space(output, url, sum(files[name] for name in missing))
    to_stderr(f"fetching {url} to {output.target}")
    progress = dict(total=sum(files.values()), initial=sum(done.values()), unit="B", unit_scale=True, mininterval=0.5)
    with tqdm.tqdm(desc="fetching", **progress) as bar:
        for name in missing:
            _fetch(file_system, f"{folder}/{name}", output, name, files[name])
            bar.update(files[name])
    nothing = output.scratch / "nothing"
    nothing.mkdir(exist_ok=True)
    output.publish(nothing)


def _fetch(file_system: Any, address: str, output: LocalOutput, name: str, size: int) -> None:
    """One file under a temporary name, then, if it has the right size, under its own."""
    if "/" in name or name in (".", ".."):
        raise OSError(errno.EINVAL, f"{address} is no name for a file")
    temporary = output.scratch / temporary_name(name)
    with remote_errors(address):
        file_system.get_file(address, str(temporary))
    found = temporary.stat().st_size
    if found != size:
        raise OSError(errno.EREMOTEIO, f"{address}: {found} bytes arrived of {size}; start again")
    output.put_data(temporary, name)


def _check_space(output: LocalOutput, url: str, num_bytes: int) -> None:
    free = shutil.disk_usage(output.scratch).free
    if free < num_bytes:
        message = f"{free / 1e9:.2f} GB are free at {output.target.parent}, {url} needs {num_bytes / 1e9:.2f} GB more"
        raise OSError(errno.ENOSPC, f"{message}; point $XDG_CACHE_HOME to a folder with space for it")


FILE_NAME = "contents.json"


def contents_json(shards: Mapping[str, int], folder: pathlib.Path) -> str:
    """The list's text.

    Args:
      shards: bytes of each shard's file, by name.
      folder: holds the files that stand beside the shards.
    """
    files: dict[str, dict[str, Any]] = {name: {"bytes": size} for name, size in shards.items()}
    for path in folder.iterdir():
        content = path.read_bytes()
        files[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"


def check_contents(folder: pathlib.Path) -> None:
    """Compares a prepared folder with its list.

    Raises:
      FileNotFoundError, ValueError: the list or a file of it is missing, cannot be read, or is not what was written;
        the message names the file.
    """
    path, remedy = folder / FILE_NAME, f"copy the dataset again, or delete {folder} and prepare it again"
    try:
        listed = {
            name: (one["bytes"], one.get("sha256")) for name, one in json.loads(path.read_bytes())["files"].items()
        }
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}, the list of the dataset's files; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of files ({type(error).__name__}: {error}); {remedy}") from error
    found = {one.name: one.stat().st_size for one in folder.iterdir()}
    for name, (size, digest) in listed.items():
        if name not in found:
            raise FileNotFoundError(f"no {folder / name}: {_missing(listed, found)}; {remedy}")
        if found[name] != size:
            raise ValueError(f"{folder / name} has {found[name]:,} bytes, {size:,} were written; {remedy}")
        if digest and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} was damaged or changed after it was written; {remedy}")


def _missing(listed: Mapping[str, Any], found: Mapping[str, int]) -> str:
    return f"{len(listed.keys() - found.keys()):,} of the dataset's {len(listed):,} files are missing"
