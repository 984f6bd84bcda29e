"""Where a result comes from: which code, on what, when."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

import anysat_jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def provenance(seconds: float) -> dict[str, Any]:
    """What summary.json says of a result's origin.

    Args:
      seconds: how long the run took.

    Returns:
      "commit" and "dirty" (whether files differ from it) of the checkout that the code is from, None where it is
      installed from elsewhere; "date", the end of the run in UTC (ISO 8601); "seconds"; "device", how many of which;
      "versions" of the libraries.
    """
    commit, dirty = checkout_state(pathlib.Path(anysat_jax.__file__).parents[1])
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of this library, of Python and of the libraries that compute."""
    found = {"anysat-jax": anysat_jax.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


def checkout_state(folder: pathlib.Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout whose top is `folder`, and whether tracked files differ from it.

    (None, None) where it is none, such as an installed package; a repository further up, of something else that this
    code lies in, does not count.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != folder.resolve():
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return _git(folder, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _git(folder: pathlib.Path, *command: str) -> str | None:
    """What git prints; None where it is missing, fails or hangs."""
    try:
        result = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
