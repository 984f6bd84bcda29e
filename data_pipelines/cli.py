"""Command line of the datasets: list, show, prepare, look and fake."""

import argparse
import functools
import io
import os
import pathlib
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence

import tabulate
import tqdm

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.fakes import write_fake
from data_pipelines.prepare.storage import is_url, to_stderr
from data_pipelines.reader import DatasetEntry
from data_pipelines.registry import ARCHIVE_NAMES, GEOPLEX_NAMES, dataset_names, get_entry

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130

DESCRIPTION = """\
From downloaded archives to what models train on.

Which datasets there are; all about one of them, and where to get it:
  python -m data_pipelines list
  python -m data_pipelines show sen1floods11
Whether your download is read the way it was meant:
  python -m data_pipelines look sen1floods11 --source DIR --out pictures
Convert it once, and read it quickly ever after:
  python -m data_pipelines prepare sen1floods11 --source DIR --out prepared
No download yet? Try all that on a made-up archive:
  python -m data_pipelines fake sen1floods11 --out DIR

NAME is a dataset's name, or the path of a description of your own folder of tiles, FILE.toml (see docs/DATA.md).
"""
EPILOG = "Help of a command: python -m data_pipelines COMMAND --help. Exit codes: 0 done, 1 error, 2 usage."

LIST_HELP = """A table of all datasets: sensors, extent, patch sizes, labels, splits, size, licence.

The mini datasets are made by this project's code; the others are read from their published archives. Then:

  python -m data_pipelines show treesatai_ts      all about one of them
"""
SHOW_HELP = """All about one dataset: sensors, bands, dates, labels, splits, traps, licence, where to get it.

  python -m data_pipelines show pastis_hd
  python -m data_pipelines show my_tiles.toml     a description of your own folder

Classes carry squares in their official colours where the terminal can show them; NO_COLOR=1 leaves them out.
"""
PREPARE_HELP = """Converts a dataset once into ArrayRecord files that are quick to read, with its statistics.

  python -m data_pipelines prepare sen1floods11 --source ~/Sen1Floods11 --out prepared --workers 4
  python -m data_pipelines prepare pastis_hd --source ~/PASTIS-HD --out try --limit 20      a quick try
  python -m data_pipelines prepare my_tiles.toml --out prepared                             your own folder
  python -m data_pipelines prepare flair --source /shared/FLAIR --out /shared/prepared --cluster tcp://head:8786

After an interruption the same command continues with the next shard; on a finished folder it changes nothing. A tile
that cannot be read stops the command and names its file; with --skip-bad it is left out and listed in the report.
"""
LOOK_HELP = """Draws some tiles: sensors, dates, clouds, labels in their official colours; index.html shows them all.

  python -m data_pipelines look treesatai_ts --source ~/TreeSatAI --out pictures
  python -m data_pipelines look treesatai_ts --root prepared --split val --n 20 --out pictures
  python -m data_pipelines look mini_flair --out pictures

The tiles are spread evenly over the split. Hatched pixels are not valid; label maps are white where there is no label.
"""
FAKE_HELP = """Writes a made-up archive in a dataset's published layout, to try everything on without a download.

  python -m data_pipelines fake pastis_hd --out fakes/pastis_hd --tiles 8
  python -m data_pipelines fake geoplex --out fakes           the five of pretraining, each in fakes/NAME
  python -m data_pipelines look pastis_hd --source fakes/pastis_hd --out pictures

The values are smooth noise: layout, dtypes, dates and gaps are like the real ones, the pictures are not.
"""
GEOPLEX = "geoplex"


def main(arguments: Sequence[str]) -> int:
    """Runs the command that the words after `python -m data_pipelines` name.

    Returns:
      The exit code: 0 done, 1 an error, printed in one line on standard error. Wrong usage exits with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of people and classes have letters that a terminal may lack.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parsed = make_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # `head` or a pager has closed the pipe; Python would fail again when it flushes the stream at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        # Without the number that systems give it.
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; the chosen one's function is in the result, as `run`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        summary, _, examples = text.partition("\n")
        words = dict(help=summary, description=summary, epilog=examples.strip("\n"))
        command = commands.add_parser(name, formatter_class=raw, **words)
        command.set_defaults(run=run)
        if run in (show, prepare, look):
            command.add_argument("name", metavar="NAME", help="a dataset, or the path of a description, FILE.toml")
        return command

    add("list", LIST_HELP, list_datasets)
    add("show", SHOW_HELP, show)
    argument = add("prepare", PREPARE_HELP, prepare).add_argument
    argument("--source", type=_folder, metavar="DIR", help="folder of the download")
    argument("--out", type=_place, required=True, metavar="DIR", help="gets NAME/VERSION; a folder or gs://...")
    argument("--workers", type=int, default=0, metavar="N", help="processes that read tiles (default: 0)")
    argument("--cluster", metavar="ADDRESS", help="a Dask scheduler, whose workers read the tiles instead")
    argument("--limit", type=int, metavar="N", help="at most so many tiles of each split")
    argument("--skip-bad", action="store_true", help="leave out tiles that cannot be read, and list them")
    command = add("look", LOOK_HELP, look)
    argument = command.add_argument
    argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the pictures")
    argument("--n", type=int, default=8, metavar="N", help="how many tiles (default: 8)")
    argument("--split", default="train", metavar="SPLIT", help="of which split (default: train)")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--source", type=_folder, metavar="DIR", help="folder of the download")
    where.add_argument("--root", "--prepared", type=_place, metavar="DIR", help="the --out of `prepare`")
    argument = add("fake", FAKE_HELP, fake).add_argument
    argument("name", metavar="NAME", choices=(*ARCHIVE_NAMES, GEOPLEX), help="a dataset, or geoplex")
    argument("--out", type=_folder, required=True, metavar="DIR", help="a folder that is new or empty")
    argument("--tiles", type=int, default=4, metavar="N", help="tiles of each split (default: 4)")
    argument("--seed", type=int, default=0, metavar="N", help="another seed, other values (default: 0)")
    return parser


def _place(text: str) -> str:
    """Checks an argument that is a folder or an address."""
    if not text.strip():
        # pathlib would take it for the folder where the command runs.
        raise argparse.ArgumentTypeError("it is empty; perhaps a shell variable is not set. For this folder give .")
    if text != text.encode(errors="replace").decode():
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8, and not all file formats allow that; rename it")
    return text


def _folder(text: str) -> pathlib.Path:
    if is_url(_place(text)):
        raise argparse.ArgumentTypeError(f"{text} is an address; expected a folder of this machine")
    return pathlib.Path(text).expanduser()


def list_datasets(arguments: argparse.Namespace) -> None:
    """Prints a table of all datasets."""
    rows = [table_row(get_entry(name).card) for name in dataset_names()]
    print(fitted_table(HEADER, rows, terminal_width()))


def show(arguments: argparse.Namespace) -> None:
    """Prints a dataset's card."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print(describe(get_entry(arguments.name), terminal_width(), colours))


