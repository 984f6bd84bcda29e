"""What the description of a folder of tiles says; `parse.py` reads it from a TOML file."""

import dataclasses
import math
import pathlib
import re
import sys
import tomllib
from typing import Any

from anysat_jax.sensors import SENSORS, Sensor
from data_pipelines.own_tiles.pattern import FilePattern

DECIBELS, LINEAR = "dB", "linear power"


@dataclasses.dataclass(frozen=True)
class SensorFiles:
    """Where a sensor's files are and what stands in them.

    Attributes:
      record: the sensor.
      files: their pattern.
      bands: names in the order of the files.
      dates: a CSV file with the dates of stacked files, or the name of an array of an npz file; "" for dates in names.
      array: name of the array in npz files; "" for the only one.
      nodata: value that stands for nothing observed, besides NaN and what a GeoTIFF declares.
      dtype: of the stored array.
      pixels: along a side, where the files reach beyond the extent.
      optional: whether tiles may lack it.
      units: of the values.
      natural_colour: bands to show as red, green and blue.
      own: whether the description makes the sensor known.
    """

    record: Sensor
    files: FilePattern
    bands: tuple[str, ...]
    dates: str = ""
    array: str = ""
    nodata: float | None = None
    dtype: str = "float32"
    pixels: int | None = None
    optional: bool = False
    units: str = ""
    natural_colour: tuple[str, ...] = ()
    own: bool = False

    @property
    def computes_ratio(self) -> bool:
        """Whether the sensor's third band, a ratio of the others, is not in the files."""
        bands = self.record.bands
        return len(bands) == 3 and bands[2] == f"{bands[0]}/{bands[1]}" and bands[2] not in self.bands


@dataclasses.dataclass(frozen=True)
class TileLabels:
    """A label for each tile: a column of the table."""

    column: str
    kind: str
    classes: tuple[str, ...] = ()
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class MaskFiles:
    """A label for each pixel: files of class numbers, or of numbers to be predicted.

    Attributes:
      values: what stands for each class in the files.
      ignore: what stands for no label in the files; None: nothing but NaN and what a GeoTIFF declares.
    """

    files: FilePattern
    array: str = ""
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: float | None = None
    metres_per_pixel: float = 10.0
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """Which tiles are held out: a column of the table, or shares drawn by the tiles' names."""

    column: str = ""
    val: float = 0.2
    test: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """A folder of tiles, as its TOML file describes it."""

    path: pathlib.Path
    text: str
    name: str
    title: str
    extent: float
    patch_sizes: tuple[int, ...]
    sensors: tuple[SensorFiles, ...]
    table: str = ""
    labels: TileLabels | None = None
    mask: MaskFiles | None = None
    splits: SplitRule = SplitRule()
    version: str = "1.0.0"
    licence: str = ""
    citation: str = ""
    url: str = ""


_REQUIRED: Any = object()
_LARGEST = 2**31  # of whole numbers: what files, seeds and sides are made of


