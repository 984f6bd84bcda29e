"""Files of prepared datasets: atomic writes, locks, the manifest, and copies to and from buckets by fsspec."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import tqdm

from anysat_jax.errors import printable
from data_pipelines.card import decode_json

MANIFEST_FILE = "contents.json"

_progress = functools.partial(tqdm.tqdm, unit="B", unit_scale=True, mininterval=0.5)


def cache_folder() -> pathlib.Path:
    """Returns the default folder of prepared data: `$XDG_CACHE_HOME/anysat_jax`, or `~/.cache/anysat_jax`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "anysat_jax"


def to_stderr(line: str) -> None:
    """Prints a line beside the progress bar."""
    print(printable(line), file=sys.stderr, flush=True)


def is_url(place: str | os.PathLike[str]) -> bool:
    """Returns whether a place is an address like "gs://bucket/folder", not a folder of this machine."""
    return isinstance(place, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", place) is not None


def temporary_name(name: str, process: int | None = None) -> str:
    """Returns the name of a file while a process (default: this one) of this machine writes it."""
    return f"{name}.{socket.gethostname()}-{process or os.getpid()}.tmp"


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that exists only when complete, also after a power cut."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(content)
        move_whole(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_whole(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Flushes a finished file to the disk, then renames it."""
    # Without the first flush a power cut may leave the new name with an empty file, without the second the old name.
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: pathlib.Path, work: str) -> Iterator[None]:
    """Waits for the lock of a file, whose folder is made, and holds it; the kernel releases it when the process ends.

    `work` is what is done under the lock, for the message of a process that waits.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # of a home that does not exist
        raise PermissionError(errno.EACCES, f"the folder {path.parent} cannot be made") from error
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            to_stderr(f"another process is {work}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks: files appear whole by renaming, so that two processes at the same work waste
            # time but do no harm.
            pass
        yield


@dataclasses.dataclass(frozen=True)
class Output:
    """A dataset's folder `<base>/<name>/<version>`, written as `.<version>.incomplete` and renamed when complete.

    It is pickled to worker processes, which write into the same folder.
    """

    target: pathlib.Path

    @property
    def working(self) -> pathlib.Path:
        return self.target.with_name(f".{self.target.name}.incomplete")

    @property
    def data(self) -> pathlib.Path:
        """Folder of finished files, which becomes the dataset."""
        return self.working / "data"

    @property
    def parts(self) -> pathlib.Path:
        """Folder of the plan, of the shards' statistics, and of files that are being written."""
        return self.working / "parts"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes away and makes the folders."""
        with hold_lock(self.target.with_name(f".{self.target.name}.lock"), f"preparing {self.target}"):
            self._make_folders()
            # Killed processes of this machine leave them; other machines may be writing into the folder.
            for path in self.parts.glob(f"*.{socket.gethostname()}-*.tmp"):
                path.unlink(missing_ok=True)
            yield

    def start_anew(self) -> None:
        """Removes unfinished work."""
        self.clear()
        self._make_folders()

    def _make_folders(self) -> None:
        for folder in (self.data, self.parts):
            folder.mkdir(parents=True, exist_ok=True)

    def publish(self) -> None:
        """Renames the finished files to the dataset's folder; an existing dataset is replaced."""
        for path in self.data.iterdir():
            sync(path)
        # A folder cannot be renamed over one with files. After a crash in between the next run publishes again.
        if self.target.is_dir():
            self.target.rename(self.working / "replaced")
        self.data.rename(self.target)
        sync(self.target.parent)
        self.clear()

    def clear(self) -> None:
        """Removes the working folder."""
        shutil.rmtree(self.working, ignore_errors=True)


def is_whole(target: pathlib.Path | str) -> bool:
    """Returns whether a folder or an address holds a complete dataset: folders are renamed, manifests uploaded last."""
    return target.is_dir() if isinstance(target, pathlib.Path) else read_file(target, MANIFEST_FILE) is not None


def read_file(target: pathlib.Path | str, name: str) -> bytes | None:
    """Reads a file of a folder or of an address; None if it does not exist."""
    try:
        if isinstance(target, pathlib.Path):
            return (target / name).read_bytes()
        file_system, folder = open_url(target)
        with remote_errors(target):
            file_system.invalidate_cache()
            return file_system.cat_file(f"{folder}/{name}")
    except FileNotFoundError:
        return None


class _ListedFile(msgspec.Struct, omit_defaults=True):
    bytes: int
    sha256: str | None = None


class _Manifest(msgspec.Struct):
    files: dict[str, _ListedFile]


def write_manifest(folder: pathlib.Path, shards: Sequence[str]) -> None:
    """Writes the list of a folder's files: sizes and, of all but the shards, digests."""
    files = {}
    for path in folder.iterdir():
        # Records have checksums of their own; to hash gigabytes at each opening would take minutes.
        digest = None if path.name in shards else hashlib.sha256(path.read_bytes()).hexdigest()
        files[path.name] = _ListedFile(path.stat().st_size, digest)
    files.pop(MANIFEST_FILE, None)
    text = json.dumps(msgspec.to_builtins(_Manifest(files)), indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def check_manifest(folder: pathlib.Path) -> None:
    """Compares a prepared folder with its manifest.

    Raises:
      FileNotFoundError, ValueError: the manifest or a listed file is missing, cannot be read, or is not what was
        written; the message names the file.
    """
    path, remedy = folder / MANIFEST_FILE, f"copy the dataset again, or delete {folder} and prepare it again"
    try:
        listed = decode_json(path.read_bytes(), _Manifest).files
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}, the list of the dataset's files; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a list of files ({type(error).__name__}: {error}); {remedy}") from error
    found = {one.name: one.stat().st_size for one in folder.iterdir()}
    for name, one in listed.items():
        if name not in found:
            missing = f"{len(listed.keys() - found.keys()):,} of the dataset's {len(listed):,} files are missing"
            raise FileNotFoundError(f"no {folder / name}: {missing}; {remedy}")
        if found[name] != one.bytes:
            raise ValueError(f"{folder / name} has {found[name]:,} bytes, {one.bytes:,} were written; {remedy}")
        if one.sha256 and hashlib.sha256((folder / name).read_bytes()).hexdigest() != one.sha256:
            raise ValueError(f"{folder / name} was damaged or changed after it was written; {remedy}")


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Converts the errors of remote file systems, which have types of their own, to OSErrors that name the address."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ImportError, ValueError) as error:
        raise type(error)(f"{url}: {error}") from error
    except Exception as error:
        raise OSError(errno.EREMOTEIO, f"{url}: {type(error).__name__}: {error}") from error


def open_url(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of an address, and the path in it.

    Raises:
      ValueError: addresses of this kind are unknown, or the address is malformed.
      ImportError: the package for this kind is not installed; the message names it.
      OSError: the address cannot be reached.
    """
    import fsspec

    with remote_errors(url):
        file_system, path = fsspec.core.url_to_fs(url)
    return file_system, path.rstrip("/")


def local_name(url: str) -> str:
    """Returns the name of the folder in which this machine keeps files of an address."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def remote_versions(base: str, name: str) -> list[str]:
    """Returns the complete versions of a dataset at `<base>/<name>`, the oldest first.

    Raises:
      OSError: the address cannot be reached.
    """
    url = f"{base.rstrip('/')}/{name}"
    file_system, folder = open_url(url)
    with remote_errors(base):
        file_system.invalidate_cache()
        try:
            names = [path.strip("/").rsplit("/", 1)[-1] for path in file_system.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
    versions = [one for one in names if re.fullmatch(r"\d+\.\d+\.\d+", one) and is_whole(f"{url}/{one}")]
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))


def upload(folder: pathlib.Path, url: str) -> None:
    """Copies a prepared folder to an address, whose files are replaced; the manifest comes last.

    Raises:
      OSError: the address cannot be written, or a file arrives with another size.
    """
    file_system, target = open_url(url)
    file_system.invalidate_cache()
    # The manifest is removed first, so that no reader takes the rest for complete.
    for old in (f"{target}/{MANIFEST_FILE}", target):
        with remote_errors(url), contextlib.suppress(FileNotFoundError):
            file_system.rm(old, recursive=True)
    paths = sorted(folder.iterdir(), key=lambda path: (path.name == MANIFEST_FILE, path.name))
    with _progress(desc=f"uploading to {url}", total=sum(path.stat().st_size for path in paths)) as bar:
        for path in paths:
            size, address = path.stat().st_size, f"{target}/{path.name}"
            with remote_errors(url):
                file_system.makedirs(target, exist_ok=True)
                file_system.put_file(str(path), address)
                # Otherwise the size would be that of a listing before.
                file_system.invalidate_cache()
                found = file_system.size(address)
            if found != size:
                raise OSError(errno.EREMOTEIO, f"{url}/{path.name} has {found} bytes after an upload of {size}")
            bar.update(size)


def download(base: str, name: str, version: str) -> pathlib.Path:
    """Copies `<base>/<name>/<version>` into the cache, unless the same dataset is there already; returns its folder.

    An interrupted copy is resumed: files of the right size are not fetched again.

    Raises:
      FileNotFoundError: the address holds no complete dataset.
      OSError: the dataset cannot be fetched or written.
    """
    url = f"{base.rstrip('/')}/{name}/{version}"
    manifest = read_file(url, MANIFEST_FILE)
    if manifest is None:
        raise FileNotFoundError(f"no prepared dataset at {url}: it has no {MANIFEST_FILE}")
    output = Output(cache_folder() / "mirrors" / local_name(base.rstrip("/")) / name / version)
    if read_file(output.target, MANIFEST_FILE) != manifest:
        with output.lock():
            # Another process may have fetched it while this one waited.
            if read_file(output.target, MANIFEST_FILE) != manifest:
                _fetch_all(url, output, manifest)
            output.clear()
    return output.target


def _fetch_all(url: str, output: Output, manifest: bytes) -> None:
    if read_file(output.data, MANIFEST_FILE) != manifest:
        output.start_anew()
        write_whole(output.data / MANIFEST_FILE, manifest)
    file_system, folder = open_url(url)
    with remote_errors(f"{url}/{MANIFEST_FILE}"):
        files = {name: one.bytes for name, one in decode_json(manifest, _Manifest).files.items()}
    there = {path.name: path.stat().st_size for path in output.data.iterdir()}
    missing = {name: size for name, size in files.items() if there.get(name) != size}
    needed, free = sum(missing.values()), shutil.disk_usage(output.parts).free
    if free < needed:
        message = f"{free / 1e9:.2f} GB are free at {output.target.parent}, {url} needs {needed / 1e9:.2f} GB more"
        raise OSError(errno.ENOSPC, f"{message}; point $XDG_CACHE_HOME to a folder with space for it")
    to_stderr(f"fetching {url} to {output.target}")
    total = sum(files.values())
    with _progress(desc="fetching", total=total, initial=total - needed) as bar:
        for name, size in missing.items():
            _fetch(file_system, f"{folder}/{name}", output, name, size)
            bar.update(size)
    output.publish()


def _fetch(file_system: Any, address: str, output: Output, name: str, size: int) -> None:
    # A name of a manifest must not lead out of the folder.
    if "/" in name or name in (".", ".."):
        raise OSError(errno.EINVAL, f"{address} is not a file name")
    temporary = output.parts / temporary_name(name)
    with remote_errors(address):
        file_system.get_file(address, str(temporary))
    found = temporary.stat().st_size
    if found != size:
        raise OSError(errno.EREMOTEIO, f"{address}: {found} bytes arrived of {size}; start again")
    move_whole(temporary, output.data / name)
