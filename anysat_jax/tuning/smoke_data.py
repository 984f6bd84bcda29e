"""Archives for smoke runs: made up on the spot in a dataset's published layout, and kept in the user's cache."""

import hashlib
import pathlib
import shutil

import data_pipelines.datasets
import data_pipelines.fakes
from anysat_jax.train.errors import ConfigError
from data_pipelines.commands.fake_archive import write_fake
from data_pipelines.places import cache_folder, hold_lock, temporary_name
from data_pipelines.registry import ARCHIVE_NAMES

CODE = (data_pipelines.fakes, data_pipelines.datasets)
"""Packages whose text an archive depends on; when it changes, the archives are made anew."""


def make_fake_archive(name: str, tiles: int) -> pathlib.Path:
    """The folder of a made-up archive, written unless it is there already.

    Of several processes that ask at once, one writes and the others wait. A folder that has the archive's name is
    whole.

    Args:
      name: the dataset's.
      tiles: of each of its splits.

    Returns:
      A folder to give as the config's `data.root`.

    Raises:
      ConfigError: no archive of that name can be made.
      ImportError: the package that writes the archive's files is not installed; the message names it.
      OSError: the cache cannot be written.
    """
    if name not in ARCHIVE_NAMES:
        raise ConfigError(
            f"data.fake_tiles = {tiles}: no archive of {name!r} can be made up, only of {', '.join(ARCHIVE_NAMES)}; "
            "set data.fake_tiles = 0 to read data.root"
        )
    base = cache_folder() / "smoke"
    folder = base / f"{name}-{tiles}-{code_digest()}"
    if folder.is_dir():
        return folder
    base.mkdir(parents=True, exist_ok=True)
    with hold_lock(base / f"{name}.lock", f"writing a made-up archive of {name}"):
        if not folder.is_dir():
            _write(name, tiles, folder)
    return folder


def code_digest() -> str:
    """A name for the text of `CODE`."""
    files = sorted(path for package in CODE for path in pathlib.Path(package.__path__[0]).glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _write(name: str, tiles: int, folder: pathlib.Path) -> None:
    """Writes beside the folder, which gets its name when it is whole."""
    temporary = folder.with_name(temporary_name(folder.name))
    try:
        write_fake(name, temporary, tiles)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