def prepare(arguments: argparse.Namespace) -> None:
    """Prepares a dataset; prints the report, the folder and the next commands."""
    from data_pipelines.prepare.prepare import prepare_dataset
    from data_pipelines.prepare.report import read_report, report_text

    entry, source = get_entry(arguments.name), arguments.source
    out = arguments.out if is_url(arguments.out) else pathlib.Path(arguments.out).expanduser()
    reader, lines = entry.reader(source), []
    print(getattr(reader, "summary", f"{entry.card.name}: made by this project's code"))

    def say(line: str) -> None:
        lines.append(line)
        print(line)

    options = {key: getattr(arguments, key) for key in ("workers", "cluster", "limit", "skip_bad")}
    options["source"] = str(source or entry.source or "")
    try:
        folder = prepare_dataset(reader, out, entry.version, say=say, **options)
    except KeyboardInterrupt:
        to_stderr("finished shards are kept; the same command continues with the next one")
        raise
    if not lines:
        local = isinstance(folder, pathlib.Path)
        print("nothing to do: it was prepared before" + (", with this report" if local else ""))
        print(report_text(read_report(folder)) if local else "")
    name, root = entry.card.name, shlex.quote(str(out))
    print(f"\n{name} is prepared in {folder}\n\nNext:")
    print(f"  python -m data_pipelines look {name} --root {root} --out pictures")
    print(f"  python -m anysat_jax.main --config=configs/pretrain.py:prepared,{name} --config.data.root={root}")


def look(arguments: argparse.Namespace) -> None:
    """Draws tiles and prints the path of the page that shows them."""
    # matplotlib takes a second to import.
    from data_pipelines.plots.gallery import draw_gallery, prepared_tiles, raw_tiles

    if arguments.n < 1:
        raise ValueError(f"--n is {arguments.n}; expected at least one tile")
    if arguments.root is not None:
        tiles = prepared_tiles(arguments.name, arguments.root, arguments.split)
    else:
        tiles = raw_tiles(get_entry(arguments.name).reader(arguments.source), arguments.split)

    watched = functools.partial(tqdm.tqdm, desc=f"drawing {tiles.card.name}", unit="tile")
    page = draw_gallery(tiles, arguments.n, arguments.out, watched)
    print(f"{min(arguments.n, tiles.count)} of {tiles.count:,} tiles of {tiles.split!r} are drawn: open {page}")


def fake(arguments: argparse.Namespace) -> None:
    """Writes made-up archives; prints their folders and the next commands."""
    if arguments.tiles < 1 or arguments.seed < 0:
        raise ValueError(f"--tiles {arguments.tiles} --seed {arguments.seed}: expected at least 1 tile and seed 0")
    several = arguments.name == GEOPLEX
    folders = {name: arguments.out / name for name in GEOPLEX_NAMES} if several else {arguments.name: arguments.out}
    for folder in folders.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already and not an empty folder; choose a new one as --out")
    for name, folder in folders.items():
        write_fake(name, folder, arguments.tiles, arguments.seed)
        print(f"{name}: {arguments.tiles} made-up tiles of each split are in {folder}")
    first, folder = next(iter(folders.items()))
    source = shlex.quote(str(folder))
    print("\nNext:")
    print(f"  python -m data_pipelines look {first} --source {source} --out pictures")
    print(f"  python -m data_pipelines prepare {first} --source {source} --out prepared")


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
            "dates": card.dates.get(name, ""),
            "validity mask": MASK_KINDS[card.masks[name]] if name in card.masks else "",
            "clouds": "probability of cloud or snow in percent" if name in card.clouds else "",
        }
    )


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
