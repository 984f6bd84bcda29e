"""Frozen features on disk: made once, read by every probe of the same weights on the same data.

An entry is a folder named by a digest of all that the features depend on. It gets its name when whole, and carries the
checksums of its files, so that what is read is what was written.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import ml_dtypes
import numpy as np
from absl import logging
from jaxtyping import Float, Int32, Shaped

from anysat_jax.errors import ConfigError
from data_pipelines.prepare.storage import cache_folder, hold_lock, sync

ARRAYS = ("features", "labels", "index")
META = "meta.json"
CHUNK = 2**24  # bytes read at once for a checksum


@dataclasses.dataclass(frozen=True)
class Features:
    """Frozen features of samples, with their labels; read from disk as they are asked for.

    Attributes:
      features: what a head reads, (N, F), or (N, h, w, F) for a dense task; float32 or bfloat16, the dtype that they
        were computed in, so that nothing is lost and nothing is padded.
      labels: of the task, (N, ...); where a dense task's sub-patches were drawn, those of the drawn ones.
      index: each sample's tile, by its position in the split.
      left_out: tiles that could not be read when the features were made, by their position.
    """

    features: Float[np.ndarray, "N *hw F"]
    labels: Shaped[np.ndarray, "N ..."]
    index: Int32[np.ndarray, "N"]
    left_out: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def without(self, tiles: Collection[int]) -> Self:
        """The features of the other tiles, in memory."""
        kept = ~np.isin(self.index, list(tiles))
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in ARRAYS})


def features_folder(given: str) -> pathlib.Path:
    """Where entries are: `features` below the config's `cache.folder`, or below the user's cache."""
    return (pathlib.Path(given).expanduser() if given else cache_folder()).absolute() / "features"


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of an entry: a digest of what its features depend on, JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def open_features(entry: pathlib.Path) -> Features:
    """Reads an entry; the arrays stay on disk until they are asked for.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is cut off or damaged; the message names the file.
    """
    if not entry.is_dir():
        raise FileNotFoundError(f"there are no features {entry}")
    try:
        meta = json.loads((entry / META).read_bytes())
        wanted = {name: (meta["files"][name]["dtype"], meta["files"][name]["crc32"]) for name in ARRAYS}
        rows, left_out = meta.get("rows"), tuple(meta.get("left_out", ()))  # None: all, as earlier versions wrote
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{entry / META} cannot be read ({type(error).__name__}: {error})") from error
    arrays = {name: _open_array(entry / f"{name}.npy", *wanted[name])[:rows] for name in ARRAYS}
    return Features(**arrays, left_out=left_out)


def _open_array(path: pathlib.Path, dtype: str, crc32: int) -> np.ndarray:
    try:
        if checksum(path) != crc32:
            raise ValueError("its checksum differs")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array


def checksum(path: pathlib.Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def find_or_make(
    folder: pathlib.Path,
    facts: Mapping[str, Any],
    make: Callable[["Writer"], None],
    may_lack: Callable[[Sequence[int]], bool] = lambda tiles: not tiles,
) -> Features:
    """The features of some facts, made unless they are there; those that are damaged are made again.

    Two processes may ask at once: the second waits and finds what the first one has made.

    Args:
      folder: of all entries.
      facts: what the features depend on, JSON values.
      make: writes them.
      may_lack: whether features may be used that were made without these tiles; else they are made again.

    Raises:
      ConfigError: they cannot be written.
    """
    entry = folder / key_of(facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / f".{entry.name}.lock", f"extracting the features {entry}"):
            found = _find(entry, may_lack)
            return found if found is not None else _make(entry, facts, make)
    except OSError as error:
        raise ConfigError(
            f"features cannot be kept in {folder}: {error}; make room there, or set cache.folder to another place"
        ) from error


def _find(entry: pathlib.Path, may_lack: Callable[[Sequence[int]], bool]) -> Features | None:
    try:
        found = open_features(entry)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logging.warning("%s: these features are made again", error)
        shutil.rmtree(entry)
        return None
    if not may_lack(found.left_out):
        tiles = ", ".join(map(str, found.left_out))
        logging.warning("%s: these features are made again: they lack tiles that could not be read: %s", entry, tiles)
        shutil.rmtree(entry)
        return None
    logging.info("features of %d samples: found in %s", len(found), entry)
    return found


def _make(entry: pathlib.Path, facts: Mapping[str, Any], make: Callable[["Writer"], None]) -> Features:
    """Makes an entry under another name, and gives it its name when whole."""
    unfinished = entry.with_name(f".{entry.name}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed: the lock is ours
    unfinished.mkdir()
    with Writer(unfinished, facts) as writer:
        make(writer)
        writer.finish()
    unfinished.rename(entry)
    sync(entry.parent)
    return open_features(entry)


class Writer:
    """Writes features row by row, of which the first batch tells the shapes."""

    def __init__(self, folder: pathlib.Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, facts
        self._arrays: dict[str, np.memmap] = {}
        self._dtypes: dict[str, str] = {}
        self._rows, self._written = 0, 0
        self._left_out: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.clear()

    def begin(self, rows: int) -> None:
        """Says how many rows there will be."""
        self._rows = rows

    def add(self, **rows: np.ndarray) -> None:
        """Adds some rows of each of `ARRAYS`.

        Raises:
          ValueError: there are more than was said.
        """
        count = len(rows["index"])
        if self._written + count > self._rows:
            raise ValueError(f"{self._written + count} samples came, {self._rows} were expected")
        for name in ARRAYS:
            self._array(name, rows[name])[self._written : self._written + count] = _storable(rows[name])
        self._written += count

    def leave_out(self, tiles: Sequence[int]) -> None:
        """Tells of samples that will not come, by their tiles."""
        self._left_out += tiles

    def _array(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name not in self._arrays:
            self._dtypes[name] = str(rows.dtype)
            shape = (self._rows, *rows.shape[1:])
            stored = _storable(rows).dtype
            path = self._folder / f"{name}.npy"
            self._arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=stored, shape=shape)
        return self._arrays[name]

    def finish(self) -> None:
        """Brings everything to the disk, with checksums.

        Raises:
          ValueError: rows are missing.
        """
        expected = self._rows - len(self._left_out)
        if self._written != expected or not expected:
            raise ValueError(f"{self._written} samples came, {expected} were expected")
        files = {}
        for name in ARRAYS:
            self._arrays.pop(name).flush()
            path = self._folder / f"{name}.npy"
            sync(path)
            files[name] = {"dtype": self._dtypes[name], "crc32": checksum(path)}
        left_out = sorted(set(self._left_out))
        meta = {"facts": dict(self._facts), "files": files, "rows": self._written, "left_out": left_out}
        (self._folder / META).write_text(json.dumps(meta, indent=1) + "\n")
        sync(self._folder / META)


def _storable(array: np.ndarray) -> np.ndarray:
    """bfloat16, which the file format has no name for, as the same bits."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
