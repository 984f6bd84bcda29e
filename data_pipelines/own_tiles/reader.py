"""Card, reader and registry entry of a described folder of tiles."""

import colorsys
import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from anysat_jax.sensors import register, whole_number
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import parse_day
from data_pipelines.files import inside, read_table
from data_pipelines.own_tiles.declared import Read, check_scales, read_bands, read_file
from data_pipelines.own_tiles.description import Description, SensorFiles, TileLabels, read_description
from data_pipelines.own_tiles.files import (
    check_places,
    days_of_array,
    dense_label,
    sensor_fields,
    with_bands,
    with_clear,
)
from data_pipelines.own_tiles.pattern import RASTERS, Found, same_letters
from data_pipelines.prepare.records import check_card
from data_pipelines.reader import ArchiveReader, DatasetEntry, hashed_split
from data_pipelines.units import check_values

SPLITS = ("train", "val", "test")
_SHOWN = (("R", "G", "B"), ("B4", "B3", "B2"))  # bands that are red, green and blue, as most sensors call them


def folder_card(description: Description) -> DatasetCard:
    """Registers a description's sensors and returns its card.

    Raises:
      ValueError: a sensor is registered with other facts, a patch is not a whole number of sub-patches, or the like;
        the message names the description's file.
    """
    mask, extent = description.mask, description.extent
    try:
        for files in description.sensors:
            register(files.record)
        if mask and not whole_number(extent / mask.metres_per_pixel):
            raise ValueError(
                f"mask.metres_per_pixel is {mask.metres_per_pixel:g}, and the extent of {extent:g} m is not a whole "
                "number of such pixels"
            )
        card = _card(description)
        check_card(card)
    except ValueError as error:
        raise ValueError(f"{description.path}: {error}") from error
    return card


def _card(description: Description) -> DatasetCard:
    labels, mask, splits = description.labels, description.mask, description.splits
    sensors = {files.record.name: files for files in description.sensors}
    # Only what every tile has can give each tile its place.
    placed = (n for n, f in sensors.items() if not f.optional and f.files.suffix in RASTERS)
    drawn = f"drawn by the tiles' names: {splits.val:.0%} val, {splits.test:.0%} test, seed {splits.seed}"
    dense_dtype = class_dtype(len(mask.classes)).name if mask and mask.classes else "float32"
    return DatasetCard(
        name=description.name,
        title=description.title or description.name,
        sensors=tuple(sensors),
        extent=description.extent,
        patch_sizes=description.patch_sizes,
        splits=SPLITS,
        arrays={name: files.dtype for name, files in sensors.items()} | ({"dense": dense_dtype} if mask else {}),
        sides={name: files.pixels for name, files in sensors.items() if files.pixels},
        masks=dict.fromkeys(sensors, "pixel"),
        optional=tuple(name for name, files in sensors.items() if files.optional),
        georeferenced=next(placed, ""),
        file_bands={name: files.bands for name, files in sensors.items() if files.bands != files.record.bands},
        units={name: files.units for name, files in sensors.items() if files.units},
        tile_label=labels.kind if labels else "none",
        tile_classes=labels.classes if labels else (),
        dense_label=("segmentation" if mask.classes else "regression") if mask else "none",
        dense_classes=mask.classes if mask else (),
        dense_colours=(mask.colours or palette(len(mask.classes))) if mask else (),
        dense_metres=mask.metres_per_pixel if mask else 10.0,
        label_unit=(labels.unit if labels else "") or (mask.unit if mask else ""),
        split_rule=f"column {splits.column!r} of {description.table}" if splits.column else drawn,
        own_sensors=tuple(files.record for files in sensors.values() if files.kind),
        natural_colour={name: shown for name, files in sensors.items() if (shown := _natural_colour(files))},
        size="as many tiles as the folder holds",
        notes=(f"A folder of one's own, described by {description.path.name}.",),
        licence=description.licence,
        citation=description.citation,
        url=description.url,
    )


