"""The list of what a prepared folder holds, by which a copy that is not whole, or was changed, is noticed at once.

Shards are listed by size: their records have checksums of their own, which are checked when they are read.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

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
