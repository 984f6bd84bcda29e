"""From names and folders on the command line to readers."""

import argparse
import pathlib

from data_pipelines.prepare.storage import is_url
from data_pipelines.reader import DatasetEntry, Reader


def a_place(text: str) -> str:
    """A folder or an address, as an argument.

    Raises:
      ArgumentTypeError: it is empty, which would be taken for the folder where the command runs, or no UTF-8.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; perhaps a shell variable is not set. For this folder give .")
    if text != text.encode(errors="replace").decode():
        raise argparse.ArgumentTypeError(f"{text!a} is no UTF-8, and not all file formats allow that; rename it")
    return text


def a_folder(text: str) -> pathlib.Path:
    """A folder of this machine, as an argument.

    Raises:
      ArgumentTypeError: it is empty, no UTF-8, or an address.
    """
    if is_url(a_place(text)):
        raise argparse.ArgumentTypeError(f"{text} is an address; expected a folder of this machine")
    return pathlib.Path(text).expanduser()


def open_source(entry: DatasetEntry, source: pathlib.Path | None) -> Reader:
    """The reader of a dataset's raw data.

    Args:
      entry: the dataset's.
      source: folder of the download, or one that holds it under the dataset's name; None for data that are generated,
        and for a described folder, which knows where it is.

    Raises:
      ValueError: a folder is needed and not given, or given and not needed.
      FileNotFoundError: the folder does not exist or does not hold the published layout.
    """
    name = entry.card.name
    if entry.generated:
        if source is not None:
            raise ValueError(f"{name} is made by this project's code; leave out --source")
        return entry.reader()
    folder = source or entry.source
    if folder is None:
        where = f"; get it from {entry.card.url}" if entry.card.url else ""
        raise ValueError(f"{name} is read from a download: give its folder as --source DIR{where}")
    if not folder.is_dir():
        raise FileNotFoundError(f"--source {folder} is no folder; expected that of the download of {name}")
    raw = entry.find_raw(folder)
    if raw is None:
        what = f"{folder} does not hold {name} as it is published; expected {entry.layout}"
        raise FileNotFoundError(f"{what}{entry.found_deeper(folder)}")
    return entry.reader(raw)
