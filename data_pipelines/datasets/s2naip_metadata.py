"""S2NAIP's tiles, their splits, the dates of their images, and its maps of objects."""

import array
import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8

from data_pipelines.dates import parse_day
from data_pipelines.files import explained, read_json, read_table

TILE = re.compile(r"\d{5}_-?\d+_-?\d+")
FOLDERS = {"s2": "sentinel2", "s1": "sentinel1", "l8": "landsat"}
BLOCK = 16  # tiles along the side of a block whose tiles share a split: 10 km
VAL_EVERY = 10
_NAMED = re.compile(r"(?<![\w-])(\d{5}_-?\d+_-?\d+)(?![\w-])|^\"?(?:EPSG:)?(\d{5})\"?,\"?(-?\d+)\"?,\"?(-?\d+)\b")
_SCENES = {
    "s2": re.compile(r"S2[A-D]_MSIL1C_(\d{8})T"),
    "s1": re.compile(r"S1[A-D]_[0-9A-Z]{2}_[0-9A-Z]{4}_[0-9A-Z]{4}_(\d{8})T"),
    "l8": re.compile(r"L[COT]0[89]_[0-9A-Z]{4}_\d{6}_(\d{8})"),
}
_DAY = re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2}|(?:19|20)\d{6})(?!\d)")


class DateTable:
    """Days of each tile's images, in the order of the images; small in memory, for there are half a million tiles.

    `source` is the file that lists them, `days` are their ordinals by tile.
    """

    def __init__(self, source: pathlib.Path, days: Mapping[str, Sequence[int]]) -> None:
        self.source = source
        names = sorted(days)
        self._tiles = np.asarray(names)
        self._ends = np.cumsum([len(days[name]) for name in names], dtype=np.int64)
        # One array for all tiles: half a million lists of dates would take some hundred megabytes.
        flat = [np.asarray(days[name], np.int32) for name in names]
        self._ordinals = np.concatenate(flat) if flat else np.zeros(0, np.int32)

    @property
    def fingerprint(self) -> str:
        """Changes with the tiles and their days."""
        arrays = (self._tiles.astype(np.str_), self._ends, self._ordinals)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def days(self, tile: str) -> list[datetime.date]:
        """Returns a tile's days; [] if the source does not list it."""
        place = int(np.searchsorted(self._tiles, tile)) if self._tiles.size else 0
        if place >= len(self._tiles) or self._tiles[place] != tile:
            return []
        start = self._ends[place - 1] if place else 0
        return [datetime.date.fromordinal(int(day)) for day in self._ordinals[start : self._ends[place]]]


def read_date_table(path: pathlib.Path, sensor: str, tiles: Collection[str]) -> DateTable:
    """Reads the days of some tiles from a published table.

    A row names a tile, "32612_960_-6049" in one cell or zone, column and row in the first three, and one image or
    several, by the satellite's product names or, without any, by dates. Images are in the order of the rows.

    Raises:
      FileNotFoundError, ValueError: the table is missing, not text, names none of the tiles, or an impossible day.
    """
    found: dict[str, array.array] = {}
    expected = f"the published table of the scenes of {FOLDERS[sensor]!r}, with one tile a row"
    # Line by line, without a CSV reader: the tables have millions of rows, of which few are of these tiles.
    with explained(path, expected, UnicodeDecodeError), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            named = _NAMED.search(line)
            tile = (named[1] or "_".join(named.groups()[1:])) if named else ""
            if tile not in tiles:
                continue
            # Without the tile, whose numbers may look like a day.
            rest = line[: named.start()] + line[named.end() :]
            days = _SCENES[sensor].findall(rest) or _DAY.findall(rest)
            ordinals = [_ordinal(day) or parse_day(day, f"{path}, line {number}").toordinal() for day in days]
            found.setdefault(tile, array.array("i")).extend(ordinals)
    if tiles and not found:
        raise ValueError(f"{path} names none of the {len(tiles):,} tiles, e.g. {min(tiles)}; expected {expected}")
    return DateTable(path, found)


@functools.lru_cache(maxsize=4096)
def _ordinal(day: str) -> int:
    # Cached, because the tables have millions of rows and few days; so it cannot name a line, and returns 0 for none.
    with contextlib.suppress(ValueError):
        return parse_day(day, "").toordinal()
    return 0


def read_split_dicts(root: pathlib.Path) -> tuple[dict[str, list[str]], dict[str, DateTable]]:
    """Reads tiles of each split and dates of each sensor from `{split}_dict.json`, the published AnySat reader's lists.

    Both are {} if there is no such file.

    Raises:
      ValueError: a file is not of the form {"name": [...], "s2_dates": [[yyyymmdd, ...], ...], ...}.
    """
    splits: dict[str, list[str]] = {}
    days: dict[str, dict[str, list[int]]] = {sensor: {} for sensor in FOLDERS}
    keys = ["name", *(f"{sensor}_dates" for sensor in FOLDERS)]
    expected = f"a dictionary of lists of one length, {keys}, dates as yyyymmdd"
    for split in ("train", "val"):
        path = root / f"{split}_dict.json"
        if not path.is_file():
            continue
        table = read_json(path, expected)
        lists = [table.get(key) for key in keys] if isinstance(table, dict) else []
        if not lists or not all(isinstance(one, list) for several in (lists, *lists[1:]) for one in several):
            raise ValueError(f"{path} is not as expected; expected {expected}")
        if len(set(map(len, lists))) > 1:
            raise ValueError(f"{path} has {list(map(len, lists))} entries; expected {expected}")
        names = splits[split] = check_names(path, table["name"])
        for sensor in FOLDERS:
            for name, several in zip(names, table[f"{sensor}_dates"], strict=True):
                days[sensor][name] = [parse_day(str(day), f"{path}, tile {name}").toordinal() for day in several]
    source = root / "{train,val}_dict.json"
    return splits, {sensor: DateTable(source, table) for sensor, table in days.items()} if splits else {}


