"""A folder of one's own tiles as a dataset: described by a TOML file, read like a published archive."""

import pathlib

from data_pipelines.own_tiles.description import Description, read_description
from data_pipelines.own_tiles.reader import FolderReader, folder_card
from data_pipelines.reader import DatasetEntry

__all__ = ["Description", "FolderReader", "folder_card", "folder_entry", "read_description"]


def folder_entry(path: pathlib.Path | str, source: pathlib.Path | None = None) -> DatasetEntry:
    """Returns the dataset of a described folder of tiles and registers the description's own sensors.

    Args:
      path: the description, a TOML file.
      source: folder of the tiles; that of the description unless given.

    Raises:
      FileNotFoundError: the description does not exist.
      ValueError: it cannot be read or is impossible; the message names the field.
    """
    description = read_description(pathlib.Path(path).expanduser())
    folder = description.path.resolve().parent if source is None else source
    return DatasetEntry(
        card=folder_card(description),
        open_reader=lambda root: FolderReader(description, root),
        holds_raw=lambda root: all(f.files.head(root).is_dir() for f in description.sensors if not f.optional),
        layout=", ".join(files.files.text for files in description.sensors),
        version=description.version,
        source=folder,
    )
