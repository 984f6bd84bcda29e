"""Where a dataset's prepared files are, and the way there: found, generated, or converted from raw data."""

import os
import pathlib
import sys
from collections.abc import Callable

from data_pipelines.card import num_tiles
from data_pipelines.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset, prepared_folder
from data_pipelines.registry import DatasetEntry, fingerprint, get_entry

Announce = Callable[[str], None]


def cache_folder() -> pathlib.Path:
    """Where prepared data go by default: `$XDG_CACHE_HOME/anysat_jax`, or `~/.cache/anysat_jax`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "anysat_jax"


def to_stderr(line: str) -> None:
    """Says something beside the progress bar."""
    print(line, file=sys.stderr, flush=True)


def locate(name: str, root: str | None, announce: Announce = lambda _: None) -> PreparedDataset:
    """Finds a prepared dataset, or prepares it.

    `<root>/<name>/<version>` is taken where it exists. Otherwise generated data are made below `root`, or below the
    cache where `root` is None; raw data in their published layout, in `root` or `<root>/<name>`, are converted into the
    cache, so that they may be read-only. A described folder knows where it is and needs no `root`.

    Args:
      name: the dataset's name.
      root: the config's `data.root`.
      announce: is told what was found where.

    Raises:
      ValueError: no such dataset, or it needs `data.root`.
      FileNotFoundError: `data.root` does not exist or holds neither prepared nor raw data.
      OSError: the prepared data cannot be written.
    """
    entry = get_entry(name)
    base = pathlib.Path(root).expanduser() if root else None
    if base is not None:
        found = prepared_folder(base, name, entry.version)
        if found.is_dir():
            announce(f"{name}: prepared in {found}")
            return PreparedDataset.open(entry.card, found)
    folder = _generate(entry, base, announce) if entry.generated else _convert(entry, base, announce)
    return PreparedDataset.open(entry.card, folder)


def _generate(entry: DatasetEntry, base: pathlib.Path | None, announce: Announce) -> pathlib.Path:
    reader = entry.open_reader(None)
    target = (base or cache_folder()) / fingerprint(entry, reader, None)
    folder = prepare_dataset(reader, target, entry.version)
    announce(f"{entry.card.name}: {num_tiles(reader)} tiles, prepared in {folder}")
    return folder


def _convert(entry: DatasetEntry, base: pathlib.Path | None, announce: Announce) -> pathlib.Path:
    raw = _raw_folder(entry, base)
    reader = entry.open_reader(raw)
    summary = getattr(reader, "summary", f"{entry.card.name}: {num_tiles(reader)} tiles in {raw}")
    announce(summary)
    folder = prepare_dataset(reader, cache_folder() / fingerprint(entry, reader, raw), entry.version)
    announce(f"{entry.card.name}: prepared in {folder}")
    return folder


def _raw_folder(entry: DatasetEntry, base: pathlib.Path | None) -> pathlib.Path:
    name = entry.card.name
    if base is None and entry.source is not None:
        return entry.source
    if base is None:
        where = f" (see {entry.card.url})" if entry.card.url else ""
        raise ValueError(
            f"dataset {name!r} is not generated: set --config.data.root to the folder that holds it{where}"
        )
    if not base.is_dir():
        raise FileNotFoundError(f"dataset {name!r}: data.root is {base}, which is no folder")
    for folder in (base, base / name):
        if entry.holds_raw is not None and entry.holds_raw(folder):
            return folder
    raise FileNotFoundError(
        f"dataset {name!r}: data.root is {base}, where there is neither a prepared {name}/{entry.version} nor, "
        f"there or in {name}, the published layout ({entry.layout})"
    )
