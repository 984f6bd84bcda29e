"""Checksums of a folder's files: written before it counts as whole, compared before it is read.

Array files carry no checksum of their own, so that a flipped bit would be read as another number.
"""

import concurrent.futures
import hashlib
import json
import pathlib
from typing import Any

from anysat_jax.train.summary import write_json

FILE = "checksums.json"
CHANGING = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files at the top of a checkpoint that Orbax writes after its last call to us; they hold times, and nothing is read
from them."""
THREADS = 4  # hashing frees the interpreter


def write_checksums(folder: pathlib.Path) -> None:
    """Writes `checksums.json` into a folder: size in bytes and SHA-256 of every file below it.

    Raises:
      OSError: a file cannot be read, or the checksums cannot be written.
    """
    write_json(folder / FILE, {"files": _measure(folder, _names(folder))})


def find_damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files of a folder, in words; None where nothing is, or where there are no checksums.

    Files that were added later are no damage. Ask `has_checksums` too where there should be checksums.
    """
    try:
        written = json.loads((folder / FILE).read_bytes())["files"]
    except FileNotFoundError:
        return None  # of an earlier version
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILE} cannot be read: {error}"
    missing = [name for name in written if not (folder / name).is_file()]
    if missing:
        return _said(missing, "is missing")
    try:
        found = _measure(folder, list(written))
    except OSError as error:
        return f"a file cannot be read: {error}"
    changed = [name for name in written if found[name] != written[name]]
    return _said(changed, "is not what was written") if changed else None


def has_checksums(folder: pathlib.Path) -> bool:
    """Whether there are any. They may have been removed by a process that was killed while it removed the folder."""
    return (folder / FILE).is_file()


def _names(folder: pathlib.Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name not in (FILE, *CHANGING))


def _measure(folder: pathlib.Path, names: list[str]) -> dict[str, dict[str, Any]]:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _measure_file(folder / name), names), strict=True))


def _measure_file(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _said(names: list[str], what: str) -> str:
    return f"{names[0]} {what}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
