"""Reads a folder of tiles as its description says."""

import dataclasses
import datetime
import hashlib
import json
import pathlib

import numpy as np

from data_pipelines.card import Example
from data_pipelines.files import inside
from data_pipelines.folder.arrays import Read, read_file
from data_pipelines.folder.card import folder_card
from data_pipelines.folder.description import Description, MaskFiles, SensorFiles
from data_pipelines.folder.fields import days_of_array, sensor_fields, with_bands
from data_pipelines.folder.mask import dense_label
from data_pipelines.folder.pattern import Found
from data_pipelines.folder.place import check_places
from data_pipelines.folder.table import Rows, read_dates, read_rows, split_of, tile_label
from data_pipelines.reader import ArchiveReader


class FolderReader(ArchiveReader):
    """Reads a folder of tiles (the Reader of `data_pipelines.card`).

    The tiles are those whose files are found; a row of the table without files is left out and counted in `summary`.
    """

    def __init__(self, description: Description, root: pathlib.Path) -> None:
        """Args:
          description: what is in the folder.
          root: the folder.

        Raises:
          FileNotFoundError: a file or a sensor's or a mask's files are missing.
          ValueError: a tile lacks a sensor, a label or a split, or the table is not as described.
        """
        self.description, self.card = description, folder_card(description)
        self.files: dict[str, Found] = {f.record.name: f.files.find(root) for f in description.sensors}
        self.masks: Found = description.mask.files.find(root) if description.mask else {}
        tiles = sorted(set().union(*self.files.values()))
        self._check_files(tiles)
        rows = read_rows(description, root)
        splits = {tile: split_of(description, rows, tile) for tile in tiles}
        self.labels = self._read_labels(rows, tiles)
        self.dates = self._read_dates(root)
        super().__init__(root, {s: [tile for tile in tiles if splits[tile] == s] for s in self.card.splits})
        self.card = dataclasses.replace(self.card, splits=self.splits())
        if missing := len(set(rows) - set(tiles)):
            self.summary += f"; {missing} of the {len(rows):,} tiles in {description.table} have no files"
        if stray := len(set(self.masks) - set(tiles)):
            self.summary += f"; {stray} of the {len(self.masks):,} masks belong to no tile"

    @property
    def fingerprint(self) -> str:
        """Changes with the description, the files, the splits, the labels and the dates."""
        labels = {tile: label.tolist() for tile, label in self.labels.items()}
        parts = [super().fingerprint, self.description.text, self.files, self.masks, labels, self.dates]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def _check_files(self, tiles: list[str]) -> None:
        for files in self.description.sensors:
            found = self.files[files.record.name]
            if not files.optional and (lacking := [tile for tile in tiles if tile not in found]):
                raise ValueError(
                    f"{len(lacking)} of {len(tiles)} tiles, such as {lacking[0]!r}, have no file "
                    f"{files.files.text!r}; add them, or write optional = true under [sensors.{files.record.name}]"
                )
        if self.description.mask and (lacking := [tile for tile in tiles if tile not in self.masks]):
            raise ValueError(
                f"{len(lacking)} of {len(tiles)} tiles, such as {lacking[0]!r}, have no label, which is "
                f"{self.description.mask.files.text!r}; add them, or take the tiles' files out"
            )

    def _read_labels(self, rows: Rows, tiles: list[str]) -> dict[str, np.ndarray]:
        labels = self.description.labels
        return {tile: tile_label(self.description, labels, rows, tile) for tile in tiles} if labels else {}

    def _read_dates(self, root: pathlib.Path) -> dict[str, dict[str, list[datetime.date]]]:
        """Dates of stacked files from CSV files, by sensor and tile."""
        stacked = [files for files in self.description.sensors if files.dates.endswith(".csv")]
        return {f.record.name: read_dates(root, f.dates, self.files[f.record.name]) for f in stacked}

    def example(self, split: str, key: str) -> Example:
        """One tile.

        Raises:
          FileNotFoundError, ValueError: a file is missing, unreadable or not as described; the message names it.
          ImportError: rasterio is not installed.
        """
        there = [files for files in self.description.sensors if key in self.files[files.record.name]]
        reads = {files.record.name: self._read(files, key) for files in there}
        self._check_extents(key, {name: read for name, (read, *_) in reads.items()})
        example: Example = {"id": key}
        if self.card.georeferenced:
            example |= reads[self.card.georeferenced][0][0].place
        for files in there:
            example |= sensor_fields(files, *reads[files.record.name])
        if self.description.labels:
            example["tile"] = self.labels[key]
        rasters = [read for parts, _ in reads.values() for read in parts]
        if self.description.mask:
            rasters.append(read := self._read_mask(self.description.mask, key))
            side, dtype = self.card.side("dense"), self.card.dtype("dense")
            example["dense"] = dense_label(self.description.mask, read, side, dtype)
        check_places(rasters)
        return example

    def _read_mask(self, mask: MaskFiles, key: str) -> Read:
        return read_file(inside(self.root, self.masks[key][0][1]), mask.array)

    def _read(self, files: SensorFiles, key: str) -> tuple[list[Read], list[datetime.date]]:
        """A sensor's files of a tile, each with the bands first, and the days of a series."""
        found = self.files[files.record.name][key]
        reads = [read_file(inside(self.root, path), files.array, files.dates) for _, path in found]
        reads = [with_bands(files, read) for read in reads]
        if not files.record.has_dates:
            return reads, []
        if files.files.has_date:
            return reads, [day for day, _ in found if day]
        if files.dates.endswith(".csv"):
            return reads, self.dates[files.record.name][key]
        return reads, days_of_array(reads[0], files.dates)

    def _check_extents(self, key: str, reads: dict[str, list[Read]]) -> None:
        """All sensors must cover the extent."""
        sides = {name: {read.values.shape[-2:] for read in parts} for name, parts in reads.items()}
        wanted = {name: {(self.card.side(name),) * 2} for name in sides}
        if sides != wanted:
            covers = ", ".join(self._cover(files, reads) for files in self.description.sensors)
            raise ValueError(
                f"tile {key!r} of {self.root}: {covers}; expected all to cover the described extent of "
                f"{self.card.extent:g} m"
            )

    def _cover(self, files: SensorFiles, reads: dict[str, list[Read]]) -> str:
        name, metres = files.record.name, files.record.metres_per_pixel
        if name not in reads:
            return f"{name} is not there"
        odd = [r for r in reads[name] if r.values.shape[-2:] != (self.card.side(name),) * 2] or reads[name]
        height, width = odd[0].values.shape[-2:]
        size = f"{width * metres:g} m" if width == height else f"{width * metres:g} x {height * metres:g} m"
        return f"{name} covers {size} ({width} x {height} pixels of {metres:g} m, {odd[0].path.name})"
