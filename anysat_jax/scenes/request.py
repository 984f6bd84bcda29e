"""The request of a run, by which an interrupted one is recognised, and the folder of its finished windows."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import rasterio

from anysat_jax.errors import ConfigError
from anysat_jax.scenes.catalogues import archive_of
from anysat_jax.scenes.outputs import read_tags
from anysat_jax.scenes.reading import Stack
from anysat_jax.scenes.warping import Band
from anysat_jax.scenes.work import EMPTY, INPUT, RESULT
from anysat_jax.train.config import differences
from data_pipelines.prepare.storage import hold_lock, write_whole

SEEN = 32  # half of the side of the part of an array by which it is recognised
REQUEST_FILE, SAMPLE_FILE = "request.json", "sample.json"
REQUEST_TAG = "ANYSAT_REQUEST"  # of the result: the fingerprint


@dataclasses.dataclass(frozen=True)
class Request:
    """All that the result depends on, JSON values by name."""

    facts: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    @property
    def seed(self) -> int:
        """Of the sample of tiles."""
        return int(self.fingerprint[:15], 16)


def stack_facts(stack: Stack) -> dict[str, Any]:
    """Returns facts by which a sensor's rasters are recognised, by acquisition: sizes and times of files, places."""
    facts: dict[str, Any] = {"units": stack.units}
    for number, one in enumerate(stack.acquisitions):
        bands = [_band_facts(band) for band in (*one.bands, *([one.mask] if one.mask else []))]
        text = json.dumps([str(one.day), [int(value) for value in one.clear], bands])
        # By name, so that a message can say which one differs.
        facts[f"{number}: {os.path.basename(one.name)}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return facts


def _band_facts(band: Band) -> list[Any]:
    numbers = [getattr(band, name, None) for name in ("scale", "offset", "nodata", "zero", "thermal")]
    facts = [str(band.crs), *band.transform[:6], *band.shape, *map(str, numbers)]
    if path := getattr(band, "path", None):
        number = getattr(band, "number", 1)
        # What follows ? in an address is often a signature that expires.
        if isinstance(path, str) and (archive := archive_of(path)) is None:
            return [*facts, path.partition("?")[0], number]
        status = os.stat(archive if isinstance(path, str) else path)
        return [*facts, os.path.abspath(path), number, status.st_size, status.st_mtime_ns]
    # Of an array there is its content: a part in the middle.
    rows, columns = (slice(max(0, side // 2 - SEEN), side // 2 + SEEN) for side in band.shape)
    values = np.ma.filled(np.ma.asarray(band.read(rows, columns), np.float32), np.nan)
    return [*facts, band.name, hashlib.sha256(values.tobytes()).hexdigest()]


def finished_fingerprint(output: pathlib.Path) -> str | None:
    """Returns the fingerprint of the request that made a result; None for other files."""
    try:
        return read_tags(output).get(REQUEST_TAG)
    except (OSError, ValueError, rasterio.errors.RasterioError):
        return None


@dataclasses.dataclass(frozen=True)
class Parts:
    """The folder beside the output in which finished windows lie until all are there."""

    output: pathlib.Path

    @property
    def folder(self) -> pathlib.Path:
        return self.output.with_name(f"{self.output.name}.parts")

    @contextlib.contextmanager
    def open(self, request: Request, side: int) -> Iterator[int | None]:
        """Keeps other runs away and makes the folder, or goes on in it.

        Args:
          request: what is asked for.
          side: tiles along a side of a window, unless a run before has begun with others.

        Yields:
          The tiles along a side of a window; None: the result is finished already.

        Raises:
          ConfigError: the output exists and is of something else, or the folder is of another request.
          OSError: the folder cannot be made or written.
        """
        if not self.output.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {self.output.parent} for {self.output.name}: make it first")
        lock = self.output.with_name(f".{self.output.name}.lock")
        with hold_lock(lock, f"writing {self.output}"):
            try:
                yield self._enter(request, side)
            finally:
                lock.unlink(missing_ok=True)

    def _enter(self, request: Request, side: int) -> int | None:
        if self.output.exists():
            if finished_fingerprint(self.output) != request.fingerprint:
                raise ConfigError(f"{self.output} exists and is not the result of this request: delete it, or choose "
                                  "another --output")  # fmt: skip
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        file = self.folder / REQUEST_FILE
        if file.exists():
            before = json.loads(file.read_bytes())
            self._check_same(request, before["request"])
            return before["window"]
        for folder in (RESULT, INPUT):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        content = {"request": request.facts, "window": side}
        write_whole(file, json.dumps(content, indent=1, sort_keys=True).encode())
        return side

    def _check_same(self, request: Request, before: Mapping[str, Any]) -> None:
        changed = differences(before, json.loads(json.dumps(request.facts)))
        if changed:
            name, old, new = changed[0]
            raise ConfigError(
                f"{self.folder} has finished windows of another request: its {name} was {_short(old)} and is "
                f"{_short(new)} now; give the former request, another --output, or delete the folder"
            )

    def is_done(self, name: str) -> bool:
        """Returns whether a window is finished."""
        return any((self.folder / RESULT / f"{name}{ending}").exists() for ending in (".tif", EMPTY))

    def remove(self) -> None:
        """Removes the folder of a finished result."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def size_of(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return os.stat(path).st_size
