"""A tile as a figure, and the page that shows the figures of some tiles of a split."""

import dataclasses
import functools
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.locate import find_prepared
from data_pipelines.plots import tile
from data_pipelines.plots.colours import View, tile_label, view_of
from data_pipelines.prepare.shards import read_tile
from data_pipelines.reader import Reader


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of a split."""

    card: DatasetCard
    split: str
    count: int
    read: Callable[[int], Example]  # returns the tile at a position, as a reader gives it
    origin: str  # the source in words


def raw_tiles(reader: Reader, split: str) -> Tiles:
    """Opens a split of an archive.

    Raises:
      ValueError: the split has no tiles.
    """
    if split not in reader.splits():
        raise ValueError(f"{reader.card.name} has no tiles of split {split!r}; there are {', '.join(reader.splits())}")
    card, keys = reader.card, reader.keys(split)
    origin = getattr(reader, "summary", "made by this project's code")
    return Tiles(card, split, len(keys), lambda n: as_read(card, read_tile(reader, split, keys[n])), origin)


def prepared_tiles(name: str, root: str, split: str) -> Tiles:
    """Opens a split of a prepared dataset; one that is not registered is known by the card beside its data.

    `root` is the folder that holds `<name>/<version>`, or the address of one.

    Raises:
      FileNotFoundError: the dataset is not prepared there.
      ValueError: it has no such split, or cannot be read.
    """
    prepared = find_prepared(name, root)
    if prepared is None:
        raise FileNotFoundError(f"{name} is not prepared in {root}; `python -m data_pipelines prepare` does that")
    card, records = prepared.card, prepared.records(split)
    return Tiles(card, split, len(records), lambda n: as_read(card, records[n]), f"prepared in {prepared.folder}")


_TEXTS = ("id", "crs")


def as_read(card: DatasetCard, complete: Example) -> Example:
    """Returns a complete example without the empty arrays of sensors that the tile lacks."""
    absent = [name for name in card.optional if not complete[f"{name}_present"]]
    dropped = {f"{name}{end}" for name in absent for end in ("", "_dates", "_years", "_mask", "_cloud")}
    dropped |= {f"{name}_present" for name in card.optional}
    example = {key: value for key, value in complete.items() if key not in dropped}
    # TFRecords hold bytes where readers give texts.
    texts = {key: one.decode() if isinstance(one, bytes) else str(one) for key, one in example.items() if key in _TEXTS}
    return example | texts


HEADER_INCHES = 1.0
LINE_INCHES = 0.22
LINE_CHARACTERS = 125  # of the tile's label
TITLE_CHARACTERS = 95
LARGEST_PANEL = 4.2
PANEL_GAP = 0.28
SPACE = 0.22
LONGITUDE_LATITUDE = "EPSG:4326"


def draw_tile(path: pathlib.Path, card: DatasetCard, split: str, key: str, example: Example) -> None:
    """Draws a tile, as its reader gives it, to a PNG file; `split` and `key` are for the title."""
    views = {name: view_of(card, name, example) for name in card.sensors}
    # A pixel is drawn as curves; where it is missing, an empty panel would promise an image.
    panels = {n: v for n, v in views.items() if (not v.is_pixel if v else get_sensor(n).kind != "context")}
    series = [view for view in views.values() if view is not None and len(view.days) > 1]
    lacking = [name for name, view in views.items() if view is None and name not in panels]
    facts = [f"split {split}", f"{card.extent:g} m x {card.extent:g} m", place(card, example)]
    facts += [f"not in this tile: {', '.join(lacking)}"] if lacking else []
    label = tile_label(card, example)
    lines = textwrap.wrap(f"label of the tile: {label}", LINE_CHARACTERS) if label else []
    # All heights are known before anything is drawn: matplotlib places by fractions of the whole sheet.
    header = HEADER_INCHES + (LINE_INCHES * len(lines) + 0.1 if lines else 0)
    draw = functools.partial(_draw_header, title=f"{card.title}: {key}", facts=facts, label=lines)
    # Height of each part, and what draws it from a position on, in inches from the sheet's upper edge.
    parts: list[tuple[float, Callable[[tile.Sheet, float], None]]] = [(header, draw)]
    has_map = card.dense_label != "none"
    if count := len(panels) + has_map:
        room = tile.WIDTH - 2 * tile.MARGIN - (count - 1) * PANEL_GAP - tile.LABEL_LEGEND_INCHES * has_map
        side = min(LARGEST_PANEL, room / count)
        draw = functools.partial(_draw_panels, side=side, card=card, example=example, panels=panels)
        parts.append((tile.TITLE_INCHES + side + SPACE, draw))
    for row in tile.in_rows([view for view in series if not view.is_pixel]):
        parts.append((tile.STRIP_INCHES + SPACE, functools.partial(tile.draw_strips, row=row)))
    for view in (view for view in series if view.is_pixel):
        draw = functools.partial(tile.draw_curves, view=view, example=example, views=series)
        parts.append((tile.HEADING_INCHES + tile.CURVES_INCHES + tile.AXIS_INCHES, draw))
    if series:
        parts.append((tile.timeline_inches(series), functools.partial(tile.draw_timeline, views=series)))
    whole = sum(height for height, _ in parts) + (0 if series else 0.1)
    with tile.saved_figure(path, tile.SETTINGS, tile.DOTS_PER_INCH, figsize=(tile.WIDTH, whole)) as figure:
        sheet, top = tile.Sheet(figure, whole), 0.0
        for height, draw in parts:
            draw(sheet, top)
            top += height


def _draw_header(sheet: tile.Sheet, top: float, title: str, facts: Sequence[str], label: Sequence[str]) -> None:
    title = title if len(title) <= TITLE_CHARACTERS else f"{title[: TITLE_CHARACTERS - 3]}..."
    sheet.text(tile.MARGIN, top + 0.22, title, fontsize=15, fontweight="bold")
    text = "   |   ".join(fact for fact in facts if fact)
    sheet.text(tile.MARGIN, top + 0.57, text, fontsize=10, color=tile.FAINT_COLOUR)
    sheet.text(tile.MARGIN, top + 0.86, "\n".join(label), fontsize=11.5)


def _draw_panels(
    sheet: tile.Sheet, top: float, side: float, card: DatasetCard, example: Example, panels: Mapping[str, View | None]
) -> None:
    lefts = [tile.MARGIN + number * (side + PANEL_GAP) for number in range(len(panels) + 1)]
    for left, (name, view) in zip(lefts, panels.items()):
        tile.draw_panel(sheet, left, top, side, get_sensor(name), view, card.extent)
    if card.dense_label != "none":
        tile.draw_dense(sheet, lefts[-1], top, side, card, example)


def place(card: DatasetCard, example: Example) -> str:
    """Returns the coordinate system and centre of a tile; "" if the archive has none."""
    if not card.georeferenced or not example["crs"]:
        return ""
    a, b, c, d, e, f = np.asarray(example["transform"], np.float64)
    # The centre, as the corner depends on the margin that some archives add around a tile.
    half = card.side(card.georeferenced) / 2
    x, y = (a + b) * half + c, (d + e) * half + f
    if example["crs"] == LONGITUDE_LATITUDE:
        return f"{abs(y):.5f}° {'S' if y < 0 else 'N'}, {abs(x):.5f}° {'W' if x < 0 else 'E'}"
    return f"{example['crs']}, centre at x {x:,.0f}, y {y:,.0f}"


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ tiles.card.title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1400px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0.2rem; }
p, ul, nav { color: #555; max-width: 60rem; }
figure { margin: 2.5rem 0; }
figcaption { font-weight: 600; margin-bottom: 0.4rem; }
img { width: 100%; height: auto; border: 1px solid #ddd; }
</style>
</head>
<body>
<h1>{{ tiles.card.title }}</h1>
<p>{{ tiles.origin }}. Shown: {{ pictures | length }} of the {{
"{:,}".format(tiles.count) }} tiles of split {{ tiles.split }}.</p>
<p>Hatched pixels are not valid. All dates of a series have one stretch; the panel above is the median of the
clear dates. Radar is in false colour: red and green are its polarisations, blue their ratio. White parts of label
maps have no label.</p>
<ul>
{% for facts in sensors %}<li>{{ facts }}</li>
{% endfor %}</ul>
<nav>{% for _ in pictures %}<a href="#tile{{ loop.index }}">{{ loop.index }}</a>{{
" " if not loop.last }}{% endfor %}</nav>
{% for file, caption in pictures %}<figure id="tile{{ loop.index }}">
<figcaption>{{ caption }}</figcaption>
<a href="{{ file }}"><img src="{{ file }}" alt="{{ caption }}" loading="lazy"></a>
</figure>
{% endfor %}</body>
</html>
"""


