"""`show`: everything that is known of a dataset before it is opened."""

import argparse
from collections.abc import Callable, Sequence

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.commands.text import paragraph, shows_colour, square, terminal_width
from data_pipelines.reader import DatasetEntry
from data_pipelines.registry import get_entry

NAME = "show"
HELP = """All about one dataset: sensors, bands, dates, labels, splits, traps, licence, where to get it.

  python -m data_pipelines show pastis_hd
  python -m data_pipelines show my_tiles.toml     a description of your own folder

Classes carry squares in their official colours where the terminal can show them; NO_COLOR=1 leaves them out.
"""

Section = tuple[str, list[str]]
"""A heading and its lines."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The dataset's name."""
    parser.add_argument("name", metavar="NAME", help="a dataset, or the path of a description, FILE.toml")


def run(arguments: argparse.Namespace) -> None:
    """Prints the card."""
    entry = get_entry(arguments.name)
    print(describe(entry, terminal_width(), square if shows_colour() else lambda _: ""))


def describe(entry: DatasetEntry, width: int, painted: Callable[[str], str]) -> str:
    """A dataset's card as text.

    Args:
      entry: the dataset's.
      width: columns to fill.
      painted: makes a square of a colour, or nothing.
    """
    card = entry.card
    sections = [
        _tiles(card),
        *[_sensor(card, name) for name in card.sensors],
        *_labels(card, painted),
        _splits(card),
        ("To know", [f"- {note}" for note in card.notes]),
        _source(entry),
    ]
    title = f"{card.title} ({card.name})"
    parts = [title, "=" * len(title)]
    for heading, lines in sections:
        if lines:
            parts += ["", heading, *[_fitted(line, width) for line in lines]]
    return "\n".join(parts)


def _fitted(line: str, width: int) -> str:
    """A line within the width; a field's or a note's text hangs below its first word."""
    if line.startswith(" ") or "\x1b" in line:  # laid out already
        return line
    if line.startswith("- "):
        return paragraph(line[2:], width, bullet="- ")
    name, _, text = line.partition(": ")
    return paragraph(text, width, bullet=f"{name + ':':<15}")


def _tiles(card: DatasetCard) -> Section:
    sizes = ", ".join(f"{size:g}" for size in card.patch_sizes)
    return "Tiles", [
        f"size: {card.size}" if card.size else "size: not known",
        f"extent: {card.extent:g} m x {card.extent:g} m",
        f"patches: of {sizes} m a side",
        f"place: {_place(card)}",
    ]


def _place(card: DatasetCard) -> str:
    return f"coordinates of the {card.georeferenced} grid" if card.georeferenced else "not told by the archive"


def _sensor(card: DatasetCard, name: str) -> Section:
    sensor, side = get_sensor(name), card.side(name)
    pixels = sensor.pixels(card.extent)
    beyond = f", of which batches take the {pixels} x {pixels} in the centre" if side > pixels else ""
    kind = {"image": "an image", "series": "a series", "context": "a series of one pixel for the whole tile"}[
        sensor.kind
    ]
    lines = [
        f"what: {kind}{'; some tiles lack it' if name in card.optional else ''}",
        f"pixels: {side} x {side} of {sensor.metres_per_pixel:g} m{beyond}",
        f"bands: {' '.join(sensor.bands)}",
    ]
    if name in card.file_bands:
        lines.append(f"in the files: {' '.join(card.file_bands[name])}")
    lines.append(f"values: {card.dtype(name)}{', ' + card.units[name] if name in card.units else ''}")
    if name in card.dates:
        lines.append(f"dates: {card.dates[name]}")
    if name in card.masks:
        mask = {"pixel": "one for all bands of a pixel", "band": "one for each band"}[card.masks[name]]
        lines.append(f"validity mask: {mask}")
    if name in card.clouds:
        lines.append("clouds: probability of cloud or snow in percent")
    return f"Sensor {name}", lines


def _labels(card: DatasetCard, painted: Callable[[str], str]) -> list[Section]:
    """The tile's label, then the map; a line says so where there is none."""
    sections = []
    if card.tile_label != "none":
        kinds = {"multi_label": "any number of classes", "class": "one class", "regression": card.label_unit}
        lines = [f"kind: {kinds[card.tile_label]}", *_numbered(card.tile_classes)]
        sections.append(("Label of the tile", lines))
    if card.dense_label != "none":
        sections.append(("Label of the pixels", _dense(card, painted)))
    return sections or [("Labels", ["kind: none"])]


def _dense(card: DatasetCard, painted: Callable[[str], str]) -> list[str]:
    kinds = {"segmentation": "class map", "change": "change map", "regression": f"numbers, {card.label_unit}"}
    side, pixels = card.side("dense"), round(card.extent / card.dense_metres)
    beyond = f", of which batches take the {pixels} x {pixels} in the centre" if side > pixels else ""
    lines = [
        f"kind: {kinds[card.dense_label]}",
        f"pixels: {side} x {side} of {card.dense_metres:g} m, {card.dtype('dense')}{beyond}",
        f"no label: {'NaN' if card.dense_label == 'regression' else card.ignore_label}",
    ]
    for number, (name, colour) in enumerate(zip(card.dense_classes, card.dense_colours)):
        lines.append("  ".join(part for part in (f"  {number:3}", painted(colour), colour, name) if part))
    return lines


def _numbered(classes: Sequence[str]) -> list[str]:
    return [f"  {number:3}  {name}" for number, name in enumerate(classes)]


def _splits(card: DatasetCard) -> Section:
    lines = [f"names: {', '.join(card.splits)}"]
    if card.split_rule:
        lines.append(f"rule: {card.split_rule}")
    lines += [
        f"{split}: fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}" for split, folds in card.folds.items()
    ]
    return "Splits", lines


def _source(entry: DatasetEntry) -> Section:
    card = entry.card
    if entry.generated:
        where = "made by this project's code when it is first used: nothing to download"
    elif entry.source:
        where = f"your own folder, {entry.source}"
    else:
        where = "download the archive, unpack it, and give its folder as --source"
    facts = {
        "how": where,
        "from": card.url,
        "layout": entry.layout,
        "licence": card.licence,
        "to cite": card.citation,
    }
    return "Where to get it", [f"{name}: {text}" for name, text in facts.items() if text]
