"""Cache of frozen features on disk, shared by all probes of the same weights on the same data.

An entry is a folder named by a digest of all that its features depend on. It is renamed to that name once it is whole,
and holds the checksums of its files.
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
    """Frozen features of samples with their labels; memory-mapped.

    Attributes:
      features: input of a head, (N, F), or (N, h, w, F) for a dense task; float32 or bfloat16, as they were computed.
      labels: of the task, (N, ...); of sampled sub-patches only, where a dense task samples them.
      index: position in the split of each sample's tile.
      left_out: positions of the tiles that could not be read when the features were computed.
    """

    features: Float[np.ndarray, "N *hw F"]
    labels: Shaped[np.ndarray, "N ..."]
    index: Int32[np.ndarray, "N"]
    left_out: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def without(self, tiles: Collection[int]) -> Self:
        """Returns the features of the other tiles, in memory."""
        kept = ~np.isin(self.index, list(tiles))
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in ARRAYS})


def features_folder(given: str) -> pathlib.Path:
    """Returns the folder of the entries: `features` below the config's `cache.folder`, or below the user's cache."""
    return (pathlib.Path(given).expanduser() if given else cache_folder()).absolute() / "features"


def key_of(facts: Mapping[str, Any]) -> str:
    """Returns the name of an entry: a digest of the facts that its features depend on, JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def open_features(entry: pathlib.Path) -> Features:
    """Opens an entry; its arrays are memory-mapped.

    Raises:
      FileNotFoundError: there is no such entry.
      ValueError: a file is cut off or damaged; the message names it.
    """
    if not entry.is_dir():
        raise FileNotFoundError(f"there are no features {entry}")
    try:
        meta = json.loads((entry / META).read_bytes())
        wanted = {name: (meta["files"][name]["dtype"], meta["files"][name]["crc32"]) for name in ARRAYS}
        rows, left_out = meta.get("rows"), tuple(meta.get("left_out", ()))  # None: all, in entries of earlier versions
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
    """Returns the CRC-32 of a file."""
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
    """Opens the entry of some facts, or makes it if it is missing or damaged.

    Of two processes that call at once, the second waits and opens the entry of the first.

    Args:
      folder: of all entries.
      facts: that the features depend on, JSON values.
      make: computes and writes the features.
      may_lack: returns whether features without these tiles may be used; otherwise they are made again.

    Raises:
      ConfigError: the entry cannot be written.
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
    """Makes an entry under another name, and renames it once it is whole."""
    unfinished = entry.with_name(f".{entry.name}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed: this one holds the lock
    unfinished.mkdir()
    with Writer(unfinished, facts) as writer:
        make(writer)
        writer.finish()
    unfinished.rename(entry)
    sync(entry.parent)
    return open_features(entry)


class Writer:
    """Writes features batch by batch; the shapes are those of the first batch."""

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
        """Sets the number of rows, before the first batch."""
        self._rows = rows

    def add(self, **rows: np.ndarray) -> None:
        """Adds some rows of each of `ARRAYS`.

        Raises:
          ValueError: there are more rows than `begin` was given.
        """
        count = len(rows["index"])
        if self._written + count > self._rows:
            raise ValueError(f"got {self._written + count} samples, expected {self._rows}")
        for name in ARRAYS:
            self._array(name, rows[name])[self._written : self._written + count] = _storable(rows[name])
        self._written += count

    def leave_out(self, tiles: Sequence[int]) -> None:
        """Counts samples that will be missing; `tiles` has the tile of each."""
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
        """Flushes everything to disk, and writes the checksums.

        Raises:
          ValueError: rows are missing.
        """
        expected = self._rows - len(self._left_out)
        if self._written != expected or not expected:
            raise ValueError(f"got {self._written} samples, expected {expected}")
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
    """Returns bfloat16, a dtype that the file format lacks, as uint16 of the same bits."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