def spread(total: int, count: int) -> Int[np.ndarray, "n"]:
    """Returns positions of at most `count` of `total` tiles, evenly over all, from the first on."""
    return np.unique(np.arange(min(count, total)) * total // min(count, total))


def draw_gallery(
    tiles: Tiles, count: int, folder: pathlib.Path, watched: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> pathlib.Path:
    """Draws up to `count` tiles, spread evenly over the split, and writes `index.html`, which loads nothing but them.

    Returns the path of the page; its `folder` is created if missing. `watched` wraps the loop, for a progress bar.

    Raises:
      ValueError, OSError: a tile cannot be read, or the folder cannot be written.
    """
    import jinja2  # only here: drawing a single tile does not need it

    folder.mkdir(parents=True, exist_ok=True)
    card, pictures, sensors = tiles.card, [], []
    for position in watched(spread(tiles.count, count)):
        example = tiles.read(int(position))
        name = example["id"]
        file = file_name(tiles.split, int(position), name)
        draw_tile(folder / file, card, tiles.split, name, example)
        pictures.append((file, " \u00b7 ".join(part for part in (name, tile_label(card, example)) if part)))
    for name in card.sensors:
        known = [card.units.get(name, ""), f"dates: {card.dates[name]}" if name in card.dates else ""]
        sensors.append(f"{name}: {'; '.join(part for part in known if part) or card.dtype(name)}")
    # Escaped: names of tiles come from archives.
    template = jinja2.Environment(autoescape=True, keep_trailing_newline=True).from_string(PAGE)
    page = folder / "index.html"
    page.write_text(template.render(tiles=tiles, sensors=sensors, pictures=pictures), encoding="utf-8")
    return page


def file_name(split: str, position: int, key: str) -> str:
    """Returns a unique name of a PNG file without special characters, whatever the tile is called."""
    return f"{split}_{position:06d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', key)[:80]}.png"
