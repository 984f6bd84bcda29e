"""Registry of the datasets that configs can name."""

import functools
import hashlib
import importlib
import pathlib
from collections.abc import Callable

from data_pipelines.reader import DatasetEntry, Reader


def _mini(name: str) -> DatasetEntry:
    # Readers are imported where they are used: all of them would take seconds at each start.
    from data_pipelines.mini.datasets import MINI_CARDS, MiniReader

    code = tuple(f"data_pipelines.mini.{module}" for module in ("land_cover", "landscape", "sensing", "datasets"))
    return DatasetEntry(MINI_CARDS[name], generate=lambda: MiniReader(name), code=code)


def _archive(name: str) -> DatasetEntry:
    """Returns the entry of a published archive, whose card, layout and reader are in `datasets/<name>.py`."""
    if name in _SHARED:
        module, entry = _SHARED[name]
        return getattr(importlib.import_module(f"data_pipelines.datasets.{module}"), entry)
    module = importlib.import_module(f"data_pipelines.datasets.{name}")
    version = getattr(module, "VERSION", "1.0.0")
    return DatasetEntry(module.CARD, getattr(module, _READERS[name]), module.holds_raw, module.LAYOUT, version)


MINI_NAMES = ("mini_treesatai_ts", "mini_pastis_hd", "mini_flair", "mini_planted", "mini_s2naip")

GEOPLEX_NAMES = ("treesatai_ts", "pastis_hd", "flair", "planted", "s2naip")
_READERS = {
    "treesatai_ts": "TreeSatReader",
    "pastis_hd": "PastisReader",
    "flair": "FlairReader",
    "planted": "open_reader",
    "s2naip": "S2NaipReader",
    "bradd_s1ts": "BraddReader",
    "sickle": "SickleReader",
    "timesen2crop": "TimeSen2CropReader",
    "sen1floods11": "Sen1FloodsReader",
    "so2sat": "So2SatReader",
    "hls_burn_scars": "BurnScarsReader",
    "spacenet7": "SpaceNet7Reader",
    "biomassters": "BioMasstersReader",
    "fuel_moisture": "FuelMoistureReader",
}
"""What opens each archive, in `datasets/<name>.py`."""
SMALL_NAMES = ("fuel_moisture", "fuel_moisture_land_cover", "sen1floods11_chip")
"""Real data of a few megabytes, for experiments that take minutes; the paper has none of them."""
EXTERNAL_NAMES = tuple(name for name in _READERS if name not in GEOPLEX_NAMES + SMALL_NAMES)
_SHARED = {
    "fuel_moisture_land_cover": ("fuel_moisture", "LAND_COVER_ENTRY"),
    "sen1floods11_chip": ("sen1floods11", "CHIP_ENTRY"),
}
"""Datasets read from another one's files: its module, and their entry there."""
ARCHIVE_NAMES = GEOPLEX_NAMES + EXTERNAL_NAMES + SMALL_NAMES

_ENTRIES: dict[str, Callable[[], DatasetEntry]] = {
    **{name: functools.partial(_mini, name) for name in MINI_NAMES},
    **{name: functools.partial(_archive, name) for name in ARCHIVE_NAMES},
}
_DESCRIBED: set[str] = set()  # names that came from descriptions


def dataset_names() -> tuple[str, ...]:
    """Returns the names of all datasets."""
    return tuple(_ENTRIES)


def register_dataset(entry: DatasetEntry) -> None:
    """Adds a dataset, so that configs can name it.

    Raises:
      ValueError: the name is taken.
    """
    name = entry.card.name
    if name in _ENTRIES:
        raise ValueError(f"a dataset {name!r} is registered already; choose another name")
    _ENTRIES[name] = lambda: entry


def get_entry(name: str) -> DatasetEntry:
    """Returns the entry of a dataset by its name, or by the path of a description of one's own folder.

    A path ends in ".toml" and registers the dataset under its own name.

    Raises:
      FileNotFoundError: there is no such description.
      ValueError: no dataset has that name (the message lists the known ones), or a description is wrong.
    """
    if name.endswith(".toml"):
        from data_pipelines.own_tiles.reader import folder_entry

        entry = folder_entry(name)
        # A description may be read again, after a change; the name of another dataset is refused.
        if entry.card.name not in _DESCRIBED:
            register_dataset(entry)
        _DESCRIBED.add(entry.card.name)
        _ENTRIES[entry.card.name] = lambda: entry
        return entry
    if name not in _ENTRIES:
        raise ValueError(
            f"unknown dataset {name!r}; known datasets: {', '.join(_ENTRIES)}; or the path of a description, FILE.toml"
        )
    return _ENTRIES[name]()


def fingerprint(entry: DatasetEntry, reader: Reader, root: pathlib.Path | None) -> str:
    """Returns a name for the examples of `reader`, which changes with the raw data or the code that generates them.

    It is made of the dataset's name and version, the raw data's resolved folder, the reader's own `fingerprint` (of the
    tiles it found), if it has one, and the text of the generating modules.
    """
    parts = [entry.card.name, entry.version, str(root.resolve()) if root else "", getattr(reader, "fingerprint", "")]
    files = [str(importlib.import_module(module).__file__) for module in entry.code]
    parts += [pathlib.Path(file).read_text(encoding="utf-8") for file in files]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{entry.card.name}-{digest[:12]}"
