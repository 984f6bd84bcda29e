"""Pictures of some tiles of a split, and the page that shows them."""

import dataclasses
import html
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.card import DatasetCard, Example
from data_pipelines.locate import find_prepared
from data_pipelines.plots.colours import tile_label
from data_pipelines.plots.tile import draw_tile
from data_pipelines.prepare.records import check_example
from data_pipelines.reader import Reader


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of a split.

    Attributes:
      card: the dataset's facts.
      split: the split's name.
      count: number of tiles.
      read: returns the tile at a position, as a reader gives it.
      origin: the source in words.
    """

    card: DatasetCard
    split: str
    count: int
    read: Callable[[int], Example]
    origin: str


def raw_tiles(reader: Reader, split: str) -> Tiles:
    """Opens a split of an archive.

    Raises:
      ValueError: the split has no tiles.
    """
    if split not in reader.splits():
        raise ValueError(f"{reader.card.name} has no tiles of split {split!r}; there are {', '.join(reader.splits())}")
    keys = reader.keys(split)

    def read(position: int) -> Example:
        example = reader.example(split, keys[position])
        check_example(reader.card, keys[position], example)
        return example

    return Tiles(reader.card, split, len(keys), read, getattr(reader, "summary", "made by this project's code"))


def prepared_tiles(name: str, root: str, split: str) -> Tiles:
    """Opens a split of a prepared dataset.

    Args:
      name: the dataset; one that is not registered is known by the card beside its data.
      root: folder that holds `<name>/<version>`, or the address of one.
      split: the split's name.

    Raises:
      FileNotFoundError: the dataset is not prepared there.
      ValueError: it has no such split, or cannot be read.
    """
    prepared = find_prepared(name, root)
    if prepared is None:
        raise FileNotFoundError(f"{name} is not prepared in {root}; `python -m data_pipelines prepare` does that")
    card, records = prepared.card, prepared.records(split)
    return Tiles(card, split, len(records), lambda n: as_read(card, records[n]), f"prepared in {prepared.folder}")


def as_read(card: DatasetCard, complete: Example) -> Example:
    """Returns a prepared example without the empty arrays of sensors that the tile lacks."""
    absent = [name for name in card.optional if not complete[f"{name}_present"]]
    fields = {f"{name}{end}" for name in absent for end in ("", "_dates", "_years", "_mask", "_cloud")}
    flags = {f"{name}_present" for name in card.optional}
    texts = {key: _text(complete[key]) for key in ("id", "crs") if key in complete}
    return {key: value for key, value in complete.items() if key not in fields | flags} | texts


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


Picture = tuple[str, str]
"""File name and caption."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1400px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin-bottom: 0.2rem; }}
p, ul, nav {{ color: #555; max-width: 60rem; }}
figure {{ margin: 2.5rem 0; }}
figcaption {{ font-weight: 600; margin-bottom: 0.4rem; }}
img {{ width: 100%; height: auto; border: 1px solid #ddd; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{origin}. Shown: {count} of the {total} tiles of split {split}.</p>
<p>Hatched pixels are not valid. All dates of a series have one stretch; the panel above is the median of the
clear dates. Radar is in false colour: red and green are its polarisations, blue their ratio. White parts of label
maps have no label.</p>
<ul>
{sensors}
</ul>
<nav>{links}</nav>
{figures}
</body>
</html>
"""
FIGURE = """\
<figure id="{anchor}">
<figcaption>{caption}</figcaption>
<a href="{file}"><img src="{file}" alt="{caption}" loading="lazy"></a>
</figure>"""


def spread(total: int, count: int) -> Int[np.ndarray, "n"]:
    """Returns positions of at most `count` of `total` tiles, evenly over all, from the first on."""
    return np.unique(np.arange(min(count, total)) * total // min(count, total))


def draw_gallery(
    tiles: Tiles, count: int, folder: pathlib.Path, watched: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> pathlib.Path:
    """Draws tiles, evenly spread over the split, and writes the page.

    Args:
      tiles: the split.
      count: how many tiles to draw, at most.
      folder: for the pictures and `index.html`; created if missing.
      watched: wraps the loop over the tiles, for a progress bar.

    Returns:
      The page's path.

    Raises:
      ValueError, OSError: a tile cannot be read, or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the pictures need a folder")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for position in watched(spread(tiles.count, count)):
        example = tiles.read(int(position))
        name = example["id"]
        file = file_name(tiles.split, int(position), name)
        draw_tile(folder / file, tiles.card, tiles.split, name, example)
        pictures.append((file, " \u00b7 ".join(part for part in (name, tile_label(tiles.card, example)) if part)))
    return write_page(folder, tiles, pictures)


def file_name(split: str, position: int, key: str) -> str:
    """Returns a unique name of a PNG file without special characters, whatever the tile is called."""
    return f"{split}_{position:06d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', key)[:80]}.png"


def write_page(folder: pathlib.Path, tiles: Tiles, pictures: Sequence[Picture]) -> pathlib.Path:
    """Writes `index.html`, which shows the pictures beside it and loads nothing else."""
    escaped = [(html.escape(file), html.escape(caption)) for file, caption in pictures]
    links = [f'<a href="#tile{number}">{number}</a>' for number in range(1, len(escaped) + 1)]
    figures = [
        FIGURE.format(anchor=f"tile{number}", file=file, caption=caption)
        for number, (file, caption) in enumerate(escaped, start=1)
    ]
    page = folder / "index.html"
    text = PAGE.format(
        title=html.escape(tiles.card.title),
        origin=html.escape(tiles.origin),
        count=len(pictures),
        total=f"{tiles.count:,}",
        split=html.escape(tiles.split),
        sensors="\n".join(f"<li>{html.escape(_facts(tiles.card, name))}</li>" for name in tiles.card.sensors),
        links=" ".join(links),
        figures="\n".join(figures),
    )
    page.write_text(text, encoding="utf-8")
    return page


def _facts(card: DatasetCard, name: str) -> str:
    """Returns units and dates of a sensor in a line."""
    known = (card.units.get(name, ""), f"dates: {card.dates[name]}" if name in card.dates else "")
    return f"{name}: {'; '.join(part for part in known if part) or card.dtype(name)}"
