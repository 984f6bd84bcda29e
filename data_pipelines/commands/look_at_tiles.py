"""`look`: a picture of each of some tiles, and a page that shows them."""

import argparse
from typing import Any

from data_pipelines.commands.source import a_folder, a_place, open_source
from data_pipelines.plots.gallery import Tiles, draw_gallery, prepared_tiles, raw_tiles
from data_pipelines.registry import get_entry

NAME = "look"
HELP = """Draws some tiles: every sensor, dates, clouds, labels in their official colours; index.html shows them all.

  python -m data_pipelines look treesatai_ts --source ~/TreeSatAI --out pictures
  python -m data_pipelines look treesatai_ts --root prepared --split val --n 20 --out pictures
  python -m data_pipelines look mini_flair --out pictures

The tiles are spread evenly over the split. Hatched pixels are not valid; label maps are white where there is no label.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tiles, and where the pictures go."""
    parser.add_argument("name", metavar="NAME", help="a dataset, or the path of a description, FILE.toml")
    parser.add_argument("--out", type=a_folder, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--n", type=int, default=8, metavar="N", help="how many tiles (default: 8)")
    parser.add_argument("--split", default="train", metavar="SPLIT", help="of which split (default: train)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--source", type=a_folder, metavar="DIR", help="folder of the download")
    where.add_argument(
        "--root",
        "--prepared",
        type=a_place,
        metavar="DIR",
        help="what `prepare` wrote to, its --out; a folder or gs://...",
    )


def run(arguments: argparse.Namespace) -> None:
    """Draws the tiles and says where the page is.

    Raises:
      ValueError, OSError: no such dataset, split or folder, or a tile that cannot be read.
    """
    import tqdm

    if arguments.n < 1:
        raise ValueError(f"--n is {arguments.n}; expected at least one tile")
    tiles, out = _open(arguments), arguments.out

    def watched(positions: Any) -> Any:
        return tqdm.tqdm(positions, desc=f"drawing {tiles.card.name}", unit="tile")

    page = draw_gallery(tiles, arguments.n, out, watched)
    print(f"{min(arguments.n, tiles.count)} of {tiles.count:,} tiles of {tiles.split!r} are drawn: open {page}")


def _open(arguments: argparse.Namespace) -> Tiles:
    if arguments.root is not None:
        return prepared_tiles(arguments.name, arguments.root, arguments.split)
    entry = get_entry(arguments.name)
    return raw_tiles(open_source(entry, arguments.source), arguments.split)
