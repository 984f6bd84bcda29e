"""Record of a run over all its starts, summary.json, and the origin of results: commit, device, versions."""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Self

import jax

from data_pipelines.prepare.storage import write_whole

EDGE = 10  # steps whose mean is a loss's "first" and "last"


@dataclasses.dataclass
class LossEdges:
    """The first and the last values of a loss."""

    first: list[float] = dataclasses.field(default_factory=list)
    last: list[float] = dataclasses.field(default_factory=list)

    def add(self, value: float) -> None:
        if len(self.first) < EDGE:
            self.first.append(value)
        self.last = [*self.last, value][-EDGE:]  # a list, not a deque: it goes into checkpoints as JSON

    def means(self) -> dict[str, float | None]:
        """Returns means over the first and the last `EDGE` steps, or over all of fewer; None before any step."""
        return {name: sum(values) / len(values) if values else None for name, values in vars(self).items()}


@dataclasses.dataclass
class RunRecord:
    """Counts of a run's steps; saved in every checkpoint, so that they cover all starts of the run."""

    steps: int = 0  # updates made
    losses: dict[str, LossEdges] = dataclasses.field(default_factory=dict)
    batches: dict[str, int] = dataclasses.field(default_factory=dict)  # steps of each "dataset patch-size m"
    tiles: int = 0  # of the steps during which nothing was compiled, for the throughput
    seconds: float = 0.0  # of these steps
    programs: int = 0  # compiled programs of the last process that trained
    resumed_from: int | None = None  # step of the checkpoint that the last process which trained started from
    peak_memory_mb: float = 0.0  # the largest of all processes until their last checkpoint
    nonfinite_steps: int = 0  # steps whose update was not applied, since a loss or a gradient was not finite
    # Training tiles that could not be read and were left out, by dataset, as counted by the first process.
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    warnings: int = 0  # of the features' health
    # The features' rank between tiles at the start, by kind of batch.
    first_ranks: dict[str, float] = dataclasses.field(default_factory=dict)

    def add_step(self, losses: dict[str, float] | None, batch: str) -> None:
        """Counts a step with its losses (None: not finite) and its kind of batch, "dataset patch-size m"."""
        self.steps += 1
        self.batches[batch] = self.batches.get(batch, 0) + 1
        if losses is None:  # one NaN among the edges would make their mean NaN
            self.nonfinite_steps += 1
            return
        for name, value in losses.items():
            self.losses.setdefault(name, LossEdges()).add(value)

    @classmethod
    def of(cls, losses: Iterable[str]) -> Self:
        """Returns the record of a run without steps: a summary has all losses, even before the first step."""
        return cls(losses={name: LossEdges() for name in losses})

    @property
    def tiles_per_second(self) -> float | None:
        return self.tiles / self.seconds if self.seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON values, with the memory of this process so far."""
        # The largest of all starts: that of the last one alone would hide a peak before a restart.
        self.peak_memory_mb = max(self.peak_memory_mb, peak_memory_mb())
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the record of `to_json`; raises TypeError or KeyError for that of another version."""
        losses = {name: LossEdges(**edges) for name, edges in values["losses"].items()}
        return cls(**{**values, "losses": losses})


def peak_memory_mb() -> float:
    """Returns the largest resident memory of this process so far in MB (2^20 bytes), without that of accelerators."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else kilobytes
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes the whole file or nothing: readers never get half of it."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def provenance(seconds: float) -> dict[str, Any]:
    """Returns the origin of a result, for summary.json: of a run that took some seconds.

    Returns:
      "commit" and "dirty" (whether files differ from it) of the checkout that the code is from, None for an installed
      package; "date", the end of the run in UTC (ISO 8601); "seconds"; "device", how many of which;
      "versions" of the libraries.
    """
    commit, dirty = checkout_state(pathlib.Path(__file__).parents[2])
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of this library, of Python and of the libraries that compute."""
    try:
        own = importlib.metadata.version("anysat-jax")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed; its commit is known
        own = "unknown"
    found = {"anysat-jax": own, "python": platform.python_version()}
    libraries = ("jax", "jaxlib", "flax", "optax", "numpy")
    return found | {name: importlib.metadata.version(name) for name in libraries}


def checkout_state(folder: pathlib.Path) -> tuple[str | None, bool | None]:
    """Returns the commit of the checkout whose top is `folder`, and whether tracked files differ from it.

    (None, None) if `folder` is not the top of one, as in an installed package: a repository further up is another
    project's, which contains this code.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != folder.resolve():
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return _git(folder, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _git(folder: pathlib.Path, *command: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # git is missing, or hangs on a network file system
        return None
    return result.stdout.strip() if result.returncode == 0 else None
