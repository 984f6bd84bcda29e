"""Made-up archives in the layouts of their readers, to try the whole way from a download to batches without a download.

Each module is named after its dataset and has `write_archive(folder, tiles, seed)`:
  folder: the archive's folder, made if missing.
  tiles: number of tiles of each split of the card.
  seed: of all values; the same seed writes the same archive.
"""

import importlib
import pathlib

from data_pipelines.registry import get_entry

_WRITERS = {
    "fuel_moisture_land_cover": ("fuel_moisture", "write_archive"),
    "sen1floods11_chip": ("sen1floods11", "write_sample"),
}


def write_fake(name: str, folder: pathlib.Path, tiles: int, seed: int = 0, layout: str = "original") -> None:
    """Writes a dataset's made-up archive with `tiles` tiles in each split; `folder` and `seed` as above.

    `layout` is "original" or "download", the one that the card's address hands out; only some archives have two.

    Raises:
      ValueError: the archive has no such layout.
    """
    module, writer = _WRITERS.get(name, (name, "write_archive"))
    write = getattr(importlib.import_module(f"data_pipelines.fakes.{module}"), writer)
    layouts = getattr(importlib.import_module(f"data_pipelines.datasets.{module}"), "LAYOUTS", {})
    chosen = {"layout": layout} if layout in layouts and writer == "write_archive" else {}
    if layout != "original" and not chosen:
        raise ValueError(f"the archive of {name} has no layout {layout!r}; leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, dict.fromkeys(get_entry(name).card.splits, tiles), seed, **chosen)