def class_dtype(num_classes: int) -> np.dtype:
    """Returns the smallest dtype for class numbers, counted from 0, and -1 for no label."""
    return np.min_scalar_type(-num_classes)  # a signed type reaches from -n to n - 1


def palette(count: int) -> tuple[str, ...]:
    """Returns distinct colours "#rrggbb", for descriptions without colours."""
    colours = []
    for number in range(count):
        # Steps of the golden ratio keep all hues apart, however many there are.
        hue, value = (number * 0.618034) % 1.0, (0.9, 0.65)[number % 2]
        colours.append("#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, 0.65, value)))
    return tuple(colours)


def _natural_colour(files: SensorFiles) -> tuple[int, int, int] | None:
    known = files.record.bands
    # Most sensors have bands of either name; those that have neither are shown in grey.
    found = (bands for bands in (files.natural_colour, *_SHOWN) if bands and set(bands) <= set(known))
    return next(((known.index(red), known.index(green), known.index(blue)) for red, green, blue in found), None)


TILE = "tile"  # the column that names the tile

Rows = Mapping[str, Mapping[str, str]]
"""A table's rows by tile."""


def read_rows(description: Description, root: pathlib.Path) -> Rows:
    """Reads the rows of the description's table; {} if it has no table.

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
    """Yields line, tile and cells of each row; skips empty rows, which spreadsheets leave at the end."""
    for number, row in enumerate(read_table(path, columns, expected), start=2):
        if any(row[column].strip() for column in columns):
            yield number, same_letters(row[TILE].strip()), row


def split_of(description: Description, rows: Rows, tile: str) -> str:
    """Returns the split of a tile.

    Raises:
      ValueError: the table lacks the tile, or names an unknown split.
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
    """Returns the cell of a tile in a column.

    Raises:
      ValueError: the table has no row of that tile.
    """
    if tile not in rows:
        raise ValueError(f"{description.table} has no row for tile {tile!r}; add one, or take its files out")
    return rows[tile][column].strip()


def tile_label(description: Description, labels: TileLabels, rows: Rows, tile: str) -> np.ndarray:
    """Returns the label of a tile: int32 () class, (K,) uint8 multi-hot, or float32 ().

    Raises:
      ValueError: the tile has no label, or one that is not a class or a number.
    """
    text = cell(description, rows, tile, labels.column)
    where = f"{description.table}: column {labels.column!r} of tile {tile!r}"
    if labels.kind == "regression":
        with contextlib.suppress(ValueError):
            if math.isfinite(float(text)):
                return np.asarray(float(text), np.float32)
        raise ValueError(f"{where} is {text!r}; expected a number")
    names = [name.strip() for name in text.split(";")] if labels.kind == "multi_label" else [text]
    # An empty cell is a tile without any of the classes if it may have several, else a label that is missing.
    names = [name for name in names if name or labels.kind == "class"]
    if unknown := [name for name in names if name not in labels.classes]:
        raise ValueError(f"{where} is {unknown[0]!r}; expected one of {', '.join(labels.classes)}")
    numbers = [labels.classes.index(name) for name in names]
    if labels.kind == "class":
        return np.asarray(numbers[0], np.int32)
    hot = np.zeros(len(labels.classes), np.uint8)
    hot[numbers] = 1
    return hot


def read_dates(root: pathlib.Path, name: str, tiles: Iterable[str]) -> dict[str, list[datetime.date]]:
    """Reads the dates of stacked files, by tile, in the order of the file; all of `tiles` must have some.

    `name` is of a CSV file in the source folder, with columns "tile" and "date"; a tile has as many rows as dates.

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


class FolderReader(ArchiveReader):
    """Reads a folder of tiles.

    The tiles are those whose files are found; a row of the table without files is left out and counted in `summary`.
    Raises ValueError if a tile lacks a sensor, a label or a split, or the table is not as described.
    """

    def __init__(self, description: Description, root: pathlib.Path) -> None:
        self.description, card = description, folder_card(description)
        self.files: dict[str, Found] = {
            f.record.name: f.files.find(root, f.bands, f.same_day) for f in description.sensors
        }
        self.clear: dict[str, Found] = {
            f.record.name: f.clear.files.find(root, (), f.same_day)
            for f in description.sensors
            if f.clear and f.clear.files
        }
        self._firsts: dict[str, Read] = {}
        self.masks: Found = description.mask.files.find(root) if description.mask else {}
        tiles = sorted(set().union(*self.files.values()))
        self._check_files(tiles)
        rows, labels = read_rows(description, root), description.labels
        splits = {tile: split_of(description, rows, tile) for tile in tiles}
        self.labels = {tile: tile_label(description, labels, rows, tile) for tile in tiles} if labels else {}
        listed = {files.record.name: files.dates for files in description.sensors if files.dates.endswith(".csv")}
        self.dates = {name: read_dates(root, file, self.files[name]) for name, file in listed.items()}
        super().__init__(card, root, {s: [tile for tile in tiles if splits[tile] == s] for s in card.splits})
        # The card of a description has all three splits; a folder may lack tiles of some.
        self.card = dataclasses.replace(self.card, splits=self.splits())
        if missing := len(set(rows) - set(tiles)):
            self.summary += f"; {missing} of the {len(rows):,} tiles in {description.table} have no files"
        if stray := len(set(self.masks) - set(tiles)):
            self.summary += f"; {stray} of the {len(self.masks):,} masks belong to no tile"
        numbers = {tile: label.tolist() for tile, label in self.labels.items()}
        parts = [self.fingerprint, self.description.text, self.files, self.masks, numbers, self.dates]
        parts += [self.clear] if self.clear else []  # folders that were prepared before keep theirs
        self.fingerprint = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def _check_files(self, tiles: list[str]) -> None:
        wanted = [
            (self.files[f.record.name], "file", f.files.text, f"write optional = true under [sensors.{f.record.name}]")
            for f in self.description.sensors
            if not f.optional
        ]
        if self.description.mask:
            wanted.append((self.masks, "label", self.description.mask.files.text, "take the tiles' files out"))
        for found, kind, pattern, remedy in wanted:
            if lacking := [tile for tile in tiles if tile not in found]:
                what = f"{len(lacking)} of {len(tiles)} tiles, such as {lacking[0]!r}, have no {kind} {pattern!r}"
                raise ValueError(f"{what}; add them, or {remedy}")

    def example(self, split: str, key: str) -> Example:
        there = [files for files in self.description.sensors if key in self.files[files.record.name]]
        reads = {files.record.name: self._read(files, key) for files in there}
        # Before anything is computed, so that a wrong extent is not reported as a fault of one file.
        self._check_extents(key, {name: read for name, (read, *_) in reads.items()})
        example: Example = {"id": key}
        if self.card.georeferenced:
            example |= reads[self.card.georeferenced][0][0].place
        for files in there:
            example |= sensor_fields(files, *reads[files.record.name])
        if self.description.labels:
            example["tile"] = self.labels[key]
        rasters = []
        for files in there:
            # The one pixel of a context sensor covers the tile, whatever its side.
            metres = None if files.record.kind == "context" else files.record.metres_per_pixel
            rasters += [(read, metres) for read in reads[files.record.name][0]]
        if mask := self.description.mask:
            read = read_file(inside(self.root, self.masks[key][0][1]), mask.array)
            rasters.append((read, mask.metres_per_pixel))
            example["dense"] = dense_label(mask, read, self.card.side("dense"), self.card.dtype("dense"))
        check_places(rasters)
        # Here, too, as a reader of own tiles is also used alone, to see what a description makes of them.
        return check_values(self.card, f"{self.root}, tile {key!r}", example)

    def _read(self, files: SensorFiles, key: str) -> tuple[list[Read], list[datetime.date]]:
        """Reads a sensor's files of a tile, each with the bands first, and the days of a series."""
        found = self.files[files.record.name][key]
        reads = [self._open(files, path) for _, path in found]
        if files.files.suffix in RASTERS:
            for read in reads:
                check_scales(files, read, self._first(files))
        reads = [with_bands(files, read) for read in reads]
        if files.clear:
            reads = [with_clear(files, read, self._classes(files, key, *one)) for read, one in zip(reads, found)]
        if not files.record.has_dates:
            return reads, []
        if files.files.has_date:
            return reads, [day for day, _ in found if day]
        if files.dates.endswith(".csv"):
            return reads, self.dates[files.record.name][key]
        return reads, days_of_array(reads[0], files.dates)

    def _classes(
        self, files: SensorFiles, key: str, day: datetime.date | None, path: str | tuple[str, ...]
    ) -> Read | None:
        """Reads the classification of an image, of its day and product; None if it is a band of the image."""
        pattern, name = files.clear.files, files.record.name
        if pattern is None:
            return None
        classes = [other for when, other in self.clear[name].get(key, ()) if when == day]
        several = len(classes) > 1 or sum(when == day for when, _ in self.files[name][key]) > 1
        product = files.files.product(path if isinstance(path, str) else path[0]) if several else ()
        if several and "*" in pattern.text:
            classes = [other for other in classes if pattern.product(other) == product]
        if len(classes) != 1:
            when = (f" on {day}" if day else "") + (f" with the texts {product} at *, as {path}" if product else "")
            raise ValueError(
                f"tile {key!r} has {len(classes) or 'no'} file {pattern.text!r}{when}; add it, or take the image out"
            )
        return read_file(inside(self.root, classes[0]))

    def _first(self, files: SensorFiles) -> Read:
        """Returns the sensor's first file that can be read, the same in every process."""
        name = files.record.name
        for path in (path for found in self.files[name].values() for _, path in found):
            if name in self._firsts:
                break
            with contextlib.suppress(ValueError, FileNotFoundError):
                self._firsts[name] = self._open(files, path)
        return self._firsts[name]

    def _open(self, files: SensorFiles, path: str | tuple[str, ...]) -> Read:
        if isinstance(path, tuple):
            return read_bands([inside(self.root, one) for one in path], files.array)
        return read_file(inside(self.root, path), files.array, files.dates)

    def _check_extents(self, key: str, reads: dict[str, list[Read]]) -> None:
        """Refuses a tile in which a sensor does not cover the extent."""
        covers, fits = [], True
        for files in self.description.sensors:
            name, metres = files.record.name, files.record.metres_per_pixel
            if name not in reads:
                covers.append(f"{name} is missing")
                continue
            odd = [read for read in reads[name] if read.values.shape[-2:] != (self.card.side(name),) * 2]
            shown, fits = (odd or reads[name])[0], fits and not odd
            height, width = shown.values.shape[-2:]
            size = f"{width * metres:g} m" if width == height else f"{width * metres:g} x {height * metres:g} m"
            covers.append(f"{name} covers {size} ({width} x {height} pixels of {metres:g} m, {shown.path.name})")
        # All sensors are named, as the description may be wrong rather than one of them.
        if not fits:
            expected = f"expected all to cover the described extent of {self.card.extent:g} m"
            raise ValueError(f"tile {key!r} of {self.root}: {', '.join(covers)}; {expected}")


def folder_entry(path: pathlib.Path | str, source: pathlib.Path | None = None) -> DatasetEntry:
    """Returns the dataset of a described folder of tiles and registers the description's own sensors.

    `path` is the description, a TOML file; `source` the folder of the tiles, that of the description unless given.

    Raises:
      FileNotFoundError: the description does not exist.
      ValueError: it cannot be read or is impossible; the message names the field.
    """
    description = read_description(pathlib.Path(path).expanduser())
    return DatasetEntry(
        card=folder_card(description),
        open_reader=lambda root: FolderReader(description, root),
        holds_raw=lambda root: all(f.files.head(root).is_dir() for f in description.sensors if not f.optional),
        layout=", ".join(files.files.text for files in description.sensors),
        version=description.version,
        source=description.path.resolve().parent if source is None else source,
    )
