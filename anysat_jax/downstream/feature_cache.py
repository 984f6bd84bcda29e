"""Cache of frozen features on disk, shared by all probes of the same weights on the same data.

An entry is a folder named by a digest of all that its features depend on. It is renamed to that name once it is whole,
and holds the checksums of its files.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import ml_dtypes
import numpy as np
from absl import logging
from jaxtyping import Float, Int32, Shaped

from anysat_jax.errors import ConfigError
from data_pipelines.prepare.storage import cache_folder, hold_lock, sync

ARRAYS = ("features", "labels", "index")
META = "meta.json"


@dataclasses.dataclass(frozen=True)
class Features:
    """Frozen features of samples with their labels; memory-mapped."""

    # Input of a head, (N, F), or (N, h, w, F) for a dense task; float32 or bfloat16, as they were computed.
    features: Float[np.ndarray, "N *hw F"]
    # Of the task, (N, ...); of sampled sub-patches only, where a dense task samples them.
    labels: Shaped[np.ndarray, "N ..."]
    index: Int32[np.ndarray, "N"]  # position in the split of each sample's tile
    left_out: tuple[int, ...] = ()  # positions of the tiles that could not be read when the features were computed

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
      FileNotFoundError: the entry does not exist.
      ValueError: a file is cut off or damaged; the message names it.
    """
    if not entry.is_dir():
        raise FileNotFoundError(f"there are no features {entry}")
    try:
        meta = json.loads((entry / META).read_bytes())
        wanted = {name: (meta["files"][name]["dtype"], meta["files"][name]["crc32"]) for name in ARRAYS}
        # Entries of earlier versions have neither: all rows are there.
        rows, left_out = meta.get("rows"), tuple(meta.get("left_out", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{entry / META} cannot be read ({type(error).__name__}: {error})") from error
    arrays = {}
    for name, (dtype, crc32) in wanted.items():
        path = entry / f"{name}.npy"
        try:
            if checksum(path) != crc32:
                raise ValueError("its checksum differs")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error
        arrays[name] = (array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array)[:rows]
    return Features(**arrays, left_out=left_out)


def checksum(path: pathlib.Path) -> int:
    """Returns the CRC-32 of a file."""
    return zlib.crc32(np.memmap(path, np.uint8, mode="r"))  # mapped: it may be larger than the memory


@contextlib.contextmanager
def hold_entry(entry: pathlib.Path) -> Iterator[None]:
    """Holds the lock of an entry: of two processes that look for it at once, the second finds what the first makes.

    Raises:
      ConfigError: the entry cannot be written.
    """
    folder = entry.parent
    try:
        with hold_lock(folder / f".{entry.name}.lock", f"extracting the features {entry}"):
            yield
    except OSError as error:
        raise ConfigError(
            f"features cannot be kept in {folder}: {error}; make room there, or set cache.folder to another place"
        ) from error


def find_features(
    entry: pathlib.Path, may_lack: Callable[[Sequence[int]], bool] = lambda tiles: not tiles
) -> Features | None:
    """Opens an entry; removes it with a warning, and returns None, if it must be made again.

    Args:
      entry: its lock must be held.
      may_lack: returns whether features without these tiles may be used.
    """
    try:
        found = open_features(entry)
    except FileNotFoundError:
        return None
    except ValueError as error:
        message = f"{error}: these features are made again"
    else:
        if may_lack(found.left_out):
            logging.info("features of %d samples: found in %s", len(found), entry)
            return found
        tiles = ", ".join(map(str, found.left_out))
        message = f"{entry}: these features are made again: they lack tiles that could not be read: {tiles}"
    logging.warning("%s", message)
    shutil.rmtree(entry)
    return None


class Writer:
    """Writes an entry batch by batch; the shapes are those of the first batch. Use as a context manager."""

    def __init__(self, entry: pathlib.Path, facts: Mapping[str, Any], rows: int) -> None:
        """Takes an entry, the facts that it depends on (JSON values), and the number of its samples."""
        self._entry, self._facts, self._rows = entry, facts, rows
        # Beside the entry, not in a temporary folder, which may be on another disk: then a rename is a copy.
        self._folder = entry.with_name(f".{entry.name}.incomplete")
        self._arrays: dict[str, np.memmap] = {}
        self._dtypes: dict[str, str] = {}
        self._written = 0
        self._left_out: list[int] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)  # left by a process that was killed: this one holds the lock
        self._folder.mkdir()
        return self

    def add(self, **rows: np.ndarray) -> None:
        """Adds some rows of each of `ARRAYS`.

        Raises:
          ValueError: there are more rows than were announced.
        """
        count = len(rows["index"])
        if self._written + count > self._rows:
            raise ValueError(f"got {self._written + count} samples, expected {self._rows}")
        # Straight into files, since the features of a split may be larger than the memory.
        for name in ARRAYS:
            # The file format lacks bfloat16, which is stored as uint16 of the same bits.
            stored = rows[name].view(np.uint16) if rows[name].dtype == ml_dtypes.bfloat16 else rows[name]
            if name not in self._arrays:
                self._dtypes[name], shape = str(rows[name].dtype), (self._rows, *stored.shape[1:])
                path = self._folder / f"{name}.npy"
                self._arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=stored.dtype, shape=shape)
            self._arrays[name][self._written : self._written + count] = stored
        self._written += count

    def leave_out(self, tiles: Sequence[int]) -> None:
        """Counts samples that will be missing; `tiles` has the tile of each."""
        self._left_out += tiles

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Flushes everything to disk, writes the checksums, and renames the folder; raises if rows are missing."""
        if error is not None:
            self._arrays.clear()
            return
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
        # The name appears only now: a folder with an entry's name is whole.
        self._folder.rename(self._entry)
        sync(self._entry.parent)
