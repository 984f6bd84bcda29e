"""The datasets that configs can name: their cards, and how to get at their raw data."""

import dataclasses
import functools
import hashlib
import importlib
import itertools
import os
import pathlib
from collections.abc import Callable

from data_pipelines.card import DatasetCard, Reader


@dataclasses.dataclass(frozen=True)
class DatasetEntry:
    """How a dataset is opened before it is prepared.

    Attributes:
      card: its facts.
      open_reader: makes the reader of raw data from their folder; None for data that are generated.
      generate: makes the reader of data that are generated; None for raw data.
      holds_raw: whether a folder holds the published layout; None for data that are generated.
      layout: the published layout in words, for errors.
      version: "major.minor.patch" of what the reader gives; raise it when the same raw data give other examples.
      code: modules that make generated data; a change in their text makes the data anew.
      source: folder of the raw data where no other is named; a described folder knows its own.
    """

    card: DatasetCard
    open_reader: Callable[[pathlib.Path], Reader] | None = None
    holds_raw: Callable[[pathlib.Path], bool] | None = None
    layout: str = ""
    version: str = "1.0.0"
    code: tuple[str, ...] = ()
    source: pathlib.Path | None = None
    generate: Callable[[], Reader] | None = None

    @property
    def generated(self) -> bool:
        return self.generate is not None

    def reader(self, folder: pathlib.Path | None = None) -> Reader:
        """The reader of the data.

        Args:
          folder: of raw data, as `find_raw` gives it; where it is left out, the dataset's own `source`.

        Raises:
          ValueError: the data are generated and a folder is given, or are not and none is known.
          FileNotFoundError, ValueError: as the reader says of what is in the folder.
        """
        name, folder = self.card.name, folder or self.source
        if self.generate is not None:
            if folder is not None:
                raise ValueError(f"dataset {name!r} is made by this project's code; it is not read from {folder}")
            return self.generate()
        if folder is None or self.open_reader is None:
            where = f" (see {self.card.url})" if self.card.url else ""
            raise ValueError(f"dataset {name!r} is read from a folder: name the one that holds it{where}")
        return self.open_reader(folder)

    def find_raw(self, base: pathlib.Path) -> pathlib.Path | None:
        """The folder that holds the published layout: the one of the dataset's name in `base`, else `base` itself."""
        places = (base / self.card.name, base)
        return next((place for place in places if self.holds_raw is not None and self.holds_raw(place)), None)

    def found_deeper(self, base: pathlib.Path) -> str:
        """For an error where `find_raw` finds nothing: the folder one level down that does hold the layout."""
        tops = [place for place in (base, base / self.card.name) if place.is_dir()]
        below = itertools.chain.from_iterable(itertools.islice(os.scandir(top), _MANY) for top in tops)
        found = [entry.path for entry in below if entry.is_dir() and self.find_raw(pathlib.Path(entry.path))]
        return f"; {min(found)} does: name that folder" if found else ""


_MANY = 100  # a folder of more names is no folder of downloads, and is not looked through


def _mini(name: str) -> DatasetEntry:
    from data_pipelines import mini_geoplex

    code = tuple(f"data_pipelines.{m}" for m in ("land_cover", "landscape", "views", "mini_geoplex"))
    return DatasetEntry(mini_geoplex.MINI_CARDS[name], generate=lambda: mini_geoplex.MiniReader(name), code=code)


def _archive(name: str) -> DatasetEntry:
    """A published archive: the module `datasets/<name>.py` has its card, layout and reader."""
    module = importlib.import_module(f"data_pipelines.datasets.{name}")
    version = getattr(module, "VERSION", "1.0.0")
    return DatasetEntry(module.CARD, module.open_reader, module.holds_raw, module.LAYOUT, version)


MINI_NAMES = ("mini_treesatai_ts", "mini_pastis_hd", "mini_flair", "mini_planted", "mini_s2naip")

GEOPLEX_NAMES = ("treesatai_ts", "pastis_hd", "flair", "planted", "s2naip")
EXTERNAL_NAMES = (
    "bradd_s1ts",
    "sickle",
    "timesen2crop",
    "sen1floods11",
    "so2sat",
    "hls_burn_scars",
    "spacenet7",
    "biomassters",
)
SMALL_NAMES = ("fuel_moisture", "fuel_moisture_land_cover", "sen1floods11_chip")
"""Real data of a few megabytes, for experiments that take minutes; the paper has none of them."""
ARCHIVE_NAMES = GEOPLEX_NAMES + EXTERNAL_NAMES + SMALL_NAMES

_ENTRIES: dict[str, Callable[[], DatasetEntry]] = {
    **{name: functools.partial(_mini, name) for name in MINI_NAMES},
    **{name: functools.partial(_archive, name) for name in ARCHIVE_NAMES},
}


def dataset_names() -> tuple[str, ...]:
    """Names of all datasets."""
    return tuple(_ENTRIES)


def register_dataset(entry: DatasetEntry) -> None:
    """Adds a dataset of one's own, so that configs can name it.

    Raises:
      ValueError: the name is taken.
    """
    name = entry.card.name
    if name in _ENTRIES:
        raise ValueError(f"a dataset {name!r} is registered already; choose another name")
    _ENTRIES[name] = lambda: entry


def get_entry(name: str) -> DatasetEntry:
    """A dataset's entry.

    Args:
      name: the dataset's name, or the path of a description of one's own folder, which ends in ".toml"; from then on
        that dataset has its own name.

    Raises:
      FileNotFoundError: there is no such description.
      ValueError: no dataset has that name, and the message lists those that there are; or a description is impossible.
    """
    if name.endswith(".toml"):
        return _described(name)
    if name not in _ENTRIES:
        raise ValueError(
            f"unknown dataset {name!r}; known datasets: {', '.join(_ENTRIES)}; or the path of a description, FILE.toml"
        )
    return _ENTRIES[name]()


_DESCRIBED: set[str] = set()


def _described(path: str) -> DatasetEntry:
    from data_pipelines.folder import folder_entry

    entry = folder_entry(path)
    if entry.card.name not in _DESCRIBED:  # a description may be read again
        register_dataset(entry)
    _DESCRIBED.add(entry.card.name)
    _ENTRIES[entry.card.name] = lambda: entry
    return entry


def fingerprint(entry: DatasetEntry, reader: Reader, root: pathlib.Path | None) -> str:
    """A name for what `reader` gives, which changes when the raw data or the code that makes them do.

    Made of the dataset's name and version, the raw data's resolved folder and the reader's own `fingerprint`, if it has
    one (which tiles it found), or the text of the generating modules.
    """
    parts = [entry.card.name, entry.version, str(root.resolve()) if root else "", getattr(reader, "fingerprint", "")]
    for module in entry.code:
        file = importlib.import_module(module).__file__
        parts.append(pathlib.Path(file).read_text(encoding="utf-8") if file else "")
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{entry.card.name}-{digest[:12]}"
