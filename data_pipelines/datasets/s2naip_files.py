"""Where S2NAIP's files are: in one folder for each kind of data, or in the tar archives as downloaded."""

import os
import pathlib

from data_pipelines.datasets.s2naip_index import TILE
from data_pipelines.files import stems
from data_pipelines.tar_files import read_member, tar_members

IMAGES = "naip"


def tar_files(root: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """The archives of a kind of data: `KIND/*.tar`, and `KIND_ZONE/*.tar` for each UTM zone."""
    found = [*root.glob(f"{kind}/*.tar"), *root.glob(f"{kind}_?????/*.tar")]
    return sorted(path for path in found if not path.name.startswith("."))


class TileFiles:
    """Finds and reads the files of tiles.

    Attributes:
      root: folder of the dataset.
      tiles: names of the tiles that have an image of NAIP.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self._archives: dict[str, tuple[str, str]] = {}  # folder's zone ("_32612") and file name, by tile
        for path in tar_files(root, IMAGES):
            place = (path.parent.name.removeprefix(IMAGES), path.name)
            for name in tar_members(path):
                if (
                    name.startswith(f"{IMAGES}/")
                    and TILE.fullmatch(name[len(IMAGES) + 1 : -4])
                    and name.endswith(".png")
                ):
                    self._archives[name[len(IMAGES) + 1 : -4]] = place
        loose = {name for name in stems(root / IMAGES, ".png") if TILE.fullmatch(name)}
        self.tiles = loose | set(self._archives)

    def archive(self, tile: str) -> tuple[str, str]:
        """Zone and name of the archive that holds a tile; tiles read in this order open each archive but once."""
        return self._archives.get(tile, ("", ""))

    def count(self, kind: str) -> int:
        """How many files there are of a kind of data, loose or archives; one listing."""
        folder = self.root / kind
        loose = [name for name in os.listdir(folder) if not name.startswith(".")] if folder.is_dir() else []
        return len(loose) + len(tar_files(self.root, kind))

    def read(self, kind: str, tile: str, suffix: str) -> tuple[pathlib.Path, bytes | None]:
        """A file's path, for messages, and its content; None if it is not there.

        Raises:
          ValueError: an archive is damaged.
        """
        path = self.root / kind / f"{tile}{suffix}"
        if path.is_file():
            return path, path.read_bytes()
        zone, archive = self.archive(tile)
        holder = self.root / f"{kind}{zone}" / archive
        if not archive or not holder.is_file():
            return path, None
        return holder / kind / path.name, read_member(holder, f"{kind}/{path.name}")
