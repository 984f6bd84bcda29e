"""Prepared files of a dataset: found, downloaded, generated, or converted from raw data."""

import pathlib
import re
from collections.abc import Callable

from data_pipelines.card import FILE_NAME, DatasetCard, read_card
from data_pipelines.prepare.plan import FORMAT
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.storage import cache_folder, download, is_url, remote_versions
from data_pipelines.prepared import PreparedDataset
from data_pipelines.reader import DatasetEntry, num_tiles
from data_pipelines.registry import dataset_names, fingerprint, get_entry

Announce = Callable[[str], None]


def locate(name: str, root: str | None, announce: Announce = lambda _: None) -> PreparedDataset:
    """Finds a prepared dataset, or prepares it.

    `<root>/<name>/<version>` is opened where it exists; from a remote root ("gs://bucket/folder") it is copied into the
    cache first. A name that is not registered is found by the card beside its newest version. Otherwise generated data
    are made below `root`, or below the cache where `root` is None; raw data in their published layout, in `root` or
    `<root>/<name>`, are converted into the cache, so that they may be read-only. A described folder needs no `root`.

    `name` is the dataset's, or the path of a description of one's own folder, FILE.toml; `root` is the config's
    `data.root`; `announce` receives a line with the dataset's folder.

    Raises:
      ValueError: no such dataset, it needs `data.root`, or the prepared data have another card.
      FileNotFoundError: `data.root` does not exist or holds neither prepared nor raw data.
      OSError: the prepared data cannot be written or fetched.
    """
    if prepared := find_prepared(name, root):
        only = "" if prepared.limit is None else f"; ONLY the first {prepared.limit} tiles of each split"
        announce(f"{prepared.card.name}: prepared in {prepared.folder}{only}")
        return prepared
    entry = _registered(name) or _unknown(name, root)
    name = entry.card.name
    base = pathlib.Path(root).expanduser() if root and not is_url(root) else None
    if root and is_url(root) and not entry.generate:
        raise FileNotFoundError(f"dataset {name!r}: no complete {name}/{entry.version} at data.root {root}")
    return _prepare(entry, base, announce)


def find_prepared(name: str, root: str | None) -> PreparedDataset | None:
    """Opens the prepared dataset below a root; None if there is none. See `locate`.

    Raises:
      ValueError: the prepared data have another card, or their card cannot be read.
      OSError: a remote root cannot be reached.
    """
    entry = _registered(name)
    found = _find(entry.card.name if entry else name, root, entry.version if entry else None)
    return None if found is None else PreparedDataset.open(entry.card if entry else read_card(found)[0], found)


def find_card(name: str, root: str | None) -> DatasetCard:
    """Returns a dataset's card: the registered one, or for other names the one beside the prepared data; see `locate`.

    Raises:
      ValueError: the name is neither registered nor prepared below `root`.
      OSError: a remote root cannot be reached.
    """
    if entry := _registered(name):
        return entry.card
    found = _find(name, root, None)
    return read_card(found)[0] if found is not None else _unknown(name, root).card


def _registered(name: str) -> DatasetEntry | None:
    return get_entry(name) if name.endswith(".toml") or name in dataset_names() else None


def _find(name: str, root: str | None, version: str | None) -> pathlib.Path | None:
    """Returns the prepared folder of a version, or of the newest if `version` is None; None if there is none."""
    # A name of a config must not lead out of the root.
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name):
        raise ValueError(f"{name!r} is not a name of a dataset; expected letters, digits and _")
    if root and is_url(root):
        versions = [one for one in remote_versions(root, name) if version in (None, one)]
        return download(root, name, versions[-1]) if versions else None
    if not root:
        return None
    base = pathlib.Path(root).expanduser()
    if version is not None:
        return found if (found := base / name / version).is_dir() else None
    cards = base.glob(f"{name}/*/{FILE_NAME}")
    folders = [card.parent for card in cards if re.fullmatch(r"\d+\.\d+\.\d+", card.parent.name)]
    return max(folders, key=lambda folder: tuple(map(int, folder.name.split("."))), default=None)


def _unknown(name: str, root: str | None) -> DatasetEntry:
    """Raises the registry's error on an unknown name, with the prepared folder that was looked for."""
    if root and not is_url(root) and not pathlib.Path(root).expanduser().is_dir():
        raise ValueError(f"data.root is {root}, which is not a folder; expected one with a prepared {name}/<version>")
    try:
        return get_entry(name)
    except ValueError as error:
        where = f"{root} holds no prepared {name}/<version>/{FILE_NAME}" if root else "data.root is not set"
        raise ValueError(f"{error}; and {where}") from None


def _prepare(entry: DatasetEntry, base: pathlib.Path | None, announce: Announce) -> PreparedDataset:
    raw = None if entry.generate else _raw_folder(entry, base)
    reader, name = entry.reader(raw), entry.card.name
    tiles = f"{num_tiles(reader)} tiles"
    # Raw data may be read-only; generated ones have no other place.
    out = cache_folder() if raw or base is None else base
    # Another name for other tiles or other code: what was prepared before is neither mixed in nor refused.
    target = out / f"{fingerprint(entry, reader, raw)}-{FORMAT}"
    if raw:
        announce(getattr(reader, "summary", f"{name}: {tiles} in {raw}"))
        folder = prepare_dataset(reader, target, entry.version, source=str(raw))
        announce(f"{name}: prepared in {folder}")
    else:
        folder = prepare_dataset(reader, target, entry.version, say=lambda _: None)
        announce(f"{name}: {tiles}, prepared in {folder}")
    return PreparedDataset.open(entry.card, pathlib.Path(folder))


def _raw_folder(entry: DatasetEntry, base: pathlib.Path | None) -> pathlib.Path:
    name = entry.card.name
    if base is None:
        if entry.source is not None:
            return entry.source
        where = f" (see {entry.card.url})" if entry.card.url else ""
        remedy = f"set --config.data.root to the folder that holds it{where}"
        raise ValueError(f"dataset {name!r} is not generated: {remedy}")
    if not base.is_dir():
        raise FileNotFoundError(f"dataset {name!r}: data.root is {base}, which is not a folder")
    folder = entry.find_raw(base) or (entry.find_raw(entry.source) if entry.source else None)
    if folder is not None:
        return folder
    raise FileNotFoundError(
        f"dataset {name!r}: data.root is {base}, where there is neither a prepared {name}/{entry.version} nor, "
        f"there or in {name}, the published layout ({entry.layout}){entry.found_deeper(base)}"
    )
