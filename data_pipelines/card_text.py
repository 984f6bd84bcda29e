"""Cards as text: the table of all datasets, and all that is known of one of them."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

import tabulate

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.reader import DatasetEntry

HEADER = ("name", "title", "sensors", "extent", "patches (m)", "labels", "splits", "size", "licence")
KINDS = {"multi_label": "multi-label", "class": "class", "segmentation": "class map", "change": "change map"}
SENSOR_KINDS = {"image": "an image", "series": "a series", "context": "a series of one pixel for the whole tile"}
MASK_KINDS = {"pixel": "one for all bands of a pixel", "band": "one for each band"}
LEAST_WIDTH, MOST_WIDTH, USUAL_WIDTH = 60, 170, 140  # columns of text, whatever the terminal; the last for pipes


def terminal_width() -> int:
    """Returns the columns to fill: the terminal's or $COLUMNS, within bounds."""
    return max(LEAST_WIDTH, min(MOST_WIDTH, shutil.get_terminal_size((USUAL_WIDTH, 24)).columns))


def table_row(card: DatasetCard) -> tuple[str, ...]:
    """Returns a dataset's cells, in the order of HEADER."""
    size, licence = (re.split(r"\s*[;(]", text)[0] for text in (card.size, card.licence))
    sensors, splits, patches = (" ".join(map(str, some)) for some in (card.sensors, card.splits, card.patch_sizes))
    return card.name, card.title, sensors, f"{card.extent:g} m", patches, label_kinds(card), splits, size, licence


def label_kinds(card: DatasetCard) -> str:
    """Returns the kinds of a dataset's labels with the number of classes, or the unit of a regression."""
    tile, dense = (card.tile_label, card.tile_classes, ""), (card.dense_label, card.dense_classes, "map of ")
    kinds = [
        f"{prefix}{card.label_unit}" if kind == "regression" else f"{KINDS[kind]} of {len(classes)}"
        for kind, classes, prefix in (tile, dense)
        if kind != "none"
    ]
    return ", ".join(kinds) or "none"


def fitted_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Returns a table that is at most `width` wide where words allow: cells of the widest columns are wrapped first."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [max(len(word) for cell in column for word in cell.split()) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        slack = [(have, number) for number, have in enumerate(widths) if have > least[number]]
        if not slack:
            break
        widths[max(slack)[1]] -= 1
    # Two columns of padding beside each header would not fit a narrow terminal; tabulate has no argument for it.
    tabulate.MIN_PADDING = 0
    limits = dict(maxcolwidths=widths, maxheadercolwidths=widths)
    return tabulate.tabulate(rows, header, tablefmt="simple", disable_numparse=True, **limits)


def describe(entry: DatasetEntry, width: int, colours: bool) -> str:
    """Returns a dataset's card as text of `width` columns; `colours` puts a coloured square before each class."""
    card = entry.card
    sections = {
        "Tiles": [
            f"size: {card.size or 'not known'}",
            f"extent: {card.extent:g} m x {card.extent:g} m",
            f"patches: of {', '.join(f'{size:g}' for size in card.patch_sizes)} m a side",
            f"place: {f'coordinates of the {card.georeferenced} grid' if card.georeferenced else 'not published'}",
        ],
        **{f"Sensor {name}": _sensor_lines(card, name) for name in card.sensors},
        "Label of the tile": [] if card.tile_label == "none" else _tile_label_lines(card),
        "Label of the pixels": [] if card.dense_label == "none" else _dense_label_lines(card, colours),
        "Labels": ["kind: none"] if card.tile_label == card.dense_label == "none" else [],
        "Splits": [
            f"names: {', '.join(card.splits)}",
            *([f"rule: {card.split_rule}"] if card.split_rule else []),
            *(
                f"{split}: fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
                for split, folds in card.folds.items()
            ),
        ],
        "To know": [f"- {note}" for note in card.notes],
        "Where to get it": _source_lines(entry),
    }
    title = f"{card.title} ({card.name})"
    lines = [title, "=" * len(title)]
    for heading, content in sections.items():
        if content:
            lines += ["", heading, *[_wrapped(line, width) for line in content]]
    return "\n".join(lines)