def check_names(path: pathlib.Path, names: Iterable[object]) -> list[str]:
    """Checks that names in a list are tiles' names, which cannot lead out of a folder, and returns them.

    Raises:
      ValueError: one is not a tile's name.
    """
    texts = [str(name) for name in names]
    if strange := [text for text in texts if not TILE.fullmatch(text)]:
        raise ValueError(f"{path}: {strange[0]!r} is not a tile; expected a name like 32612_960_-6049")
    return texts


def listed_splits(root: pathlib.Path) -> dict[str, list[str]]:
    """Returns the tiles of each split by `{split}.csv` with a column "name", as far as such lists are there."""
    paths = {split: root / f"{split}.csv" for split in ("train", "val")}
    expected = "a list of tiles with the column 'name'"
    return {
        split: check_names(path, (row["name"] for row in read_table(path, ["name"], expected)))
        for split, path in paths.items()
        if path.is_file()
    }


def split_of(tile: str) -> str:
    """Returns the split of a tile without lists: one in ten blocks of 10 km is held out, by a hash of its position."""
    zone, column, row = tile.split("_")
    # crc32 of a text is the same in every process and version, unlike hash().
    block = json.dumps([zone, int(column) // BLOCK, int(row) // BLOCK])
    return "train" if zlib.crc32(block.encode()) % VAL_EVERY else "val"


SIDE = 512  # pixels of 1.25 m; the objects' coordinates are of these, x to the right and y down
LINE_WIDTH = 2
CLASSES = ("nothing mapped", "building", "transport", "industry and energy", "water", "other")
COLOURS = ("#f2efe9", "#c0392b", "#5f6368", "#8e44ad", "#3498db", "#7cb342")

_OTHER = CLASSES.index("other")
_GROUPS = {
    "building": "building chimney communications_tower lighthouse observatory silo storage_tank water_tower",
    "transport": "aerialway_pylon aerodrome airstrip amenity_fuel helipad highway parking runway taxiway",
    "industry and energy": "crane generator_wind petroleum_well power_plant power_substation power_tower "
    "satellite_dish works",
    "water": "fountain river",
    "other": "flagpole leisure obelisk",
}
_CLASS = {category: CLASSES.index(group) for group, names in _GROUPS.items() for category in names.split()}
_ORDER = [CLASSES.index(name) for name in ("other", "industry and energy", "water", "transport", "building")]


def draw_map(path: pathlib.Path, geojson: Any) -> Int8[np.ndarray, "512 512"]:
    """Draws the objects: other areas first, then industry, water, transport, and buildings on top.

    `geojson` is a feature collection with points, lines and areas in pixels, and their "category"; `path` its file.

    Raises:
      ValueError: it is something else.
      ImportError: rasterio is not installed.
    """
    from rasterio.features import rasterize

    try:
        objects = [(_CLASS.get(one["properties"]["category"], _OTHER), one["geometry"]) for one in geojson["features"]]
        areas = [(area, number) for number, geometry in objects for area in _areas(geometry)]
        # What is drawn last lies on top: a house in a park is a house, a park around houses is not all of them.
        areas.sort(key=lambda area: _ORDER.index(area[1]))
        if not areas:
            return np.zeros((SIDE, SIDE), np.int8)
        return rasterize(areas, (SIDE, SIDE), fill=0, dtype="uint8").astype(np.int8)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        expected = "GeoJSON features with a 'category' among their properties, and coordinates in pixels"
        raise ValueError(f"{path} is not as expected ({type(error).__name__}: {error}); expected {expected}") from error


def _areas(geometry: Any) -> list[dict[str, Any]]:
    """Returns a geometry as polygons; lines and points get a width, a null geometry has none."""
    if geometry is None:
        return []
    kind = geometry["type"]
    if kind == "GeometryCollection":
        return [area for one in geometry["geometries"] for area in _areas(one)]
    coordinates = geometry["coordinates"]
    if kind.startswith("Multi"):
        single = kind.removeprefix("Multi")
        return [area for one in coordinates for area in _areas({"type": single, "coordinates": one})]
    if kind == "Polygon":
        return [_polygon(coordinates)] if len(coordinates) and len(coordinates[0]) >= 4 else []  # else it has no area
    if kind == "LineString":
        return [_polygon([_strip(*ends)]) for ends in itertools.pairwise(_points(coordinates))]
    if kind == "Point":
        (point,) = _points([coordinates])
        return [_polygon([_strip(point, point)])]
    raise ValueError(f"a geometry of type {kind!r}")


def _polygon(rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [_points(ring).tolist() for ring in rings]}


def _strip(start: Float64[np.ndarray, "2"], end: Float64[np.ndarray, "2"]) -> Float64[np.ndarray, "5 2"]:
    """Returns the corners of a line of `LINE_WIDTH` pixels that extends by half of that beyond both ends."""
    length = float(np.hypot(*(end - start)))
    # A point is a line without length; any direction will do.
    along = (end - start if length else np.array([1.0, 0.0])) * (LINE_WIDTH / 2 / (length or 1.0))
    across = np.array([-along[1], along[0]])
    first, last = start - along, end + along
    return np.stack([first + across, last + across, last - across, first - across, first + across])


def _points(coordinates: Any) -> Float64[np.ndarray, "N 2"]:
    # A third coordinate, the height, may follow.
    points = np.asarray([point[:2] for point in coordinates], np.float64)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite")
    return points