class Section:
    """A table of a TOML file.

    Attributes:
      where: file and table, for errors.
    """

    def __init__(self, file: pathlib.Path, name: str, table: dict[str, Any]) -> None:
        self.where = f"{file}: {name}" if name else str(file)
        self._file, self._name = file, name
        self._table = table
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        self._taken.add(key)
        return key in self._table

    def names(self) -> tuple[str, ...]:
        """Names of the fields, in the order of the file."""
        return tuple(self._table)

    def section(self, key: str) -> "Section":
        """A table in this table.

        Raises:
          ValueError: it is missing or no table.
        """
        value = self._take(key, _REQUIRED)
        if not isinstance(value, dict):
            raise ValueError(f"{self.where}: {key} is {value!r}; expected a table [{key}]")
        return Section(self._file, f"{self._name}.{key}" if self._name else key, value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A text.

        Raises:
          ValueError: it is missing or none.
        """
        return self._checked(key, default, "a text", lambda value: isinstance(value, str) and bool(value.strip()))

    def number(self, key: str, default: float | None) -> float | None:
        """A number, NaN and infinity allowed.

        Raises:
          ValueError: it is none.
        """
        return _to(float, self._checked(key, default, "a number", _is_number))

    def positive(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number above 0.

        Raises:
          ValueError: it is missing or none.
        """
        return _to(float, self._checked(key, default, "a number above 0", lambda v: _is_finite(v) and v > 0))

    def share(self, key: str, default: float) -> float:
        """A share, from 0 to 1.

        Raises:
          ValueError: it is none.
        """
        return float(self._checked(key, default, "a share from 0 to 1", lambda v: _is_finite(v) and 0 <= v <= 1))

    def whole(self, key: str, default: int | None, lowest: int = -_LARGEST) -> Any:
        """A whole number.

        Raises:
          ValueError: it is none, or below `lowest`.
        """
        expected = "a whole number" if lowest == -_LARGEST else f"a whole number, {lowest} or more"
        return _to(int, self._checked(key, default, expected, lambda v: _is_whole(v) and v >= lowest))

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
          ValueError: it is something else.
        """
        return self._checked(key, default, "true or false", lambda value: isinstance(value, bool))

    def texts(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        """A list of texts.

        Raises:
          ValueError: it is missing, empty or something else.
        """
        return tuple(self._checked(key, default, "a list of texts", lambda v: _is_list(v) and all(map(_is_text, v))))

    def wholes(self, key: str, default: Any = _REQUIRED, lowest: int = -_LARGEST) -> tuple[int, ...]:
        """A list of whole numbers.

        Raises:
          ValueError: it is missing, empty or something else, or one is below `lowest`.
        """
        expected = "a list of whole numbers" + ("" if lowest == -_LARGEST else f", {lowest} or more")
        found = self._checked(
            key, default, expected, lambda v: _is_list(v) and all(map(_is_whole, v)) and min(v) >= lowest
        )
        return tuple(map(int, found))

    def finish(self) -> None:
        """Refuses what nobody asked for.

        Raises:
          ValueError: there is such a field; the message lists those that there are.
        """
        if unknown := [key for key in self._table if key not in self._taken]:
            known = ", ".join(sorted(self._taken))
            raise ValueError(f"{self.where} has {', '.join(unknown)}, which is not known; known are {known}")

    def _take(self, key: str, default: Any) -> Any:
        self._taken.add(key)
        if key not in self._table and default is _REQUIRED:
            raise ValueError(f"{self.where} has no {key}; docs/DATA.md says what it is")
        return self._table.get(key, default)

    def _checked(self, key: str, default: Any, expected: str, fits: Any) -> Any:
        value = self._take(key, default)
        if key in self._table and not fits(value):
            raise ValueError(f"{self.where}: {key} is {repr(value)[:80]}; expected {expected}")
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    """An integer of TOML may have any number of digits."""
    is_int = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return is_int or isinstance(value, float)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_finite(value) and value == int(value) and abs(value) <= _LARGEST


def _to(kind: type, value: Any) -> Any:
    return None if value is None else kind(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SENSOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN = ("id", "crs", "transform", "tile", "dense")  # other keys of an example, and how keys of a sensor's fields end
_ENDS = ("_dates", "_years", "_mask", "_cloud", "_present")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_DTYPES = ("uint8", "int8", "uint16", "int16", "float32")


def read_description(path: pathlib.Path) -> Description:
    """Reads a description.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no TOML, or a field is missing, unknown or impossible; the message names file and field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' Notepad writes a mark first
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise FileNotFoundError(f"no description {path}; docs/DATA.md shows how to write one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is no TOML file ({error}); docs/DATA.md shows how to write one") from error
    return _description(path, text, Section(path, "", table))


def _description(path: pathlib.Path, text: str, section: Section) -> Description:
    fields: dict[str, Any] = {"name": section.text("name"), "extent": section.positive("extent")}
    if not _NAME.fullmatch(fields["name"]):
        raise ValueError(f"{path}: name is {fields['name']!r}; expected small letters, digits and '_', a letter first")
    fields["patch_sizes"] = section.wholes("patch_sizes", lowest=1)
    for key, default in (("title", fields["name"]), ("table", ""), ("licence", ""), ("citation", ""), ("url", "")):
        fields[key] = section.text(key, default)
    fields["version"] = section.text("version", "1.0.0")
    if not _VERSION.fullmatch(fields["version"]):
        raise ValueError(f"{path}: version is {fields['version']!r}; expected three numbers like 1.0.0")
    sensors = section.section("sensors")
    fields["sensors"] = tuple(_sensor(name, sensors.section(name)) for name in sensors.names())
    if not fields["sensors"]:
        raise ValueError(f"{path} describes no sensor; write a table [sensors.NAME] for each")
    fields["labels"] = _labels(section.section("labels")) if section.has("labels") else None
    fields["mask"] = _mask(section.section("mask")) if section.has("mask") else None
    fields["splits"] = _splits(section.section("splits")) if section.has("splits") else SplitRule()
    section.finish()
    if not fields["table"] and (fields["labels"] or fields["splits"].column):
        raise ValueError(f'{path} takes labels or splits from a column; name the CSV file: table = "tiles.csv"')
    return Description(path=path, text=text, **fields)


def _sensor(name: str, section: Section) -> SensorFiles:
    if not _SENSOR_NAME.fullmatch(name) or name in _TAKEN or name.endswith(_ENDS):
        raise ValueError(
            f"{section.where}: a sensor cannot be called {name!r}; expected letters, digits, '_' and '-', a letter "
            f"first, none of {', '.join(_TAKEN)}, and no end like {', '.join(_ENDS)}"
        )
    bands = section.texts("bands")
    fields: dict[str, Any] = {"bands": bands, "files": _pattern(section)}
    for key in ("dates", "array", "units"):
        fields[key] = section.text(key, "")
    fields["nodata"] = section.number("nodata", None)
    fields["dtype"] = section.text("dtype", "float32")
    fields["pixels"] = section.whole("pixels", None, lowest=1)
    fields["optional"] = section.flag("optional", False)
    fields["natural_colour"] = section.texts("natural_colour", ())
    own = section.has("kind")
    record = _record(name, bands, section)
    section.finish()
    files = SensorFiles(record=record, own=own, **fields)
    _check_bands(section.where, files)
    _check_dates(section.where, files)
    return files


def _pattern(section: Section) -> FilePattern:
    return FilePattern(section.text("files"), f"{section.where}.files")


def _record(name: str, bands: tuple[str, ...], section: Section) -> Sensor:
    """The sensor: the registered one, or one that the description makes known."""
    kind, metres = section.text("kind", ""), section.positive("metres_per_pixel", None)
    subpatch = section.whole("subpatch_pixels", None, lowest=1)
    known = SENSORS.get(name)
    if known is not None and not any((kind, metres, subpatch)):
        return known
    if known is not None and not kind:
        raise ValueError(
            f"{section.where}: {name!r} is a known sensor of {known.metres_per_pixel:g} m per pixel; leave out "
            "metres_per_pixel and subpatch_pixels, or, where the pixels are others, give the sensor a name of its own"
        )
    if not kind or not metres or (kind == "image" and not subpatch):
        raise ValueError(
            f"{section.where}: {name!r} is none of the known sensors ({', '.join(SENSORS)}); to make it known, write "
            "its kind (image, series or context), metres_per_pixel and, for an image, subpatch_pixels"
        )
    own = bands if known is None else known.bands
    try:
        return Sensor(name, kind, own, metres, subpatch_pixels=subpatch or 1)
    except ValueError as error:
        raise ValueError(f"{section.where}: {error}") from error


def _check_bands(where: str, files: SensorFiles) -> None:
    if len(set(files.bands)) != len(files.bands):
        raise ValueError(f"{where}.bands names a band twice: {', '.join(files.bands)}")
    wanted = files.record.bands[:2] if files.computes_ratio else files.record.bands
    if missing := [band for band in wanted if band not in files.bands]:
        raise ValueError(
            f"{where}.bands is {', '.join(files.bands)} and lacks {', '.join(missing)}; sensor {files.record.name!r} "
            f"has the bands {', '.join(files.record.bands)}. Name the files' bands like that, further ones as you like"
        )
    if files.computes_ratio and files.units not in (DECIBELS, LINEAR):
        raise ValueError(
            f"{where}: the band {files.record.bands[2]} is made from the others; say what they are: "
            f'units = "{DECIBELS}" or units = "{LINEAR}"'
        )
    if strange := [band for band in files.natural_colour if band not in files.record.bands]:
        raise ValueError(f"{where}.natural_colour has {', '.join(strange)}; the sensor has {files.record.bands}")
    if len(files.natural_colour) not in (0, 3):
        raise ValueError(f"{where}.natural_colour has {len(files.natural_colour)} bands; expected red, green and blue")
    if files.dtype not in _DTYPES:
        raise ValueError(f"{where}.dtype is {files.dtype!r}; expected one of {', '.join(_DTYPES)}")


def _check_dates(where: str, files: SensorFiles) -> None:
    ways = "{date} in the file names, or dates = a CSV file (columns tile, date) or the name of an npz file's array"
    if files.record.has_dates and files.files.has_date == bool(files.dates):
        have = "both ways of telling" if files.dates else "no"
        raise ValueError(f"{where}: {files.record.name!r} is a series with {have} dates; expected one of: {ways}")
    if not files.record.has_dates and (files.files.has_date or files.dates):
        raise ValueError(f"{where}: {files.record.name!r} is an image, which has no dates; leave them out of {where}")
    in_npz = files.files.text.endswith(".npz")
    if files.dates and not files.dates.endswith(".csv") and not in_npz:
        raise ValueError(f"{where}.dates is {files.dates!r}; expected a CSV file (or, for npz files, an array's name)")
    if files.array and not in_npz:
        raise ValueError(f"{where}.array belongs to npz files; {where}.files is {files.files.text!r}")


def _labels(section: Section) -> TileLabels:
    column, classes = section.text("column"), section.texts("classes", ())
    kind = section.text("kind", "class" if classes else "regression")
    unit = section.text("unit", "")
    section.finish()
    if kind not in ("class", "multi_label", "regression") or bool(classes) == (kind == "regression"):
        raise ValueError(
            f"{section.where}: kind is {kind!r} with {len(classes)} classes; expected class or multi_label with "
            "classes, or regression without"
        )
    _check_unit(section.where, not classes, unit)
    _check_names(section.where, classes)
    if kind == "multi_label" and (wrong := [name for name in classes if ";" in name]):
        raise ValueError(f"{section.where}.classes has {wrong[0]!r}; ';' stands between the classes of a cell")
    return TileLabels(column, kind, classes, unit)


def _check_names(where: str, classes: tuple[str, ...]) -> None:
    if len(set(classes)) != len(classes):
        raise ValueError(f"{where}.classes names a class twice: {', '.join(classes)}")


def _check_unit(where: str, regression: bool, unit: str) -> None:
    if regression != bool(unit):
        raise ValueError(f'{where}: unit is {unit!r}; numbers have one (unit = "t/ha"), classes have none')


def _mask(section: Section) -> MaskFiles:
    classes = section.texts("classes", ())
    values = section.wholes("values", range(len(classes)))
    fields: dict[str, Any] = {"files": _pattern(section), "array": section.text("array", "")}
    fields["colours"] = section.texts("colours", ())
    fields["ignore"] = section.whole("ignore", -1) if classes else section.number("ignore", None)
    fields["metres_per_pixel"] = section.positive("metres_per_pixel", MaskFiles.metres_per_pixel)
    fields["unit"] = section.text("unit", "")
    section.finish()
    mask = MaskFiles(classes=classes, values=values, **fields)
    _check_mask(section.where, mask)
    return mask


def _check_mask(where: str, mask: MaskFiles) -> None:
    _check_unit(where, not mask.classes, mask.unit)
    _check_names(where, mask.classes)
    if mask.files.has_date:
        raise ValueError(f"{where}.files is {mask.files.text!r}; a mask has no {{date}}, one file belongs to a tile")
    if len(mask.values) != len(mask.classes) or len(set(mask.values)) != len(mask.values):
        raise ValueError(f"{where}.values has {mask.values} for {len(mask.classes)} classes; expected one number each")
    if mask.ignore in mask.values:
        raise ValueError(f"{where}.ignore is {mask.ignore}, which stands for a class; choose another number")
    if len(mask.colours) not in (0, len(mask.classes)):
        raise ValueError(f"{where} has {len(mask.colours)} colours for {len(mask.classes)} classes")
    if wrong := [colour for colour in mask.colours if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour)]:
        raise ValueError(f"{where}.colours has {wrong[0]!r}; expected colours like #1f78b4")


def _splits(section: Section) -> SplitRule:
    rule = SplitRule(
        column=section.text("column", ""),
        val=section.share("val", SplitRule.val),
        test=section.share("test", SplitRule.test),
        seed=section.whole("seed", SplitRule.seed),
    )
    section.finish()
    if rule.val + rule.test >= 1:
        raise ValueError(f"{section.where}: val is {rule.val:g} and test {rule.test:g}; expected shares below 1 in sum")
    return rule