def _sensor_lines(card: DatasetCard, name: str) -> list[str]:
    sensor = get_sensor(name)
    return _fields(
        {
            "what": f"{SENSOR_KINDS[sensor.kind]}{'; some tiles lack it' if name in card.optional else ''}",
            "pixels": _pixels(card, name, sensor.metres_per_pixel),
            "bands": " ".join(sensor.bands),
            "in the files": " ".join(card.file_bands.get(name, ())),
            "values": f"{card.dtype(name)}{', ' + card.units[name] if name in card.units else ''}",
            "statistics": _statistics_text(card, name),
            "dates": card.dates.get(name, ""),
            "validity mask": MASK_KINDS[card.masks[name]] if name in card.masks else "",
            "clouds": "probability of cloud or snow in percent" if name in card.clouds else "",
        }
    )


def _statistics_text(card: DatasetCard, name: str) -> str:
    if name not in card.statistics:
        return ""
    mean, std = (" ".join(f"{one:g}" for one in card.statistics[name][key]) for key in ("mean", "std"))
    return f"mean {mean}; standard deviation {std}; from {card.statistics_source}"


def _fields(texts: Mapping[str, str]) -> list[str]:
    return [f"{name}: {text}" for name, text in texts.items() if text]


def _pixels(card: DatasetCard, key: str, metres: float) -> str:
    side, inside = card.side(key), round(card.extent / metres)
    margin = key == "dense" or get_sensor(key).kind != "context"
    centre = f", of which batches take the {inside} x {inside} in the centre" if margin and side > inside else ""
    return f"{side} x {side} of {metres:g} m{centre}"


def _tile_label_lines(card: DatasetCard) -> list[str]:
    kinds = {"multi_label": "any number of classes", "class": "one class", "regression": card.label_unit}
    return [f"kind: {kinds[card.tile_label]}", *(f"  {i:3}  {name}" for i, name in enumerate(card.tile_classes))]


def _dense_label_lines(card: DatasetCard, colours: bool) -> list[str]:
    regression = card.dense_label == "regression"
    lines = [
        f"kind: {f'numbers, {card.label_unit}' if regression else KINDS[card.dense_label]}",
        f"pixels: {_pixels(card, 'dense', card.dense_metres)}",
        f"values: {card.dtype('dense')}",
        f"no label: {'NaN' if regression else card.ignore_label}",
    ]
    for number, (name, colour) in enumerate(zip(card.dense_classes, card.dense_colours)):
        red, green, blue = bytes.fromhex(colour[1:])
        square = f"  \x1b[48;2;{red};{green};{blue}m  \x1b[0m" if colours else ""  # for terminals with 24-bit colours
        lines.append(f"  {number:3}{square}  {colour}  {name}")
    return lines


def _source_lines(entry: DatasetEntry) -> list[str]:
    card, how = entry.card, "download the archive, unpack it, and give its folder as --source"
    if entry.generate:
        how = "made by this project's code when it is first used: nothing to download"
    elif entry.source:
        how = f"your own folder, {entry.source}"
    terms = {"licence": card.licence, "to cite": card.citation}
    return _fields({"how": how, "from": card.url, "layout": entry.layout} | terms)


def _wrapped(line: str, width: int) -> str:
    """Wraps a note "- text" or a field "name: text"; further lines are indented as far as the text."""
    # Lines of classes are laid out already, and textwrap would count the colours' codes as letters.
    if line.startswith(" "):
        return line
    note = line.startswith("- ")
    name, _, text = ("", "", line[2:]) if note else line.partition(": ")
    bullet = "  - " if note else f"  {name + ':':<15}"
    indent = dict(initial_indent=bullet, subsequent_indent=" " * len(bullet))
    # Addresses and paths must stay whole to be copied.
    return textwrap.fill(text, width, **indent, break_long_words=False, break_on_hyphens=False)
