"""The table of a folder of tiles: labels, splits and dates by tile, from CSV files."""

import datetime
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.dates import parse_day
from data_pipelines.files import inside, read_table
from data_pipelines.folder.card import SPLITS
from data_pipelines.folder.description import Description, TileLabels
from data_pipelines.folder.pattern import same_letters
from data_pipelines.splits import hashed_split

TILE = "tile"  # the column that names the tile

Rows = Mapping[str, Mapping[str, str]]
"""A table's rows by tile."""


def read_rows(description: Description, root: pathlib.Path) -> Rows:
    """The rows of the description's table; none where it has no table.

    Raises:
      FileNotFoundError, ValueError: it is missing, lacks a column, or names a tile twice.
    """
    if not description.table:
        return {}
    labels, column = description.labels, description.splits.column
    columns = [TILE, *([labels.column] if labels else []), *([column] if column else [])]
    path = inside(root, description.table)
    expected = f"a CSV file in UTF-8, cells between commas, with the columns {', '.join(columns)}"
    rows: dict[str, dict[str, str]] = {}
    for _, tile, row in _filled(path, columns, f"{expected}, as {description.path.name} says"):
        if tile in rows:
            raise ValueError(f"{path} names tile {tile!r} twice; expected a row for each tile")
        rows[tile] = row
    return rows


def _filled(path: pathlib.Path, columns: Sequence[str], expected: str) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Line, tile and cells of each row; spreadsheets leave rows without any cell behind, which are none."""
    for number, row in enumerate(read_table(path, columns, expected), start=2):
        if any(row[column].strip() for column in columns):
            yield number, same_letters(row[TILE].strip()), row


def split_of(description: Description, rows: Rows, tile: str) -> str:
    """The split of a tile.

    Raises:
      ValueError: the table does not say, or names an unknown one.
    """
    rule = description.splits
    if not rule.column:
        return hashed_split(tile, rule.val, rule.test, rule.seed)
    split = cell(description, rows, tile, rule.column)
    if split not in SPLITS:
        raise ValueError(
            f"{description.table}: column {rule.column!r} of tile {tile!r} is {split!r}; expected one of "
            f"{', '.join(SPLITS)}"
        )
    return split


def cell(description: Description, rows: Rows, tile: str, column: str) -> str:
    """What stands in a column for a tile.

    Raises:
      ValueError: there is no row of that tile.
    """
    if tile not in rows:
        raise ValueError(f"{description.table} has no row for tile {tile!r}; add one, or take its files out")
    return rows[tile][column].strip()


def tile_label(description: Description, labels: TileLabels, rows: Rows, tile: str) -> np.ndarray:
    """The label of a tile: int32 () class, (K,) uint8 multi-hot, or float32 ().

    Raises:
      ValueError: the tile has no label, or one that is no class or number.
    """
    text = cell(description, rows, tile, labels.column)
    where = f"{description.table}: column {labels.column!r} of tile {tile!r}"
    if labels.kind == "regression":
        return _number(text, where)
    names = [name.strip() for name in text.split(";")] if labels.kind == "multi_label" else [text]
    names = [name for name in names if name or labels.kind == "class"]
    if unknown := [name for name in names if name not in labels.classes]:
        raise ValueError(f"{where} is {unknown[0]!r}; expected one of {', '.join(labels.classes)}")
    numbers = [labels.classes.index(name) for name in names]
    if labels.kind == "class":
        return np.asarray(numbers[0], np.int32)
    hot = np.zeros(len(labels.classes), np.uint8)
    hot[numbers] = 1
    return hot


def _number(text: str, where: str) -> np.ndarray:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} is {text!r}; expected a number")
    return np.asarray(number, np.float32)


def read_dates(root: pathlib.Path, name: str, tiles: Iterable[str]) -> dict[str, list[datetime.date]]:
    """The dates of stacked files, by tile, in the order of the file.

    Args:
      root: the source folder.
      name: of a CSV file with columns "tile" and "date"; a tile has as many rows as dates.
      tiles: those that must have dates.

    Raises:
      FileNotFoundError, ValueError: the file is missing or lacks a column, a date cannot be read, a tile has none.
    """
    path = inside(root, name)
    dates: dict[str, list[datetime.date]] = {}
    for number, tile, row in _filled(path, [TILE, "date"], "a CSV file, cells between commas, of columns tile, date"):
        dates.setdefault(tile, []).append(parse_day(row["date"], f"{path}, line {number}"))
    if without := [tile for tile in tiles if tile not in dates]:
        raise ValueError(f"{path} has no date of tile {without[0]!r}; add a row for each date")
    return dates
