"""`fake`: a made-up archive in the published layout of a dataset, to try everything on."""

import argparse
import importlib
import pathlib
import shlex

from data_pipelines.commands.source import a_folder
from data_pipelines.registry import ARCHIVE_NAMES, GEOPLEX_NAMES, get_entry

NAME = "fake"
HELP = """Writes a made-up archive in a dataset's published layout, to try everything on without a download.

  python -m data_pipelines fake pastis_hd --out fakes/pastis_hd --tiles 8
  python -m data_pipelines fake geoplex --out fakes           the five of pretraining, each in fakes/NAME
  python -m data_pipelines look pastis_hd --source fakes/pastis_hd --out pictures

The values are smooth noise: layout, dtypes, dates and gaps are like the real ones, the pictures are not.
"""
GEOPLEX = "geoplex"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which archive, where to, and how large."""
    parser.add_argument("name", metavar="NAME", choices=(*ARCHIVE_NAMES, GEOPLEX), help="a dataset, or geoplex")
    parser.add_argument("--out", type=a_folder, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument("--tiles", type=int, default=4, metavar="N", help="tiles of each split (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other values (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Writes the archives and says what to type next.

    Raises:
      ValueError: no positive number of tiles, or a negative seed.
      FileExistsError: the folder holds something already.
    """
    if arguments.tiles < 1 or arguments.seed < 0:
        raise ValueError(f"--tiles {arguments.tiles} --seed {arguments.seed}: expected at least 1 tile and seed 0")
    out = arguments.out
    names = GEOPLEX_NAMES if arguments.name == GEOPLEX else (arguments.name,)
    folders = {name: out / name if arguments.name == GEOPLEX else out for name in names}
    for folder in folders.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already and not an empty folder; choose a new one as --out")
    for name, folder in folders.items():
        write_fake(name, folder, arguments.tiles, arguments.seed)
        print(f"{name}: {arguments.tiles} made-up tiles of each split are in {folder}")
    first, folder = next(iter(folders.items()))
    print("\nNext:")
    source = shlex.quote(str(folder))
    print(f"  python -m data_pipelines look {first} --source {source} --out pictures")
    print(f"  python -m data_pipelines prepare {first} --source {source} --out prepared")


def write_fake(name: str, folder: pathlib.Path, tiles: int, seed: int = 0) -> None:
    """Writes a dataset's made-up archive with that many tiles in each split."""
    splits = get_entry(name).card.splits
    folder.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"data_pipelines.fakes.{name}")
    module.write_archive(folder, dict.fromkeys(splits, tiles), seed)
